"""The command line: composes the configuration, hands it to its task, owns the exit code."""

import os
import signal
import sys
import traceback
from types import FrameType

FINISHED, SOME_FAILED, USER_ERROR, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


def main() -> int:
    """Run ``sys.argv`` and return the exit code: 0, 1 some cells failed, 2 user error, 130 interrupted, 143 terminated."""
    # Hydra would print errors in its own words and leave with 1; with this it lets them through to us.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # W&B reports its own crashes to its maker unless told not to; nothing leaves this machine unasked.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    signal.signal(signal.SIGTERM, _terminate)
    import hydra
    from omegaconf import DictConfig, OmegaConf

    from twinsight.config import conf_folder, explain_error, register_schema  # after the environment is set

    register_schema()
    codes: list[int] = []
    debug = False

    @hydra.main(config_path=str(conf_folder()), config_name="config", version_base="1.3")
    def compose_and_run(config: DictConfig) -> None:
        nonlocal debug
        debug = bool(OmegaConf.select(config, "debug.enabled"))
        codes.append(hydra.utils.get_method(config.task._target_)(config))

    try:
        compose_and_run()
    except KeyboardInterrupt:
        return INTERRUPTED
    except _Terminated:
        return TERMINATED
    except SystemExit as stop:
        # Lightning answers Ctrl-C with an orderly exit of its own, code 1.
        if isinstance(stop.__context__, KeyboardInterrupt):
            return INTERRUPTED
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        message = explain_error(error)
        if debug or message is None:
            traceback.print_exc()
        if message is None:
            return SOME_FAILED
        print(f"error: {message}", file=sys.stderr)
        return USER_ERROR
    return max(codes, default=FINISHED)


class _Terminated(BaseException):
    """SIGTERM: unwinds like Ctrl-C, so that what is half done is closed in order."""


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


if __name__ == "__main__":
    sys.exit(main())
