"""What submitit starts on a cluster: light, so that signals are heard before anything large has been imported."""

import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from twinsight.exits import exit_code, terminable


class Requeued:
    """A function of a module that is imported when it is called, and called again when its job comes back.

    Args:
        work: full name of a function that returns an exit code.
        give_up: full name of one that is told the reason, before the arguments, should the job not be started again.
        arguments: of both; plain containers, since their classes would be imported with them.
    """

    def __init__(self, work: str, give_up: str | None, *arguments: Any) -> None:
        self.work = work
        self.give_up = give_up
        self.arguments = arguments

    def __call__(self) -> None:
        until_time_is_up(lambda: _located(self.work)(*self.arguments), self._give_up)

    def checkpoint(self) -> Any:
        """What submitit starts when the job comes back: the same, since records say where to go on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _give_up(self, reason: str) -> None:
        if self.give_up is not None:
            _located(self.give_up)(reason, *self.arguments)


def until_time_is_up(work: Callable[[], int], give_up: Callable[[str], Any]) -> None:
    """Work; where Slurm says that time is up, put down what was done, and only then let submitit requeue the job.

    Requeuing sends SIGTERM at once, which would come in the midst of writing.

    Raises:
        SystemExit: with the exit code of ``work``, where that is not 0.
    """
    with terminable(_time_is_up()) as stopped:
        code = exit_code(work)
    if not stopped.received:
        if code:
            sys.exit(code)
        return
    try:
        signal.raise_signal(_time_is_up())  # to submitit, whose turn it is again; it ends the leader's process
    except Exception as error:
        give_up(
            f"its job ran out of time and was not started again ({error}): run the study again, or give it more time"
        )
        raise


def _time_is_up() -> signal.Signals:
    from submitit import JobEnvironment

    return signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]


def _located(name: str) -> Callable[..., Any]:
    module, _, function = name.rpartition(".")
    return getattr(import_module(module), function)
