"""Studies that take seconds, of the tiny cells of ``toy_cells``."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra

from toy_cells import ROOT, TINY, assert_same_results
from twinsight.config import conf_folder, register_schema
from twinsight.study import Study
from twinsight.study.job import Order, has_work, run_job
from twinsight.study.planning import draft

TWO = ("explainer=gradcam,lafam", "seed=0,1")
SLOW = ("explainer=lafam", "explainer._target_=toy_cells.Slow")
"""An explainer that takes as long as ``TOY_SECONDS`` says."""


def planned(root: Path, photos: Path, *words: str, name: str = "toy") -> Study:
    """A study, planned as ``-m`` plans it."""
    register_schema()
    overrides = [*TINY, f"data.root={photos}", f"paths.output_root={root}", f"study={name}", *words]
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        return draft(overrides, lambda combination: hydra.compose("config", list(combination)), loader).write()


def run(study: Study, **options: bool) -> list[int]:
    """Every job of a study that has work, in this process; the exit codes."""
    chosen = [job for job, members in study.jobs.items() if any(has_work(cell, **options) for cell in members)]
    return [run_job(Order(str(study.root), study.name, job, **options)) for job in chosen]


def assert_as_plain(study: Study, plain: Mapping[str, Path]) -> None:
    """Every cell has the records of the one of the same name in ``plain``."""
    assert {cell.name for cell in study.cells} == set(plain)
    for cell in study.cells:
        assert_same_results(cell.folder, plain[cell.name])


def typed(*words: object, at: Path = ROOT, **environment: object) -> subprocess.Popen[str]:
    """``python run.py WORDS`` as a process of its own, on one thread, with more in its environment."""
    paths = os.pathsep.join([str(at / "src"), str(ROOT / "tests")])
    more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment}
    return subprocess.Popen(
        [sys.executable, at / "run.py", *map(str, words)],
        env={**os.environ, **{name: str(value) for name, value in more.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_heed_ctrl_c,
    )


def _heed_ctrl_c() -> None:
    """A shell that runs the tests in the background ignores Ctrl-C for all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ended(process: subprocess.Popen[str], code: int = 0, timeout: float = 600) -> str:
    """Wait for a process; what it printed."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == code, output
    return output


def words(root: Path, photos: Path, *more: str, study: str = "typed") -> list[str]:
    """What is typed to plan and run a study of tiny cells."""
    return ["-m", f"study={study}", *TINY, f"data.root={photos}", f"paths.output_root={root}", *more]
