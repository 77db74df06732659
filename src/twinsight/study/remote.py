"""Jobs that a scheduler starts, here or elsewhere: what one of them does, and what is done when all have ended."""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from twinsight.exits import prepare_environment
from twinsight.study.job import Order, finish_job, run_job
from twinsight.study.locks import Observer
from twinsight.study.records import done_indices
from twinsight.study.shards import bury, unreleased, wait_for_the_dead
from twinsight.study.status import write_status
from twinsight.study.study import Study, StudyCell

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Surroundings:
    """What a process elsewhere must have of the one that ordered it, as plain containers.

    Attributes:
        folder: working directory, against which paths of photos and weights may be written.
        logging: of Hydra's jobs, without its files: what a job says goes where its scheduler keeps it.
        verbose: Hydra's.
    """

    folder: str
    logging: Mapping[str, Any]
    verbose: Any

    @classmethod
    def of(cls, config: DictConfig) -> "Surroundings":
        """Those of this process; ``config`` is that of the multirun."""
        said: Any = OmegaConf.to_container(config.hydra.job_logging, resolve=True)
        files = [name for name, handler in said.get("handlers", {}).items() if "filename" in handler]
        for name in files:
            said["handlers"].pop(name)
        for speaker in (said.get("root", {}), *said.get("loggers", {}).values()):
            if "handlers" in speaker:
                speaker["handlers"] = [name for name in speaker["handlers"] if name not in files]
        verbose = config.hydra.verbose
        return cls(os.getcwd(), said, OmegaConf.to_container(verbose) if OmegaConf.is_config(verbose) else verbose)

    def enter(self) -> None:
        """Make them those of this process."""
        prepare_environment()
        os.chdir(self.folder)
        configure_log(DictConfig(dict(self.logging)), self.verbose)


def work(order: Order, surroundings: Surroundings) -> int:
    """Run a job in this process, which a scheduler started.

    Args:
        order: the job.
        surroundings: of the process that ordered it.

    Returns:
        exit code: 0, or 1 where a cell failed.
    """
    surroundings.enter()
    return run_job(order)


def conclude(study: Study, orders: Mapping[Order, str]) -> None:
    """Set in order what jobs left behind that have ended, however they did.

    Cells whose process went without a word are reported as failed. Cells of which every pair is recorded are merged,
    drawn and logged, should a job have died before it could. Doing it twice does no harm.

    Args:
        study: that the jobs are of.
        orders: what they were told, each with what is known of its end: where its output went, or what it raised.
    """
    jobs = study.jobs
    cells = {cell.name: cell for order in orders for cell in jobs[order.job]}
    locked = {name: unreleased(cell.folder) for name, cell in cells.items()}
    wait_for_the_dead([cell.folder for name, cell in cells.items() if locked[name]])
    for order, end in orders.items():
        for cell in jobs[order.job]:
            _report_the_dead(cell, locked[cell.name], end)
    for job in dict.fromkeys(order.job for order in orders):
        finish_job(Order(str(study.root), study.name, job))


def _report_the_dead(cell: StudyCell, holders: Sequence[str], end: str) -> None:
    """Say of a cell that nobody works on what became of it, unless it says so itself."""
    state = cell.status()["state"]
    if state not in ("planned", "running") and not (state == "interrupted" and holders):
        return
    if not bury(cell.folder, Observer()):
        return  # somebody is at it
    done = len(done_indices(cell.folder))
    if holders:
        what = f"{', '.join(holders)} died without a word: killed, or out of memory or time"
    elif state == "running":
        what = "its process died without a word: killed, or out of memory or time"
    else:
        what = "its job ended before it began to work"
    with suppress(OSError):  # a full disk may be why it died
        # The signal makes it a cell that is not at fault: the next run goes on with it.
        write_status(cell.folder, "failed", error=f"{what} ({end})", signal="unknown", pairs=cell.pairs, done=done)
    log.error("%s: %s (%s)", cell.name, what, end)
