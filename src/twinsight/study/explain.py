"""The task ``explain``: plan cells, compute what is missing, show what came out."""

from omegaconf import DictConfig

from twinsight.config import validate
from twinsight.errors import UserError
from twinsight.study.dashboard import log_run
from twinsight.study.pictures import draw_set
from twinsight.study.planner import plan
from twinsight.study.publish import present, publish, publishing
from twinsight.study.records import read
from twinsight.study.run import compute, make_trainer, refuse_skipped
from twinsight.study.sets import tabulate
from twinsight.study.shards import wait_for_the_dead
from twinsight.tracking import check_loggers


def explain(config: DictConfig) -> int:
    """Run every cell of ``config``; finished ones are shown, broken ones continue at the first missing pair.

    With ``config.job``, run that job of the study ``config.study`` as it was planned.

    Returns:
        exit code: 0, or 1 when a cell failed or has no pair that could be read.

    Raises:
        UserError: anything in the configuration, the data or the model that the user can mend.
    """
    if config.get("job") is not None:
        from twinsight.study.driver import run_as_job

        return run_as_job(config)
    validate(config)
    if config.get("sweep"):
        raise UserError("`sweep` is for many cells: add -m, as in python run.py -m sweep=optuna study=NAME ...")
    for key in ("study", "shard", "retry_failed", "replan"):
        if config.get(key):
            raise UserError(f"`{key}={config[key]}` is for many cells: add -m, as in python run.py -m study=NAME ...")
    check_loggers(config)
    trainer = make_trainer(config)
    planned = plan(config)
    if trainer.is_global_zero:
        wait_for_the_dead(cell.folder for cell in planned.cells)
    try:
        outcome = compute(planned, config, trainer)
    except Exception:
        if trainer.is_global_zero:
            log_run(planned.cells, config)  # dashboards show failures
        raise
    if outcome.busy:
        name, who = next(iter(outcome.busy.items()))
        raise UserError(f"{name} is being computed by {who}: wait for it, or stop it first")
    cells = [cell for cell in planned.cells if cell.name not in outcome.failed]
    if planned.photos.on_error == "raise":
        for cell in cells:
            refuse_skipped(cell)
    if trainer.is_global_zero:
        with publishing(cells) as mine:
            for cell in mine:
                publish(cell, planned, config)
        pictures, tables = draw_set(cells, planned, config), tabulate(cells)
        failed = {name: f"{type(error).__name__}: {error}" for name, error in outcome.failed.items()}
        present(cells, outcome.computed, planned.left_out, failed, together=pictures, tables=tables)
        log_run(planned.cells, config)  # last, since a logger may be far away and slow
    readable = all(any(row["skipped"] is None for row in read(cell.folder)) for cell in cells)
    return 0 if readable and not outcome.failed else 1
