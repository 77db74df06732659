"""One job of a study: the cells of a number, as they were frozen, in this process."""

import logging
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from twinsight.complaints import explain_error
from twinsight.config import refuse_dangerous
from twinsight.errors import UserError
from twinsight.exits import Terminated, told_to_stop
from twinsight.study.dashboard import log_cells
from twinsight.study.locks import LockLost
from twinsight.study.pictures import draw_set
from twinsight.study.planner import Plan, Planner
from twinsight.study.publish import is_published, publish, publishing
from twinsight.study.records import done_indices, is_whole
from twinsight.study.run import Outcome, compute, make_trainer
from twinsight.study.sets import tabulate
from twinsight.study.shards import WHOLE, Shard, other_workers, wait_for_the_dead
from twinsight.study.status import State, read_status, settled, write_status
from twinsight.study.study import Study, StudyCell

log = logging.getLogger(__name__)
_ONE_CPU = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}


class Order(NamedTuple):
    """What a job is told.

    Attributes:
        root: output folder, absolute.
        study: its name.
        job: its number in the plan.
        shard: the part of every cell's pairs.
        retry_failed: whether cells that failed are tried again.
    """

    root: str
    study: str
    job: int
    shard: Shard = WHOLE
    retry_failed: bool = False

    @classmethod
    def of(cls, config: DictConfig, study: str, job: str) -> "Order":
        """What the words ``study=NAME job=NUMBER[:SHARD]`` mean beside a configuration, which says how to run it."""
        number, _, part = str(job).partition(":")
        root = str(Path(config.paths.output_root).resolve())
        return cls(root, study, int(number), Shard.parse(part or str(WHOLE)), bool(config.retry_failed))

    @classmethod
    def parse(cls, config: DictConfig, words: Sequence[str]) -> "Order":
        """As :meth:`of`, from the words themselves."""
        return cls.of(config, **dict(word.split("=", 1) for word in words))

    @property
    def cells(self) -> list[StudyCell]:
        """The cells it is about."""
        return Study.open(self.root, self.study).jobs[self.job]


@dataclass
class _Built:
    """Cells of a job, built from their frozen configurations."""

    plan: Plan
    config: DictConfig


def run_job(order: Order) -> int:
    """Compute what is missing of the cells of a job, publish those that are done, and log those that are settled.

    What goes wrong is written into ``status.json`` of the cell that it concerns, and logged; nothing is raised but what
    ends the process.

    Returns:
        exit code: 0, or 1 where a cell failed.
    """
    code = _work_on([cell for cell in order.cells if has_work(cell, order.retry_failed)], order)
    log_cells(order.cells, order.study)
    return code


def finish_job(order: Order) -> int:
    """Merge, publish and log those cells of a job of which every pair is recorded; explains nothing, and needs no
    device.

    Returns:
        as :func:`run_job`.
    """
    open_cells = [cell for cell in order.cells if has_work(cell, retry_failed=True)]
    whole = [cell for cell in open_cells if len(done_indices(cell.folder)) >= cell.pairs]
    code = _work_on(whole, order._replace(shard=WHOLE), _ONE_CPU)
    log_cells(order.cells, order.study)
    return code


def _work_on(asked: Sequence[StudyCell], order: Order, trainer: Mapping[str, Any] | None = None) -> int:
    built = _build(asked, Path(order.root), trainer or {})
    if built is None:
        return int(bool(asked))
    failed = len(built.plan.cells) < len(asked)
    try:
        running = make_trainer(built.config)
        if running.is_global_zero:
            wait_for_the_dead((cell.folder for cell in built.plan.cells), order.shard)
        outcome = compute(built.plan, built.config, running, order.shard)
    except LockLost as lost:  # what becomes of the cells is another's to say
        log.warning("%s", lost)
        return int(failed)
    except Exception as error:  # of these cells; the other jobs of the study go on
        for cell in built.plan.cells:
            if read_status(cell.folder)["state"] in ("planned", "running"):  # nobody has said why yet
                trace = "".join(traceback.format_exception(error))
                state: State = "interrupted" if told_to_stop() else "failed"
                with suppress(OSError):  # a full disk may be the reason
                    write_status(cell.folder, state, error=f"{type(error).__name__}: {error}", traceback=trace)
        if told_to_stop():
            raise Terminated from error
        _say(", ".join(cell.name for cell in built.plan.cells), error)
        return 1
    for name, who in outcome.busy.items():
        log.info("%s is left to %s", name, who)
    if running.is_global_zero:
        _publish(built, outcome)
    return int(failed or bool(outcome.failed))


