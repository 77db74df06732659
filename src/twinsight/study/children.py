"""Jobs in processes of their own, which are ready at once and whose end is always known."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

from twinsight.exits import GRACE_SECONDS, exit_code, prepare_environment

Work = Callable[[Any], int]


def warm_up() -> None:
    """Start the process that children are forked from; it imports everything while this one goes on.

    It never computes anything: forking after PyTorch's threads have started would hang.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["twinsight.study.job"])
    from multiprocessing.forkserver import ensure_running

    ensure_running()


def run_in_child(work: Work, order: Any, prepare: Callable[[], Any] | None = None) -> int:
    """``work(order)``, after ``prepare()``, in a child process; its exit code, negative where a signal killed it.

    Ctrl-C and SIGTERM are handed on, and waited for; a child whose parent dies ends itself like one that got SIGTERM.
    """
    context = multiprocessing.get_context("forkserver")
    child = context.Process(target=_child, args=(work, order, prepare), name="twinsight-job")
    child.start()
    try:
        child.join()
    except BaseException as error:
        asked = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
        _stop(child, asked)
        raise
    assert child.exitcode is not None
    return child.exitcode  # 130 or 143 where somebody told the child alone to stop: that ends its job, not the study


def _stop(child: Any, asked: signal.Signals) -> None:
    with suppress(ProcessLookupError, TypeError):
        os.kill(child.pid, asked)
    child.join(GRACE_SECONDS)
    if child.is_alive():
        child.kill()
        child.join()


def _child(work: Work, order: Any, prepare: Callable[[], Any] | None) -> None:
    # Out of the terminal's group: Ctrl-C reaches the parent, which hands it on once.
    os.setsid()
    prepare_environment()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if prepare is not None:
        prepare()
    threading.Thread(target=_die_with_the_parent, name="parent watch", daemon=True).start()
    code = exit_code(lambda: work(order))
    sys.exit(code)


def _die_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
