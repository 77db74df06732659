"""Nothing leaves this machine unasked: programs really run, and every connection and look-up of a name is noted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from twinsight.exits import silence_telemetry

ROOT = Path(__file__).resolve().parents[1]

WATCH = """
import os, socket, sys

def _note(event, arguments):
    if event == "socket.connect" or event == "socket.sendto":
        address = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[:2]
    else:
        return
    if not isinstance(address, tuple):
        return  # a Unix socket
    host = address[0].decode() if isinstance(address[0], bytes) else address[0]
    if host in (None, "", "localhost", "0.0.0.0", "::", "::1", socket.gethostname()) or host.startswith("127."):
        return
    with open(os.environ["WATCHED_SOCKETS"], "a") as notes:
        notes.write(f"{event} {address}\\n")

open(os.environ["WATCHED_SOCKETS"], "a").write("watching\\n")
sys.addaudithook(_note)
"""


def watched(tmp_path: Path, *command: str) -> tuple[int, str, list[str]]:
    """Exit code, output and what left the machine, of Python with ``command`` and of every Python it starts."""
    (tmp_path / "watch").mkdir(exist_ok=True)
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    notes = tmp_path / "sockets"
    path = os.pathsep.join([str(tmp_path / "watch"), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    kept = {name: value for name, value in os.environ.items() if not name.endswith(("TELEMETRY", "REPORTING"))}
    kept.pop("GRADIO_ANALYTICS_ENABLED", None)
    environment = {**kept, "PYTHONPATH": path, "WATCHED_SOCKETS": str(notes)}
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    lines = notes.read_text().splitlines()
    assert "watching" in lines
    return done.returncode, done.stdout + done.stderr, [line for line in lines if line != "watching"]


@pytest.mark.parametrize("code", ["s.connect(('192.0.2.1', 9))", "socket.getaddrinfo('twinsight.invalid', 80)"])
def test_what_connects_is_noted(tmp_path, code):
    program = f"import socket; s = socket.socket(); s.settimeout(0.1); {code}"
    _, _, left = watched(tmp_path, "-c", program)
    assert left


def test_a_run_and_its_report_stay_on_this_machine(tmp_path):
    shorter = ("data.limit=2", "metrics.insertion_deletion.points=8", f"paths.output_root={tmp_path / 'out'}")
    code, said, left = watched(tmp_path, str(ROOT / "run.py"), *shorter)
    assert (code, left) == (0, []), said
    (cell,) = (tmp_path / "out" / "cells").iterdir()
    code, said, left = watched(tmp_path, "-m", "twinsight", "report", str(cell), "--output", str(tmp_path / "a.html"))
    assert (code, left) == (0, []), said


def test_info_stays_on_this_machine(tmp_path):
    code, said, left = watched(tmp_path, "-m", "twinsight", "info", "explainers")
    assert (code, left) == (0, []), said


APP_STARTS = """
import sys, twinsight.__main__
twinsight.__main__.prepare_environment()  # as its main does, before Gradio is imported
import gradio
launch = gradio.Blocks.launch
def launch_and_leave(self, *arguments, **options):
    import time
    launch(self, *arguments, **{**options, "prevent_thread_lock": True})
    print(self.local_url, flush=True)
    time.sleep(3)  # what is sent in the background
    raise KeyboardInterrupt
gradio.Blocks.launch = launch_and_leave
sys.exit(twinsight.__main__.main())
"""


def test_the_app_starts_on_this_machine_alone(tmp_path):
    _, said, left = watched(tmp_path, "-c", APP_STARTS, "app", "--port", "0")
    assert "http://127.0.0.1:" in said
    assert not left, said


def test_telemetry_is_off_unless_the_environment_asks(monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    silence_telemetry()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
