"""Runs every test that does a fault to a run, and writes what came of it into a page.

python tests/fault_suite.py docs/reliability.md [arguments of pytest]
"""

import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- begin table: faults (make test-faults) -->", "<!-- end table -->"

KINDS = {
    "faults/test_bits_flip.py": "a bit of a file flips",
    "faults/test_runs_are_hit.py": "folder, disk, clock, reading process, memory or numbers fail",
    "faults/test_versions_meet.py": "two versions of the package on one study",
    "faults/test_wandb_goes_away.py": "W&B forgets who is logged in",
    "faults/test_long_haul.py": "2000 pairs in one process",
    "study/test_dashboards.py": "W&B is silent or away; what logs is killed",
    "study/test_locks.py": "who holds a lock dies, sleeps, or cannot write",
    "study/test_records.py": "files are cut short, unwritable, or half of a pair of them",
    "study/test_remote.py": "processes are gone before they said how they ended",
    "study/test_studies.py": "kills, interruptions, full disks, changed input",
    "study/test_study_commands.py": "kills, signals and rivals of a typed study",
}
"""What is done, by the file that does it."""


class Summary:
    """Counts faults: one of each test, or as many as it says by ``record_property("injected", n)``.

    Those of a test that passed were survived, those of any other were lost.
    """

    def __init__(self) -> None:
        self.survived: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.left_out: list[str] = []
        self.figures: list[str] = []
        self._over: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0].removeprefix("tests/")
        said: dict[str, Any] = dict(report.user_properties)
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "expected to fail"
            self.left_out.append(f"`{report.nodeid.partition('::')[2]}`: {reason.removeprefix('Skipped: ')}")
        elif report.failed and report.nodeid not in self._over:
            self._over.add(report.nodeid)
            self.lost[file] += said.get("injected", 1)
        elif report.when == "call" and report.passed:
            self.survived[file] += said.get("injected", 1)
            self.figures += [said["figure"]] if "figure" in said else []

    def markdown(self, seconds: float) -> str:
        """The table, its sums, and on what it was made."""
        files = [file for file in KINDS if file in self.survived | self.lost]
        files += sorted((self.survived | self.lost).keys() - KINDS.keys())
        rows = [(f"{KINDS.get(file, file)} (`tests/{file}`)", self.survived[file], self.lost[file]) for file in files]
        rows.append(("**all**", self.survived.total(), self.lost.total()))
        took = f"{seconds / 60:.0f} minutes on {os.cpu_count()} cores"
        return "\n".join(
            [
                "| fault | injected | survived | lost |",
                "|---|---|---|---|",
                *(f"| {name} | {survived + lost} | {survived} | {lost} |" for name, survived, lost in rows),
                "",
                *(f"- {figure}" for figure in self.figures),
                *(f"- Not run: {one}" for one in self.left_out),
                f"- Run on {time.strftime('%Y-%m-%d')}: {took}, {platform.machine()}, Python {sys.version.split()[0]}.",
            ]
        )


def main(page: Path, arguments: list[str]) -> int:
    """Run the suite; pytest's exit code."""
    summary, started = Summary(), time.monotonic()
    code = pytest.main([str(ROOT / "tests"), "--rootdir", str(ROOT), "-m", "faults", *arguments], plugins=[summary])
    table = summary.markdown(time.monotonic() - started)
    print(table)
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} has no place for the table: {BEGIN} ... {END}")
    if code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):  # of a run that broke off, nothing is written
        page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
