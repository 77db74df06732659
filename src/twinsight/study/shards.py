"""A cell's pairs in parts, each for a process of its own: the indices ``index::count``; and who works on which."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from twinsight.errors import UserError
from twinsight.study.locks import Holder, Lock, Observer

_POLL_SECONDS = 1.0
_STEP_SECONDS = 0.1


@dataclass(frozen=True)
class Shard:
    """The pairs ``index, index + count, ...`` of a cell.

    >>> Shard.parse("1/4"), str(Shard(1, 4)), str(WHOLE)
    (Shard(index=1, count=4), '1/4', '0/1')
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From ``"index/count"``."""
        index, _, count = text.partition("/")
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Shard(0, 1)
"""All pairs."""

AUTO_FORWARDS = 500_000
"""``shard=auto`` makes parts of about so many image forwards: two hours at 70 a second, ten minutes at 800."""


def shard_count(asked: object, pairs: int, forwards: int) -> int:
    """How many shards ``shard=asked`` makes of a cell.

    Args:
        asked: None for one, a number, or ``"auto"``: as many as make parts of ``AUTO_FORWARDS``.
        pairs: of the cell; never more shards than these.
        forwards: image forwards of the whole cell.

    Raises:
        UserError: neither a positive number nor ``"auto"``.

    >>> shard_count(None, 100, 10**6), shard_count(3, 100, 0), shard_count(8, 5, 0), shard_count("auto", 100, 10**6)
    (1, 3, 5, 2)
    """
    if asked is None:
        return 1
    if asked == "auto":
        asked = -(-forwards // AUTO_FORWARDS)
        return min(max(1, asked), max(1, pairs))
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise UserError(f"`shard` must be auto or a number of parts, at least 1, got {asked!r}")
    return min(asked, max(1, pairs))


def shard_lock(folder: Path, shard: Shard) -> Path:
    """Where the lock of a cell, or of a shard of it, is."""
    return folder / "locks" / ("whole" if shard == WHOLE else f"{shard.index}-of-{shard.count}")


def other_workers(folder: Path, shard: Shard, itself: bool = False) -> list[str]:
    """Living processes that work on parts of a cell that overlap with ``shard``, with ``itself`` those on it as well.

    Shards of one count do not overlap with each other; everything overlaps with the whole.
    """
    return [str(holder) for holder in _holders(folder, shard, itself) if not holder.dead]


def unreleased(folder: Path) -> list[str]:
    """Processes that hold locks of a cell, or held them when they died."""
    return [str(holder) for holder in _holders(folder, WHOLE, itself=True)]


def bury(folder: Path, observer: Observer, shard: Shard = WHOLE) -> bool:
    """Take the locks of a cell that overlap with ``shard`` away from holders that are gone; whether no living one is
    left."""
    alive = False
    for place in _in_the_way(folder, shard, itself=True):
        lock = Lock(place)
        holder = lock.holder()
        if holder is None or holder.released:
            continue
        if lock.take(observer):
            lock.release()
        else:
            alive = True
    return not alive


def wait_for_the_dead(folders: Iterable[Path], shard: Shard = WHOLE) -> None:
    """Find out whether those whose locks are in the way are alive, which takes a minute at most."""
    observer = Observer()
    until = observer.clock() + observer.patience + _POLL_SECONDS
    silent = [folder for folder in folders if not bury(folder, observer, shard)]
    while silent and observer.clock() < until:
        time.sleep(_POLL_SECONDS)
        silent = [folder for folder in silent if not bury(folder, observer, shard) and not observer.moved(folder)]


@contextmanager
def alone(folder: Path, step: str, wait: bool = False) -> Iterator[bool]:
    """Let one process at a time do a short step on a cell, such as merging its fragments.

    Args:
        folder: of the cell.
        step: its name.
        wait: until whoever is at it has finished, or died.

    Yields:
        whether this process may; always, where it waits.
    """
    lock, observer = Lock(folder / "locks" / step), Observer()
    mine = lock.take(observer)
    while wait and not mine:
        time.sleep(_STEP_SECONDS)
        mine = lock.take(observer)
    try:
        yield mine
    finally:
        if mine:
            lock.release()


def _holders(folder: Path, shard: Shard, itself: bool) -> list[Holder]:
    """Whoever has taken a lock that overlaps with ``shard`` and not released it, dead or alive."""
    found = (Lock(place).holder() for place in _in_the_way(folder, shard, itself))
    return [holder for holder in found if holder is not None and not holder.released]


def _in_the_way(folder: Path, shard: Shard, itself: bool) -> list[Path]:
    """Locks on parts of a cell that overlap with ``shard``; a shard is in nobody's way beside its like, or a step."""
    mine = shard_lock(folder, shard).name
    locks = sorted((folder / "locks").glob("*"))
    if shard == WHOLE:
        return [lock for lock in locks if itself or lock.name != mine]
    beside = f"-of-{shard.count}"
    return [
        lock
        for lock in locks
        if (lock.name == mine and itself) or (lock.name != mine and _is_part(lock) and not lock.name.endswith(beside))
    ]


def _is_part(lock: Path) -> bool:
    return lock.name == "whole" or "-of-" in lock.name
