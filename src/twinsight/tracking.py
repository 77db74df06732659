"""The end of a Weights & Biases run, whoever started it."""

import logging
from pathlib import Path

from pytorch_lightning.loggers import WandbLogger

log = logging.getLogger(__name__)


def finish(logger: WandbLogger) -> None:
    """Close the run: without this, the next cell of the process would land in it."""
    run = logger.experiment
    offline, folder = run.offline, Path(run.dir).parent
    url = None if offline else run.url
    run.finish()
    if offline:
        log.info("W&B run kept offline; to upload it: wandb sync %s", folder)
    else:
        log.info("W&B run: %s", url)
