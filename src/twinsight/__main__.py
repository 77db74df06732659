"""The command line: composes the configuration, hands it to its task, owns the exit code."""

import os
import select
import signal
import sys
import traceback
from types import FrameType

from twinsight import __version__

FINISHED, SOME_FAILED, USER_ERROR, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
_STDOUT = 1  # its file descriptor


def main() -> int:
    """Run ``sys.argv``; 0 finished, 1 some cells failed, 2 user error, 130 interrupted, 143 terminated."""
    # Hydra would print errors in its own words and leave with 1; with this it lets them through to us.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # W&B reports its own crashes to its maker unless told not to; nothing leaves this machine unasked.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    terminated = _Terminated()
    before = signal.signal(signal.SIGTERM, terminated.raise_)
    try:
        code = _exit_code()
    except _Terminated:
        code = TERMINATED
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    return TERMINATED if terminated.received else code


def _exit_code() -> int:
    job = _Job()
    try:
        job.run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:
        return _code_of(stop)
    except Exception as error:
        job.errors.append(error)
    return max([*job.codes, *map(job.report, job.errors)], default=FINISHED)


class _Job:
    """What Hydra makes of the command line: one call of the task, or several in a multirun."""

    def __init__(self) -> None:
        # Read here as well, since the composition itself may fail.
        self.debug = any(
            word.lstrip("+").startswith("debug=") and not word.endswith(("=none", "=")) for word in sys.argv[1:]
        )
        self.started = False
        self.codes: list[int] = []
        self.errors: list[Exception] = []
        self._said: set[str] = set()

    def run(self) -> None:
        if "--version" in sys.argv[1:]:
            print(f"twinsight {__version__}")
            return
        if sys.argv[1:2] == ["info"]:
            from twinsight.info import show

            self.codes.append(show(sys.argv[2:]))
            return
        import hydra
        from omegaconf import DictConfig, OmegaConf

        from twinsight.config import conf_folder, register_schema
        from twinsight.signatures import locate

        @hydra.main(config_path=str(conf_folder()), config_name="config", version_base="1.3")
        def compose_and_run(config: DictConfig) -> None:
            self.started = True
            self.debug = self.debug or bool(OmegaConf.select(config, "debug.enabled"))
            try:
                self.codes.append(locate("task._target_", config.task._target_)(config))
            except Exception as error:
                self.errors.append(error)  # past Hydra, which would add words of its own

        register_schema()
        compose_and_run()

    def report(self, error: Exception) -> int:
        """Say what went wrong, once, and return the exit code for it."""
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            return SOME_FAILED if self.started else FINISHED
        from twinsight.complaints import explain_error  # after the environment is set

        message = explain_error(error)
        if self.debug or message is None:
            traceback.print_exception(error)
        if message is None:
            return SOME_FAILED
        if message not in self._said:
            print(f"error: {message}", file=sys.stderr)
        self._said.add(message)
        return USER_ERROR


class _Terminated(BaseException):
    """SIGTERM: unwinds like Ctrl-C, so that what is half done is closed in order."""

    received = False

    def raise_(self, signum: int, frame: FrameType | None) -> None:
        self.received = True  # Python drops exceptions in destructors, Lightning may answer with one of its own
        raise self


def _code_of(stop: SystemExit) -> int:
    link: BaseException | None = stop
    while stop.code == 1 and link is not None:
        if isinstance(link, KeyboardInterrupt):  # Lightning answers Ctrl-C with an orderly exit of its own, code 1
            return INTERRUPTED
        link = link.__context__
    if isinstance(stop.code, str):
        print(stop.code, file=sys.stderr)
    return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe whose reader stopped reading, as in ``--help | head``."""
    poll = select.poll()
    poll.register(_STDOUT, 0)
    if not any(events & select.POLLERR for _, events in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)  # else Python complains when it closes the pipe
    return True


if __name__ == "__main__":
    sys.exit(main())
