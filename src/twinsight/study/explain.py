"""The task ``explain``: plan cells, compute what is missing, show what came out."""

import warnings
from typing import Any

import hydra.utils
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from twinsight.config import validate
from twinsight.data import PairDataModule, SkippedPair
from twinsight.errors import UserError
from twinsight.files import write_atomically
from twinsight.models import evaluating
from twinsight.study.cell import Cell, Plan, plan
from twinsight.study.evaluation import Evaluation
from twinsight.study.pictures import draw_set
from twinsight.study.publish import log, present, publish
from twinsight.study.records import compact, done_indices, read
from twinsight.study.sets import tabulate


def explain(config: DictConfig) -> int:
    """Run every cell of ``config``; finished ones are shown, broken ones continue at the first missing pair.

    Returns:
        exit code: 0, or 1 when a cell has no pair that could be read.

    Raises:
        UserError: anything in the configuration, the data or the model that the user can mend.
    """
    validate(config)
    # Before the model loads: a device that is not there should be said in a second.
    trainer = hydra.utils.instantiate(
        config.trainer,
        logger=False,
        enable_checkpointing=False,
        inference_mode=False,
        use_distributed_sampler=False,
        default_root_dir=config.paths.output_root,
    )
    pl.seed_everything(config.seed, verbose=False)  # for models that are built untrained
    planned = plan(config)
    unfinished = [cell for cell in planned.cells if cell.status()["state"] != "finished"]
    # Whole views go through alone and perturbed ones in chunks: reduced-precision kernels would tell them apart.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if unfinished:
        _compute(config, planned, unfinished, trainer)
    if planned.photos.on_error == "raise":
        for cell in planned.cells:
            _refuse_skipped(cell)
    if trainer.is_global_zero:
        for cell in planned.cells:
            publish(cell, planned, config)
        pictures, tables = draw_set(planned.cells, planned, config), tabulate(planned.cells)
        present(planned.cells, unfinished, planned.left_out, together=pictures, tables=tables)
        for cell in planned.cells:
            log(cell, config)  # last, since a logger may be far away and slow
    readable = all(any(row["skipped"] is None for row in read(cell.folder)) for cell in planned.cells)
    return 0 if readable else 1


def _compute(config: DictConfig, planned: Plan, cells: list[Cell], trainer: pl.Trainer) -> None:
    done = [done_indices(cell.folder) for cell in cells]
    evaluation = Evaluation(planned.model, cells, done, config.engine.chunk_size)
    data = PairDataModule(
        planned.photos,
        planned.views,
        planned.model.normalization,
        config.loader.batch_size,
        config.loader.num_workers,
        config.seed,
        done=set.intersection(*done),
    )
    if trainer.is_global_zero:
        for cell, indices in zip(cells, done, strict=True):
            _write_config(cell)
            cell.set_status("running", pairs=len(planned.photos), done=len(indices))
    try:
        # Lightning does not give the modes back when something raises.
        with evaluating(planned.model), warnings.catch_warnings():
            # Photos are read in the main process by default: explaining one takes far longer than reading it.
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            # Lightning 2.6 asks newer torch about its trees in the old way.
            warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")
            trainer.predict(evaluation, datamodule=data, return_predictions=False)
        evaluation.flush()
        trainer.strategy.barrier("records written")  # raises where another process has died
    except BaseException as error:
        evaluation.flush()
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit) or not isinstance(error, Exception)
        for cell in cells:
            if cell.status()["state"] == "running":  # where processes fail one after another, the first knows why
                cell.set_status(
                    "interrupted" if interrupted else "failed",
                    pairs=len(planned.photos),
                    done=len(done_indices(cell.folder)),
                    error=f"{type(error).__name__}: {error}",
                )
        raise
    if trainer.is_global_zero:
        for cell in cells:
            _close(cell, len(planned.photos))
    trainer.strategy.barrier("records compacted")


def _close(cell: Cell, pairs: int) -> None:
    """Turn fragments into the cell's files and call it finished, if no pair is missing."""
    recorded = len(done_indices(cell.folder))
    if recorded < pairs:
        cell.set_status("interrupted", pairs=pairs, done=recorded, error="the trainer stopped before the last pair")
        raise UserError(
            f"only {recorded} of {pairs} pairs were explained: the trainer was told to stop early "
            "(limit_predict_batches, fast_dev_run). To explain fewer pairs set data.limit"
        )
    compact(cell.folder, {"cell": cell.digest})
    cell.set_status("finished", pairs=pairs, done=recorded, versions=_versions())


def _refuse_skipped(cell: Cell) -> None:
    for row in read(cell.folder):
        if row["skipped"] is not None:
            raise SkippedPair(row["index"], row["pair_id"], row["skipped"]).refusal()


def _write_config(cell: Cell) -> None:
    text = OmegaConf.to_yaml({"identity": cell.identity, "config": cell.config})
    write_atomically(cell.folder / "config.yaml", lambda path: path.write_text(text))


def _versions() -> dict[str, Any]:
    from twinsight import __version__

    return {"twinsight": __version__, "torch": torch.__version__, "pytorch_lightning": pl.__version__}
