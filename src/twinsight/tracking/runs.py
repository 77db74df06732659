"""Runs of Weights & Biases: started with a mode that needs no thought, and always finished."""

import logging
import netrc
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlparse

import wandb
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from twinsight.errors import UserError, unknown
from twinsight.tracking.uploads import UPLOAD_SECONDS, mark_finished

log = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline"]
MODES: tuple[str, ...] = get_args(Mode)
_INIT_SECONDS = 30.0
_ended: list[Path] = []


def wandb_logger(
    project: str = "twinsight",
    mode: Mode = "auto",
    save_dir: str | Path = "outputs",
    entity: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] | None = None,
    run_id: str | None = None,
    name: str | None = None,
    upload_seconds: float = UPLOAD_SECONDS,
) -> WandbLogger:
    """Lightning's W&B logger with a mode that needs no thought.

    Under an agent of a W&B sweep, project, entity and id are the agent's.

    Args:
        project, entity, group, job_type, tags: as W&B has them.
        mode: ``"auto"`` is online when this machine is logged in to W&B, else offline; ``"online"``, ``"offline"``.
        save_dir: W&B's local files go to ``wandb`` below.
        run_id: the same id resumes the same run.
        name: of the run.
        upload_seconds: how long the end of the run waits for uploads; what is left stays on disk.

    Raises:
        UserError: unknown mode; ``"online"``, and nobody is logged in. Where W&B cannot be reached, the run is kept
            offline.
    """
    check_mode(mode)
    folder = Path(save_dir).resolve() / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    # Pictures of tables wait there for their upload; W&B would put them below the home folder.
    os.environ.setdefault("WANDB_DATA_DIR", str(folder))
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
    os.environ.setdefault("WANDB_SILENT", "true")  # what matters is said once, by us
    if getattr(rank_zero_only, "rank", 0):
        return WandbLogger(offline=True, save_dir=str(save_dir))  # never starts a run: rank 0 has the one there is

    def start(offline: bool) -> WandbLogger:
        run = wandb.init(
            project=project,
            entity=entity,
            group=group,
            job_type=job_type,
            tags=None if tags is None else list(tags),
            id=run_id,
            name=name,
            dir=str(save_dir),
            mode="offline" if offline else "online",
            resume="allow",
            settings=wandb.Settings(
                silent=True,
                console="off",
                x_disable_stats=True,
                init_timeout=_INIT_SECONDS,
                finish_timeout=max(upload_seconds, 0.1),  # 0 would be for ever
            ),
        )
        return WandbLogger(experiment=run)

    if not goes_online(mode):
        return start(offline=True)
    try:
        return start(offline=False)
    except wandb.errors.Error as error:
        log.warning("W&B cannot be reached (%s): the run is kept offline", error)
        return start(offline=True)


def goes_online(mode: str) -> bool:
    """Whether runs of this mode are meant to reach W&B."""
    return mode == "online" or (mode == "auto" and logged_in())


def check_mode(mode: str) -> None:
    """Refuse a mode that is unknown, or online where nobody is logged in.

    Raises:
        UserError: as said.
    """
    if mode not in MODES:
        raise unknown("`logger.wandb.mode`", mode, MODES)
    if mode == "online" and not logged_in():
        raise UserError("`logger.wandb.mode=online` needs a key: run `wandb login`, or leave the mode auto or offline")


def logged_in() -> bool:
    """Whether W&B would find a key: in the environment or in the netrc file, where ``wandb login`` puts it."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


@contextmanager
def finishing(loggers: Iterable[Logger]) -> Iterator[None]:
    """W&B runs among ``loggers`` end with the block: with exit code 1 where it raises. Lightning ends the others."""
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger) and not getattr(rank_zero_only, "rank", 0):
                offline, folder = logger.experiment.offline, finish(logger, exit_code)
                if offline:
                    log.info("W&B run kept offline; to upload it: wandb sync %s", folder)
        settle_runs()


def finish(logger: WandbLogger, exit_code: int = 0) -> Path:
    """Close the run, which otherwise the next cell of the process would land in; its folder.

    Args:
        exit_code: 0, or W&B shows the run as failed.
    """
    run = logger.experiment
    folder = Path(run.dir).parent
    if not run.offline:
        log.info("W&B run: %s", run.url)
    run.finish(exit_code=exit_code)
    if run.offline:
        _ended.append(folder)
    return folder


def settle_runs() -> None:
    """Wait until runs that were finished are whole on disk, and may be uploaded.

    The end of a run returns before the last of it is written; only the end of W&B's service waits for that.
    """
    if _ended:
        wandb.teardown()
    while _ended:
        mark_finished(_ended.pop())
