"""What is said of faults: counted rightly, and none lost in the run that the documentation shows."""

import re
from types import SimpleNamespace

from fault_suite import BEGIN, END, KINDS, Summary
from toy_cells import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text()


def report(outcome, when="call", file="tests/study/test_locks.py", **said):
    shown = ("file", 1, "Skipped: for a reason") if outcome == "skipped" else "traceback"
    flags = {each: each == outcome for each in ("passed", "failed", "skipped")}
    return SimpleNamespace(
        nodeid=f"{file}::test_{len(said)}", when=when, longrepr=shown, user_properties=list(said.items()), **flags
    )


def test_faults_of_tests_that_fail_are_lost():
    summary = Summary()
    for one in (
        report("passed", "setup"),
        report("passed"),
        report("passed", injected=30, figure="flat"),
        report("failed", "setup", "tests/faults/test_bits_flip.py"),
        report("failed", file="tests/faults/test_new.py", injected=5),
        report("skipped"),
    ):
        summary.pytest_runtest_logreport(one)
    lines = summary.markdown(60.0).splitlines()
    assert lines[2:] == [
        f"| {KINDS['faults/test_bits_flip.py']} (`tests/faults/test_bits_flip.py`) | 1 | 0 | 1 |",
        f"| {KINDS['study/test_locks.py']} (`tests/study/test_locks.py`) | 31 | 31 | 0 |",
        "| faults/test_new.py (`tests/faults/test_new.py`) | 5 | 0 | 5 |",
        "| **all** | 37 | 31 | 6 |",
        "",
        "- flat",
        "- Not run: `test_0`: for a reason",
        lines[-1],
    ]


def test_the_documentation_shows_a_run_that_lost_nothing():
    table = PAGE.partition(BEGIN)[2].partition(END)[0]
    injected, survived, lost = map(int, re.search(r"\*\*all\*\* \| (\d+) \| (\d+) \| (\d+) \|", table).groups())
    assert injected == survived > 0
    assert lost == 0
    assert all(f"tests/{file}" in table for file in KINDS)


def test_every_file_that_holds_a_promise_is_there():
    files = set(re.findall(r"`(tests/\S+\.py)`", PAGE))
    assert len(files) >= 8
    assert all((ROOT / file).is_file() for file in files)
