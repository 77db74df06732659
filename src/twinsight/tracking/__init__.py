"""Loggers: those that a configuration chooses, W&B's runs, and the way of those runs to W&B."""

from twinsight.tracking.choice import build, check_loggers, chosen_loggers, is_wandb, log_pictures
from twinsight.tracking.runs import finish, finishing, goes_online, logged_in, settle_runs, wandb_logger
from twinsight.tracking.uploads import Uploads, waiting_runs

__all__ = [
    "Uploads",
    "build",
    "check_loggers",
    "chosen_loggers",
    "finish",
    "finishing",
    "goes_online",
    "is_wandb",
    "log_pictures",
    "logged_in",
    "settle_runs",
    "waiting_runs",
    "wandb_logger",
]
