"""The work on planned cells: locked, computed pair by pair, recorded, closed."""

import logging
import os
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import hydra.utils
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.strategies import ParallelStrategy

from twinsight.data import PairDataModule, SkippedPair
from twinsight.errors import UserError
from twinsight.exits import told_to_stop
from twinsight.files import write_atomically
from twinsight.models import evaluating
from twinsight.study.cell import Cell
from twinsight.study.engine import execution_of
from twinsight.study.evaluation import Evaluation
from twinsight.study.locks import Lock, LockLost
from twinsight.study.planner import Plan
from twinsight.study.records import compact, done_indices, is_whole, read
from twinsight.study.shards import WHOLE, Shard, alone, other_workers, shard_lock
from twinsight.study.status import State, read_status, write_status

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What became of the cells of a run.

    Attributes:
        computed: cells that got records now.
        failed: what went wrong, by the name of the cell.
        busy: who else is at work, by the name of the cell.
        open: cells of which other shards still owe pairs.
    """

    computed: list[Cell] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)
    busy: dict[str, str] = field(default_factory=dict)
    open: list[Cell] = field(default_factory=list)


def make_trainer(config: DictConfig) -> pl.Trainer:
    """The trainer of a configuration; built before models, since a device that is not there is said in a second."""
    if str(config.trainer.get("precision")).startswith("64"):
        raise UserError(f"`trainer.precision={config.trainer.precision}`: pairs are in single precision, use 32-true")
    # Under submitit, that is who requeues a job: Lightning must not as well.
    requeued = os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and not config.trainer.get("plugins")
    return hydra.utils.instantiate(
        config.trainer,
        **({"plugins": [SLURMEnvironment(auto_requeue=False)]} if requeued else {}),
        logger=False,
        enable_checkpointing=False,
        inference_mode=False,
        use_distributed_sampler=False,
        default_root_dir=config.paths.output_root,
    )


def compute(planned: Plan, config: DictConfig, trainer: pl.Trainer, shard: Shard = WHOLE) -> Outcome:
    """Compute what is missing of every cell, or of a shard of it.

    Where one of several cells fails, the others go on; where a cell runs alone, or on several devices, its exception
    passes once it has been recorded.
    """
    outcome = Outcome()
    with _held(planned, trainer, shard, outcome) as held:
        if held.cells:
            _compute(config, planned, held.cells, trainer, shard, held, outcome)
    return outcome


def refuse_skipped(cell: Cell) -> None:
    """Raise for the first pair of a finished cell that could not be read."""
    for row in read(cell.folder):
        if row["skipped"] is not None:
            raise SkippedPair(row["index"], row["pair_id"], row["skipped"]).refusal()


@contextmanager
def _held(planned: Plan, trainer: pl.Trainer, shard: Shard, outcome: Outcome) -> Iterator["_Held"]:
    """The cells that are neither done nor another process's, for as long as the block lasts."""
    held = _Held(len(planned.photos), shard)
    try:
        unfinished = [cell for cell in planned.cells if not _is_done(cell)]
        if trainer.is_global_zero:  # one process speaks for all of a run
            for cell in unfinished:
                busy = held.take(cell)
                if busy is not None:
                    outcome.busy[cell.name] = busy
                elif _is_done(cell):  # since it was last looked at
                    held.release(cell)
                else:
                    held.cells.append(cell)
        else:
            held.cells = unfinished
        names, outcome.busy = _as_rank_zero_has_it(trainer, ([cell.name for cell in held.cells], outcome.busy))
        held.cells = [cell for cell in planned.cells if cell.name in names]
        yield held
    except BaseException as error:
        held.be_quiet()
        _note_the_end([cell for cell in held.mine() if cell not in outcome.open], error, held.pairs)
        raise
    finally:
        for cell in planned.cells:
            held.release(cell)


def _is_done(cell: Cell) -> bool:
    return read_status(cell.folder)["state"] == "done" and is_whole(cell.folder)


