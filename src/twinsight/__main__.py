"""The command line: composes the configuration, hands it to its task, owns the exit code."""

import os
import select
import sys
from collections.abc import Callable, Sequence

from twinsight import __version__
from twinsight.exits import FINISHED, SOME_FAILED, exit_code, prepare_environment, report

_STDOUT = 1  # its file descriptor


def main() -> int:
    """Run ``sys.argv``; 0 finished, 1 some cells failed, 2 user error, 130 interrupted, 143 terminated."""
    prepare_environment()
    return exit_code(_run)


def run_words(words: Sequence[str]) -> int:
    """What the command line with these words does, in this process."""
    sys.argv[1:] = words
    return _run()


def _run() -> int:
    job = _Job()
    try:
        job.run()
        sys.stdout.flush()
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
        if sys.argv[1:2] and sys.argv[1] in SUBCOMMANDS:
            self.codes.append(SUBCOMMANDS[sys.argv[1]](sys.argv[2:]))
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
                if config.get("job") is not None:
                    raise  # through the launcher, which may be on another machine, to whoever gave the job
                self.errors.append(error)  # past Hydra, which would add words of its own

        register_schema()
        compose_and_run()

    def report(self, error: Exception) -> int:
        """Say what went wrong, once, and return the exit code for it."""
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            return SOME_FAILED if self.started else FINISHED
        return report(error, self.debug, self._said)


def _info(words: Sequence[str]) -> int:
    from twinsight.info import show

    return show(words)


def _study(words: Sequence[str]) -> int:
    from twinsight.study.command import main as study

    return study(words)


def _report(words: Sequence[str]) -> int:
    from twinsight.report.command import main as report

    return report(words)


def _app(words: Sequence[str]) -> int:
    from twinsight.app.command import main as app

    return app(words)


SUBCOMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "app": _app,
    "info": _info,
    "report": _report,
    "study": _study,
}
"""First words that are not Hydra's."""


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