def has_work(cell: StudyCell, retry_failed: bool = False) -> bool:
    """Whether a cell is neither settled nor, if it is done, whole and published."""
    status = cell.status()
    if status["state"] == "done":
        return not (is_published(cell.folder) and is_whole(cell.folder))
    return not settled(status, retry_failed)


def _build(cells: Sequence[StudyCell], root: Path, trainer: Mapping[str, Any]) -> _Built | None:
    """All cells that can still be built as they were planned, with other options of the trainer; None without any."""
    planner = Planner()
    plans, config = [], None
    for cell in cells:
        frozen = cell.config
        try:
            # A job builds no sweep, which may refer to others.
            refuse_dangerous({key: node for key, node in frozen.items() if key != "sweep"})
            frozen |= {"paths": {"output_root": str(root)}, "trainer": {**frozen["trainer"], **trainer}}
            own = OmegaConf.create(frozen)
            plan = planner.plan(own)
            (built,) = plan.cells
            _check_identity(cell, built.identity)
        except Exception as error:  # of this cell; the others of the job may be whole
            if told_to_stop():
                raise Terminated from error  # which no launcher takes for the failure of one job
            message = explain_error(error) or f"{type(error).__name__}: {error}"
            trace = "".join(traceback.format_exception(error))
            if read_status(cell.folder)["state"] != "done" and not other_workers(cell.folder, WHOLE, itself=True):
                write_status(cell.folder, "failed", pairs=cell.pairs, done=0, error=message, traceback=trace)
            _say(cell.name, error)
            continue
        built.label = cell.label
        plans.append(plan)
        config = own
    if config is None or not plans:
        return None
    first = plans[0]
    return _Built(Plan(first.model, first.photos, first.views, [plan.cells[0] for plan in plans], {}), config)


def _check_identity(cell: StudyCell, now: dict) -> None:
    """Refuse to compute something else under the name of what was planned."""
    if now == cell.identity:
        return
    changed = [key for key in now if now[key] != cell.identity.get(key)]
    what = {"data": "the photos", "model": "the weights", "version": "the version of twinsight's results"}
    names = " and ".join(what.get(key, key) for key in changed)
    raise UserError(f"{cell.name} was planned for something else: {names} changed since. Plan again: replan=true")


def _publish(built: _Built, outcome: Outcome) -> None:
    """Pictures and means; what fails here costs a view, never a record."""
    waiting = {cell.name for cell in outcome.open} | set(outcome.failed) | set(outcome.busy)
    cells = [cell for cell in built.plan.cells if cell.name not in waiting]
    with publishing(cells) as mine:
        for cell in mine:
            if is_published(cell.folder):
                continue  # by another process, since this one looked
            try:
                publish(cell, built.plan, built.config)
            except Exception as error:
                _say(f"{cell.name} is done, but could not be shown", error)
    try:
        draw_set(cells, built.plan, built.config)
        tabulate(cells)
    except Exception as error:
        _say("the cells are done, but could not be shown side by side", error)


def _say(what: str, error: Exception) -> None:
    message = explain_error(error)
    if message is None:
        log.error("%s: %s: %s", what, type(error).__name__, error, exc_info=error)
    else:
        log.error("%s: %s", what, message)
