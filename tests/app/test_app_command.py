"""``twinsight app`` as users start and end it."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from twinsight.app.command import main
from twinsight.errors import UserError


@contextmanager
def started(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the address that it says."""
    process = subprocess.Popen(
        [sys.executable, "-m", "twinsight", "app", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        said = re.fullmatch(r"twinsight app: (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", line)
        assert said, line + process.stderr.read()
        yield process, said[1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
        pytest.param(signal.SIGINT, 130, id="Ctrl-C", marks=pytest.mark.slow),  # the same way out
    ],
)
def test_it_serves_the_page_until_it_is_told_to_stop(number, code):
    with started("--port", "0") as (process, address):
        assert "twinsight" in httpx.get(address, timeout=60).text
        assert "/explain" in httpx.get(f"{address}gradio_api/info", timeout=60).json()["named_endpoints"]
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == code
        assert "Traceback" not in errors
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "TAKEN"], r"cannot listen at 127\.0\.0\.1:\d+: address already in use: choose another with --port"),
        (["--host", "192.0.2.1"], r"cannot listen at 192\.0\.2\.1:7860: .*: choose another with --host"),
        (["--port", "65536"], r"`--port` must be a number from 0 to 65535, got 65536"),
    ],
    ids=lambda each: each[0].lstrip("-") if isinstance(each, list) else "",
)
def test_where_it_cannot_listen_it_says_which_option_to_change(words, message, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        with pytest.raises(UserError) as refused:
            main([taken if word == "TAKEN" else word for word in words])
    assert re.fullmatch(message, str(refused.value))
