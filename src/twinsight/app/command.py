"""``twinsight app``: the web demo."""

import argparse
import os
from collections.abc import Sequence
from tempfile import TemporaryDirectory

from twinsight.errors import UserError
from twinsight.exits import silence_telemetry


def main(words: Sequence[str]) -> int:
    """Run ``twinsight app WORDS`` until it is interrupted; the exit code.

    Raises:
        UserError: Gradio is not installed, a model cannot be built, or the port is taken or none.
    """
    parser = argparse.ArgumentParser(
        prog="twinsight app", description="Explain photos in a browser. Nothing leaves this machine."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one (default: 7860)")
    parser.add_argument("--device", default="cpu", help="of the networks: cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="'NAME KEY=VALUE ...'",
        help="a further model to offer, with its words: --model 'pretrained model.checkpoint=FILE'; repeatable",
    )
    asked = parser.parse_args(words)
    if not 0 <= asked.port <= 65535:
        raise UserError(f"`--port` must be a number from 0 to 65535, got {asked.port}")
    with TemporaryDirectory(prefix="twinsight-app-") as uploads:
        silence_telemetry()
        os.environ["GRADIO_TEMP_DIR"] = uploads  # read when Gradio is imported: it keeps files where we remove them
        try:
            import gradio  # noqa: F401
        except ImportError:
            raise UserError("the web demo needs the package `gradio`: pip install 'twinsight[app]'") from None
        from twinsight.app.page import serve
        from twinsight.app.work import Workshop, default_models

        return serve(Workshop(default_models(asked.model), asked.device), asked.host, asked.port)
