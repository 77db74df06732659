"""From a thread that computes to an event loop that listens, and back when nobody listens any more."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinsight.app.settings import Settings
from twinsight.app.work import Cancelled, Explained, LeftOut, Workshop
from twinsight.complaints import explain_error
from twinsight.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Share of the work that is done, in [0, 1], and what is being done."""

    done: float
    doing: str


Step = Progress | Explained | LeftOut


async def steps(
    workshop: Workshop,
    settings: Settings,
    photos: Sequence[Path],
    scored: bool,
    stop: threading.Event | None = None,
    every: float = 0.25,
) -> AsyncIterator[Step]:
    """What :meth:`Workshop.explain` finds, with its progress between.

    When ``stop`` is set, the iterator closed or its task cancelled, as when a user leaves, the thread stops before its
    next pass.

    Args:
        stop: set by whoever wants no more; None where closing the iterator is all.
        every: seconds between two words of progress.

    Raises:
        Cancelled: ``stop`` was set.
        UserError: files, names or options that do not fit; or something went wrong that the log has more of.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Queue[Step | Exception | None] = asyncio.Queue()
    stop = stop or threading.Event()
    last = [0.0]

    def put(step: Step | Exception | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(found.put_nowait, step)

    def tell(done: float, doing: str) -> None:
        if loop.time() - last[0] >= every:
            last[0] = loop.time()
            put(Progress(done, doing))

    def work() -> None:
        try:
            for one in workshop.explain(settings, photos, scored, stop, tell):
                put(one)
            put(None)
        except Cancelled as cancelled:
            log.info("cancelled")
            put(cancelled)
        except Exception as error:
            put(error)

    threading.Thread(target=work, name="explaining", daemon=True).start()
    try:
        while (step := await found.get()) is not None:
            if isinstance(step, Exception):
                raise step if isinstance(step, Cancelled) else _said(step)
            yield step
    finally:
        stop.set()


def _said(error: Exception) -> UserError:
    message = explain_error(error)
    if message is None:
        log.error("explaining failed", exc_info=error)
        message = f"{type(error).__name__} while explaining: the server's log has more"
    return UserError(message)
