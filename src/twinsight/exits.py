"""Exit codes, and an end in good order whatever ends the program."""

import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

FINISHED, SOME_FAILED, USER_ERROR, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
GRACE_SECONDS = 9.0
"""For whoever was told to stop: until then nobody kills it, and the same signal again breaks nothing."""
_TELEMETRY_OFF = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_ERROR_REPORTING": "false",
}


class Terminated(BaseException):
    """SIGTERM, or a signal that means as much: unwinds like Ctrl-C, so that what is half done is closed in order."""


class Heard:
    """Whether a signal has come, which outlives what it raised.

    Python drops exceptions in destructors, compiled code turns them into others, and Lightning answers with its own.

    Args:
        what: it raises.
        grace: seconds in which the same signal again breaks nothing that the first has begun to close.
    """

    def __init__(self, what: type[BaseException], grace: Callable[[], float]) -> None:
        self.received = False
        self._what = what
        self._grace = grace
        self._since = -math.inf

    def raise_(self, signum: int, frame: FrameType | None) -> None:
        self.received = True
        if time.monotonic() - self._since > self._grace():
            self._since = time.monotonic()
            raise self._what


_listening: list[Heard] = []


@contextmanager
def _listen(heard: Heard, number: signal.Signals) -> Iterator[Heard]:
    before = signal.signal(number, heard.raise_)
    _listening.append(heard)
    try:
        yield heard
    finally:
        _listening.remove(heard)
        signal.signal(number, before or signal.SIG_DFL)


def terminable(number: signal.Signals = signal.SIGTERM) -> AbstractContextManager[Heard]:
    """Inside the block a signal raises :class:`Terminated`; that it came can be seen afterwards as ``received``."""
    return _listen(Heard(Terminated, lambda: GRACE_SECONDS), number)


def _interruptible() -> AbstractContextManager[Heard]:
    """As :func:`terminable`, for Ctrl-C, unless whoever started this process has it ignore that."""
    heard = Heard(KeyboardInterrupt, lambda: 0.0)
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return nullcontext(heard)
    return _listen(heard, signal.SIGINT)


def told_to_stop() -> bool:
    """Whether a signal has come that ends the program: what is raised after that, of whatever class, is its doing."""
    return any(heard.received for heard in _listening)


def exit_code(work: Callable[[], int]) -> int:
    """What ``work`` returns; 143 where SIGTERM ended it, 130 for Ctrl-C, the code of a ``SystemExit``.

    Other exceptions pass, unless such a signal has come before them.
    """
    with terminable() as terminated, _interruptible() as interrupted:
        try:
            code = work()
        except Terminated:
            code = TERMINATED
        except KeyboardInterrupt:
            code = INTERRUPTED
        except SystemExit as stop:
            code = _code_of(stop)
        except Exception:
            if not told_to_stop():  # by a signal that somebody around this listens to, maybe
                raise
            code = TERMINATED
    if terminated.received:
        return TERMINATED
    return INTERRUPTED if interrupted.received and code else code


def report(error: BaseException, debug: bool = False, said: set[str] | None = None) -> int:
    """Say what went wrong, once, and return the exit code for it.

    Args:
        debug: a traceback beside the message.
        said: messages that have been said, and need not be again.
    """
    from twinsight.complaints import explain_error  # after the environment is set

    message = explain_error(error)
    if debug or message is None:
        traceback.print_exception(error)
    if message is None:
        return SOME_FAILED
    if said is None or message not in said:
        print(f"error: {message}", file=sys.stderr)
    if said is not None:
        said.add(message)
    return USER_ERROR


def prepare_environment() -> None:
    """Before anything is imported that reads it; what the user has set stays."""
    # Hydra would print errors in its own words and leave with 1; with this it lets them through to us.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # cuBLAS answers the same each time only with work spaces of fixed size, set before the first product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    silence_telemetry()


def silence_telemetry() -> None:
    """Libraries that report their use or crashes to their makers do not, unless the environment asks for it."""
    for variable, value in _TELEMETRY_OFF.items():
        os.environ.setdefault(variable, value)


def _code_of(stop: SystemExit) -> int:
    link: BaseException | None = stop
    while stop.code == 1 and link is not None:
        if isinstance(link, KeyboardInterrupt):  # Lightning answers Ctrl-C with an orderly exit of its own, code 1
            return INTERRUPTED
        link = link.__context__
    if isinstance(stop.code, str):
        print(stop.code, file=sys.stderr)
    return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
