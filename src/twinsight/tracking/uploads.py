"""From runs on disk to W&B: by ``wandb sync`` in a process beside this one, so that no run ever waits for a server."""

import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

UPLOAD_SECONDS = 60.0
"""How long the end of a run waits for uploads."""
_LOOK_SECONDS = 10.0
_AGAIN_SECONDS = 300.0
"""After a vain attempt; runs that are new do not wait for it."""
_AT_ONCE = 100
_FINISHED = "finished"


def mark_finished(folder: Path) -> None:
    """Note that nothing will be added to a run's folder: uploaded half written, it would count as uploaded."""
    (folder / _FINISHED).touch()


def waiting_runs(folder: Path) -> list[Path]:
    """Folders of finished runs below ``folder`` that have not been uploaded, the oldest first."""
    finished = (path.parent for path in folder.glob(f"offline-run-*/{_FINISHED}"))
    return sorted(path for path in finished if not list(path.glob("*.wandb.synced")))


class Uploads:
    """Uploads finished runs while the block lasts, as they appear, and waits a little at its end.

    What could not be uploaded stays on disk, for the next block or for ``wandb sync FOLDER``.

    Args:
        folder: W&B's, that runs are in.
        online: whether to upload at all; without, the end says how to.
        seconds: how long the end of the block waits.
    """

    def __init__(self, folder: Path, online: bool, seconds: float = UPLOAD_SECONDS) -> None:
        self.folder = folder
        self.online = online
        self.seconds = seconds
        self._before = set(waiting_runs(folder))
        self._tried: dict[Path, float] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="uploads", daemon=True)

    def __enter__(self) -> "Uploads":
        if self.online:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end.set()
        try:
            if self.online:
                self._thread.join()
                # Whoever pressed Ctrl-C does not want to wait.
                until = time.monotonic() + (0.0 if kind and not issubclass(kind, Exception) else self.seconds)
                while self._step() and time.monotonic() < until:
                    time.sleep(0.1)
        finally:
            self._stop()
        self._say()

    def _watch(self) -> None:
        while not self._end.wait(_LOOK_SECONDS):
            self._step()

    def _step(self) -> bool:
        """Start an upload where one is due; whether one is under way."""
        if self._process is not None and self._process.poll() is None:
            return True
        now = time.monotonic()
        runs = waiting_runs(self.folder)
        due = [run for run in runs if now - self._tried.get(run, -_AGAIN_SECONDS) >= _AGAIN_SECONDS][:_AT_ONCE]
        if not due or not self._start(due):
            return False
        self._tried.update(dict.fromkeys(due, now))
        return True

    def _start(self, runs: Iterable[Path]) -> bool:
        """``wandb sync``, unless another process uploads from this folder."""
        with (self.folder / "upload.lock").open("w") as lock, (self.folder / "upload.log").open("ab") as said:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            # The lock is its own as well, and lasts as long as it does, whatever becomes of this process.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "wandb", "sync", *map(str, runs)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
                start_new_session=True,  # Ctrl-C is ours to hand on
            )
        return True

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(3.0)
                return

    def _say(self) -> None:
        left = waiting_runs(self.folder)
        uploaded = len((self._before | set(self._tried)) - set(left))
        if uploaded:
            log.info("%d W&B runs uploaded", uploaded)
        if self.online and left:
            log.warning(
                "W&B is slow or cannot be reached: %d runs wait on disk. The next run uploads them, or: wandb sync %s",
                len(left),
                self.folder,
            )
        elif set(left) - self._before:
            log.info("%d W&B runs kept offline; to upload them: wandb sync %s", len(left), self.folder)
