"""Who works on a cell: one process at a time, on any machine that sees the folder, and nobody waits for the dead."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from twinsight.errors import UserError
from twinsight.files import write_json

BEAT_SECONDS = 5.0
"""Between two beats of a living holder."""
STALE_SECONDS = 60.0
"""A counter that an observer saw stand still for so long belongs to a dead holder."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as its file says.

    Attributes:
        generation: of the lock; the highest counts.
        host, pid: for people.
        machine: boot and process namespace, within which ``pid`` means something.
        born: when the process started, in ticks of its machine; tells apart processes that had one number.
        beat: a counter that a living holder keeps raising; -1 once released.
    """

    generation: int
    host: str
    pid: int
    machine: str
    born: str
    beat: int

    @property
    def released(self) -> bool:
        return self.beat < 0

    @property
    def dead(self) -> bool:
        """True where this machine knows that the process is gone; False where it lives, or cannot be known."""
        return self.machine == _machine() and self.born != _born(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Observer:
    """Remembers how long it has seen counters stand still, by its own clock: clocks of machines differ.

    Args:
        patience: seconds of standing still that make a holder dead.
        clock: seconds that never run backwards.
    """

    def __init__(self, patience: float = STALE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience = patience
        self.clock = clock
        self._seen: dict[Path, tuple[Holder, float]] = {}
        self._moved: set[Path] = set()

    def gone(self, lock: Path, holder: Holder) -> bool:
        """Whether the holder of ``lock`` is dead: known to be, or silent for as long as the patience lasts."""
        if holder.released or holder.dead:
            return True
        before, since = self._seen.get(lock, (None, 0.0))
        if before == holder:
            return self.clock() - since >= self.patience
        if before is not None:
            self._moved.add(lock)
        self._seen[lock] = (holder, self.clock())
        return False

    def moved(self, folder: Path) -> bool:
        """Whether it has seen a sign of life from the holder of any lock below ``folder``."""
        return any(folder in lock.parents for lock in self._moved)


class LockLost(UserError):
    """Another process took a lock over, since its holder had been silent for too long."""


class Lock:
    """A lock in a folder, held by a process that shows signs of life.

    Files are numbered: whoever creates the next number holds it, which a file system grants to one process only. A
    number is never used twice while anybody may be looking, so that a late observer cannot take a living lock away.

    Args:
        folder: of the lock's files; made when the lock is taken.
        beat: called after each sign of life, from a thread of its own; what it raises is left alone.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> first, second = Lock(folder), Lock(folder)
    >>> first.take(), second.take(), str(second.holder()).startswith("process")
    (True, False, True)
    >>> first.release()
    >>> second.take()
    True
    >>> second.release()
    """

    def __init__(self, folder: Path, beat: Callable[[], Any] | None = None) -> None:
        self.folder = folder
        self._beat = beat
        self._mine: Holder | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def holder(self) -> Holder | None:
        """Who holds it, or held it last."""
        for path in self._files():
            try:
                return Holder(generation=int(path.stem), **json.loads(path.read_text()))
            except (OSError, ValueError, TypeError):
                # Created and not yet written, or written by a process that died half way: as good as silent.
                return Holder(int(path.stem), "an unknown host", 0, "", "", 0)
        return None

    def take(self, observer: Observer | None = None) -> bool:
        """Hold the lock, unless a living process does; False then."""
        holder = self.holder()
        if holder is not None and not (observer or Observer()).gone(self.folder, holder):
            return False
        generation = 1 if holder is None else holder.generation + 1
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(self._path(generation), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False  # another was faster
        pid = os.getpid()
        self._mine = Holder(generation, socket.gethostname(), pid, _machine(), _born(pid), 0)
        try:
            self._write(self._mine)
        except OSError:  # a full disk: a lock that says nothing would hold up others until it counts as silent
            self._mine = None
            self._path(generation).unlink(missing_ok=True)
            raise
        self._stop.clear()
        self._thread = threading.Thread(target=self._live, name="heartbeat", daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        """Let others have it; older files are cleared away."""
        if self._mine is None:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        mine, self._mine = self._mine, None
        with suppress(OSError):  # the end of the process will say as much
            if not self._taken_over(mine):
                self._write(Holder(**{**vars(mine), "beat": -1}))
        for path in self._files():
            if int(path.stem) < mine.generation:
                path.unlink(missing_ok=True)

    @property
    def beats(self) -> int:
        """Signs of life so far."""
        return 0 if self._mine is None else self._mine.beat

    @property
    def lost(self) -> bool:
        """Whether another process took it over: this one was silent for too long, asleep or without its disk."""
        return self._mine is not None and self._taken_over(self._mine)

    @property
    def removed(self) -> bool:
        """Whether its files went while it was held, as they do with the whole folder."""
        return self._mine is not None and not self._files()

    def _taken_over(self, mine: Holder) -> bool:
        newest = next(iter(self._files()), None)
        return newest is None or int(newest.stem) > mine.generation

    def _live(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            assert self._mine is not None
            if self._taken_over(self._mine):
                return
            self._mine = Holder(**{**vars(self._mine), "beat": self._mine.beat + 1})
            try:
                self._write(self._mine)
                if self._beat is not None:
                    self._beat()
            except OSError:
                continue  # a disk that is full for now must not end the work; the next beat may succeed

    def _write(self, holder: Holder) -> None:
        facts = {name: value for name, value in vars(holder).items() if name != "generation"}
        write_json(self._path(holder.generation), facts)

    def _path(self, generation: int) -> Path:
        return self.folder / f"{generation}.json"

    def _files(self) -> list[Path]:
        """The lock's files, the newest first."""
        found = (path for path in self.folder.glob("*.json") if path.stem.isdecimal())
        return sorted(found, key=lambda path: int(path.stem), reverse=True)


@cache
def _machine() -> str:
    """What process numbers are unique within: a boot of a machine, and a namespace of its processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} (no /proc)"


def _born(pid: int) -> str:
    """When a process started, in ticks since its machine did; empty where there is none (or no /proc)."""
    try:
        # The name of the program, in parentheses, may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