def _as_rank_zero_has_it(trainer: pl.Trainer, value: Any) -> Any:
    """What rank 0 gives, on every rank that torchrun or srun has started.

    Ranks that Lightning starts itself begin when rank 0 has work, and find the same; the others stand here already, and
    would wait for each other forever.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ParallelStrategy) or trainer.world_size == 1:
        return value
    if strategy.cluster_environment is None or isinstance(strategy.cluster_environment, LightningEnvironment):
        return value
    strategy.setup_environment()
    return strategy.broadcast(value)


class _Held:
    """Locks on cells, and the status that they keep alive.

    Args:
        pairs: of each cell.
        shard: the part of them that this process computes.
    """

    def __init__(self, pairs: int, shard: Shard) -> None:
        self.pairs = pairs
        self.shard = shard
        self.cells: list[Cell] = []
        self.locks: dict[str, Lock] = {}
        self.recorded: dict[str, int] = {}
        self.before: dict[str, int] = {}
        self._quiet = False
        self._speaking = threading.Lock()
        self._started = time.monotonic()

    def take(self, cell: Cell) -> str | None:
        """Lock a cell; who has it, where that is another."""
        lock = Lock(shard_lock(cell.folder, self.shard), lambda: self.show(cell))
        if not lock.take():
            return str(lock.holder())
        others = other_workers(cell.folder, self.shard)
        if others:
            lock.release()
            return others[0]
        self.locks[cell.name] = lock
        return None

    def release(self, cell: Cell) -> None:
        lock = self.locks.pop(cell.name, None)
        if lock is None:
            return
        lock.release()

    def mine(self) -> list[Cell]:
        """Cells that this process has locked and nobody has taken over."""
        return [cell for cell in self.cells if cell.name in self.locks and not self.lost(cell)]

    def lost(self, cell: Cell) -> bool:
        """Whether another process has taken a cell over."""
        lock = self.locks.get(cell.name)
        return lock is not None and lock.lost

    def check(self) -> None:
        """Raise where another process has taken a cell over: from then on, records and status are its own.

        Raises:
            LockLost: as said.
            UserError: nobody has, but its folder is no longer there.
        """
        for cell in self.cells:
            if self.lost(cell):
                if self.locks[cell.name].removed:
                    raise UserError(
                        f"{cell.folder} was removed while it was worked on: what had been written there is lost. Run "
                        "again to compute it anew"
                    )
                raise LockLost(f"{cell.name} was taken over by another process, since this one was silent for too long")

    def show(self, cell: Cell) -> None:
        """Write that the cell is running, with signs of life."""
        with self._speaking:
            if not self._quiet:
                self._show(cell)

    def be_quiet(self) -> None:
        """From here on others say how the cells ended; no sign of life may come after that."""
        with self._speaking:
            self._quiet = True

    def _show(self, cell: Cell) -> None:
        if read_status(cell.folder)["state"] not in ("running", "planned"):
            return  # another shard has said how it ended
        lock = self.locks.get(cell.name)
        write_status(
            cell.folder,
            "running",
            pairs=self.pairs,
            done=self.recorded.get(cell.name, 0),
            host=socket.gethostname(),
            pid=os.getpid(),
            beat=0 if lock is None else lock.beats,
            before=self.before.get(cell.name, 0),
            seconds=round(time.monotonic() - self._started, 1),
        )


def _compute(
    config: DictConfig,
    planned: Plan,
    cells: list[Cell],
    trainer: pl.Trainer,
    shard: Shard,
    held: _Held,
    outcome: Outcome,
) -> None:
    pairs = len(planned.photos)
    done = []
    for cell in cells:
        with alone(cell.folder, "merge", wait=True) if shard != WHOLE else nullcontext():
            done.append(done_indices(cell.folder))  # not while another shard clears fragments away
    held.recorded = {cell.name: len(indices) for cell, indices in zip(cells, done, strict=True)}
    held.before = dict(held.recorded)
    chunk_size, execution = config.engine.chunk_size, execution_of(config)
    evaluation = Evaluation(planned.model, cells, done, chunk_size, held.recorded, execution, held.check)
    data = PairDataModule(
        planned.photos,
        planned.views,
        planned.model.normalization,
        config.loader.batch_size,
        config.loader.num_workers,
        config.seed,
        done=set.intersection(*done),
        shard=(shard.index, shard.count),
    )
    if trainer.is_global_zero:
        for cell in cells:
            _write_config(cell)
            write_status(cell.folder, "planned")  # whatever an earlier run said
            held.show(cell)
            level = logging.INFO if held.recorded[cell.name] else logging.DEBUG
            log.log(level, "computing %s: %d of %d pairs are done", cell.name, held.recorded[cell.name], pairs)
    try:
        # Whole views go through alone and perturbed ones in chunks: reduced-precision kernels would tell them apart.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        # Lightning does not give the modes back when something raises.
        with evaluating(planned.model), warnings.catch_warnings():
            # Photos are read in the main process by default: explaining one takes far longer than reading it.
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            # Lightning 2.6 asks newer torch about its trees in the old way.
            warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")
            trainer.predict(evaluation, datamodule=data, return_predictions=False)
        evaluation.flush()
        trainer.strategy.barrier("records written")  # raises where another process has died
        held.check()
        held.be_quiet()
    except BaseException as error:
        held.be_quiet()
        try:
            evaluation.flush()
        except OSError as full:  # the disk's trouble may be why we are here; it must not hide the reason
            error.add_note(f"what was computed last could not be written: {full}")
        _note_the_end([cell for cell in cells if not held.lost(cell)], error, pairs, evaluation.failed)
        raise
    outcome.failed.update(evaluation.failed)
    if trainer.is_global_zero:
        _close_all(cells, evaluation, pairs, shard, outcome)
    else:
        outcome.computed.extend(cell for cell in cells if cell.name not in evaluation.failed)
    trainer.strategy.barrier("records compacted")


def _close_all(cells: list[Cell], evaluation: Evaluation, pairs: int, shard: Shard, outcome: Outcome) -> None:
    for cell in cells:
        try:
            if cell.name in evaluation.failed:
                _note(cell, "failed", evaluation.failed[cell.name], pairs)
            elif _close(cell, pairs, shard):
                outcome.computed.append(cell)
            else:
                outcome.open.append(cell)
        except OSError as full:  # the disk of one cell is no reason to leave the others open
            if told_to_stop():
                raise
            outcome.failed[cell.name] = full
            with suppress(OSError):
                _note(cell, "failed", full, pairs)


def _note_the_end(
    cells: list[Cell], error: BaseException, pairs: int, failed: Mapping[str, Exception] = MappingProxyType({})
) -> None:
    """Say of cells that still run why no more was computed; ``failed`` knows better for some."""
    interrupted = told_to_stop() or not isinstance(error, Exception)  # Ctrl-C, SIGTERM, an exit
    for cell in cells:
        if read_status(cell.folder)["state"] != "running":
            continue  # where processes fail one after another, the first knows why
        try:
            reason = error if interrupted else failed.get(cell.name, error)
            _note(cell, "interrupted" if interrupted else "failed", reason, pairs)
        except OSError as full:
            error.add_note(f"the status of {cell.name} could not be written: {full}")


def _note(cell: Cell, state: State, error: BaseException, pairs: int) -> None:
    write_status(
        cell.folder,
        state,
        pairs=pairs,
        done=len(done_indices(cell.folder)),
        error=f"{type(error).__name__}: {error}",
        traceback="".join(traceback.format_exception(error)),
    )


def _close(cell: Cell, pairs: int, shard: Shard) -> bool:
    """Turn fragments into the cell's files and call it done; False where other shards still owe pairs."""
    with alone(cell.folder, "merge", wait=True):  # shards may end at one time
        if _is_done(cell):
            return True
        recorded = len(done_indices(cell.folder))
        if recorded == pairs:
            compact(cell.folder, {"cell": cell.digest})
            write_status(cell.folder, "done", pairs=pairs, done=recorded, versions=_versions())
            return True
        if shard != WHOLE:
            last = len(other_workers(cell.folder, WHOLE)) < 3  # this process alone, with the locks on shard and merge
            if last and read_status(cell.folder)["state"] in ("planned", "running"):
                write_status(cell.folder, "interrupted", pairs=pairs, done=recorded, error="shards are missing")
            return False
    error = "the trainer stopped before the last pair"
    write_status(cell.folder, "interrupted", pairs=pairs, done=recorded, error=error)
    raise UserError(
        f"only {recorded} of {pairs} pairs were explained: the trainer was told to stop early "
        "(limit_predict_batches, fast_dev_run). To explain fewer pairs set data.limit"
    )


def _write_config(cell: Cell) -> None:
    text = OmegaConf.to_yaml({"identity": cell.identity, "config": cell.config})
    write_atomically(cell.folder / "config.yaml", lambda path: path.write_text(text))


def _versions() -> Mapping[str, Any]:
    from twinsight import __version__

    return {"twinsight": __version__, "torch": torch.__version__, "pytorch_lightning": pl.__version__}
