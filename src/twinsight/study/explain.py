"""The task ``explain``: plan cells, compute what is missing, show what came out."""

from omegaconf import DictConfig

from twinsight.config import validate
from twinsight.errors import UserError
from twinsight.study.pictures import draw_set
from twinsight.study.planner import plan
from twinsight.study.publish import log, present, publish
from twinsight.study.records import read
from twinsight.study.run import compute, make_trainer, refuse_skipped
from twinsight.study.sets import tabulate
from twinsight.study.shards import wait_for_the_dead


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
    for key in ("study", "shard", "retry_failed"):
        if config.get(key):
            raise UserError(f"`{key}={config[key]}` is for many cells: add -m, as in python run.py -m study=NAME ...")
    trainer = make_trainer(config)
    planned = plan(config)
    if trainer.is_global_zero:
        wait_for_the_dead(cell.folder for cell in planned.cells)
    outcome = compute(planned, config, trainer)
    if outcome.busy:
        name, who = next(iter(outcome.busy.items()))
        raise UserError(f"{name} is being computed by {who}: wait for it, or stop it first")
    cells = [cell for cell in planned.cells if cell.name not in outcome.failed]
    if planned.photos.on_error == "raise":
        for cell in cells:
            refuse_skipped(cell)
    if trainer.is_global_zero:
        for cell in cells:
            publish(cell, planned, config)
        pictures, tables = draw_set(cells, planned, config), tabulate(cells)
        failed = {name: f"{type(error).__name__}: {error}" for name, error in outcome.failed.items()}
        present(cells, outcome.computed, planned.left_out, failed, together=pictures, tables=tables)
        for cell in cells:
            log(cell, config)  # last, since a logger may be far away and slow
    readable = all(any(row["skipped"] is None for row in read(cell.folder)) for cell in cells)
    return 0 if readable and not outcome.failed else 1
