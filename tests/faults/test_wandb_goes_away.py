"""W&B lets a run begin and then knows nobody any more, or is not there any more."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from toy_cells import assert_same_results, only_cell
from toy_wandb import KEY, WANDB, exit_code, runs, stranger
from twinsight.study import Evaluation, explain
from twinsight.tracking import waiting_runs

pytestmark = pytest.mark.faults
__all__ = ["stranger"]


@contextmanager
def forgetful_server():
    """Answers that it knows nobody of this key."""

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            body = json.dumps({"errors": [{"message": "user is not logged in"}]}).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST

        def log_message(self, *given):
            pass

    asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.mark.slow
def test_who_is_logged_out_half_way_keeps_the_run_on_disk_and_loses_no_record(tiny, explained, caplog, monkeypatch):
    undisturbed = explained("explainer=gradcam", "data.limit=2")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    config = tiny("explainer=gradcam", *WANDB, "logger.wandb.mode=online", "logger.wandb.upload_seconds=4")
    genuine = Evaluation.predict_step

    def log_out(self, batch, index):
        if index == 1:
            monkeypatch.delenv("WANDB_API_KEY")
        return genuine(self, batch, index)

    monkeypatch.setattr(Evaluation, "predict_step", log_out)
    with forgetful_server() as (url, _), caplog.at_level("INFO"):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert explain(config) == 0
    folder = only_cell(config)
    (kept,) = waiting_runs(folder.parents[1] / "wandb")
    assert exit_code(kept) == 0
    assert f"wandb sync {kept.parent}" in caplog.text
    assert json.loads((folder / "logged.json").read_text()) == {"wandb/": "done"}
    assert_same_results(folder, undisturbed)
    assert KEY not in caplog.text


def test_a_key_that_is_no_longer_known_keeps_the_run_on_disk(tiny, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    config = tiny("explainer=gradcam", *WANDB, "logger.wandb.mode=online", "logger.wandb.upload_seconds=120")
    with forgetful_server() as (url, asked), caplog.at_level("INFO"):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert explain(config) == 0
        assert asked  # it was really tried
    ((_, folder),) = runs(only_cell(config).parents[1]).items()
    (kept,) = waiting_runs(only_cell(config).parents[1] / "wandb")
    assert kept == folder
    assert f"wandb sync {kept.parent}" in caplog.text
    assert KEY not in caplog.text
    assert KEY not in (folder.parent / "upload.log").read_text()
