"""The app's endpoint, by its own client and by plain requests: ``make test-browser``."""

import threading
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from twinsight.app.photos import demo_photos
from twinsight.app.settings import Settings

pytestmark = pytest.mark.browser

SLOW = {"explainers": ["conditional_occlusion"], "options": {"conditional_occlusion": {"stride": 1}}}


@pytest.fixture
def client(served) -> Any:
    from gradio_client import Client

    return Client(served.address, verbose=False)


def asked(client: Any, photo: Path, **given: Any) -> Any:
    from gradio_client import handle_file

    return client.submit(photo=handle_file(photo), photo2=None, api_name="/explain", **given)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "never true"
        time.sleep(0.05)


def stands_still(workshop: Any) -> bool:
    before = workshop.passes
    time.sleep(1.0)
    return workshop.passes == before


def test_twenty_requests_at_once_get_each_their_own(served, client):
    kinds = [
        ("gradcam", "demo_simclr", 0),
        ("lafam", "demo_barlow_twins", 1),
        ("interaction_cam", "demo_supervised", 2),
    ]
    wanted = list(islice(zip(cycle(demo_photos().values()), cycle(kinds)), 20))
    jobs = [asked(client, photo, explainers=[name], model=model, seed=seed) for photo, (name, model, seed) in wanted]
    scores = set()
    for (photo, (name, model, seed)), job in zip(wanted, jobs, strict=True):
        answer = job.result(timeout=120)["explanations"]
        settings = Settings(model, (name,), seed=seed)
        (own,) = served.workshop.explain(settings, [photo], False, threading.Event(), lambda done, doing: None)
        assert list(answer) == [name]
        assert answer[name]["columns"]["score"] == pytest.approx(own.columns["score"], abs=1e-6)
        np.testing.assert_allclose(answer[name]["map1"], own.maps[0], atol=1e-6)
        np.testing.assert_allclose(answer[name]["map2"], own.maps[1], atol=1e-6)
        scores.add(own.columns["score"])
    assert len(scores) > 10  # so that a mix-up would be seen


def test_scores_curves_and_the_command_come_along(client, photo):
    answer = asked(client, photo, explainers=["gradcam"], scored=True, points=4).result(timeout=120)
    found = answer["explanations"]["gradcam"]
    assert {"si", "sd", "ci", "cd", "sad", "sic", "cad", "cic", "ms"} <= set(found["columns"])
    assert len(found["curves"]["si"]) == 5
    assert "explainer=gradcam" in answer["command"]
    assert str(photo.parent) not in answer["command"]


def test_a_cancelled_job_stops_computing(served, client, photo):
    job = asked(client, photo, scored=True, **SLOW)
    before = served.workshop.passes
    until(lambda: served.workshop.passes > before)
    assert not stands_still(served.workshop)
    job.cancel()
    until(lambda: stands_still(served.workshop), 10)
    assert asked(client, photo, explainers=["gradcam"]).result(timeout=60)["explanations"]  # others get their turn


def test_the_work_of_a_user_who_leaves_stops(served, photo):
    """Session and stream of a browser that is closed."""
    call = {"data": [uploaded(served.address, photo), None, "demo_simclr", *SLOW.values(), True, "simclr", 0, 224]}
    call["data"].append("sound")
    index = endpoint(served.address)
    queue = f"{served.address}gradio_api/queue"
    before = served.workshop.passes
    with httpx.Client(timeout=60) as http:
        http.post(f"{queue}/join", json={**call, "fn_index": index, "session_hash": "leaves"}).raise_for_status()
        with http.stream("GET", f"{queue}/data?session_hash=leaves", timeout=60) as stream:
            for _ in stream.iter_lines():
                if served.workshop.passes > before:
                    break
    until(lambda: stands_still(served.workshop), 20)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"explainers": []}, "choose at least one explainer"),
        (
            {"explainers": ["gradcam"], "options": {"gradcam": {"layer": "${oc.env:HOME}"}}},
            "a number, a word or a list",
        ),
        ({"explainers": ["gradcam"], "options": {"smoothgrad": {}}}, "which `explainers` has not"),
        ({"explainers": ["gradcam"], "options": {"gradcam": {"layer": "nowhere"}}}, "nowhere"),
        ({"explainers": ["gradcam"], "options": ["layer"]}, r"`options` must be {explainer: {option: value}}"),
        ({"explainers": ["gradcam"], "seed": -1}, "`seed` must be"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_message(client, photo, given, message):
    with pytest.raises(Exception, match=message):
        asked(client, photo, **given).result(timeout=60)


def test_no_file_of_the_server_and_no_address_can_be_named(served, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(demo_photos()["bull_moose.jpg"].read_bytes())
    assert "explanations" in called(served.address, uploaded(served.address, secret))
    for path in (str(secret), "http://127.0.0.1:9/photo.png", "/etc/passwd", "../../secret.png"):
        answer = called(served.address, {"path": path, "meta": {"_type": "gradio.FileData"}})
        assert "event: error" in answer, path
        assert "explanations" not in answer
    for path in (secret, Path("/etc/passwd"), Path("pyproject.toml").resolve()):
        assert httpx.get(f"{served.address}gradio_api/file={path}", timeout=60).status_code in (403, 404)


def test_uploads_beyond_the_limit_are_refused(served):
    files = {"files": ("large.png", bytes(20_000_001))}
    assert httpx.post(f"{served.address}gradio_api/upload", files=files, timeout=60).status_code == 413


def called(address: str, photo: dict[str, Any]) -> str:
    data = [photo, None, "demo_simclr", ["gradcam"], {}, False, "simclr", 0, 224, "sound"]
    event = httpx.post(f"{address}gradio_api/call/explain", json={"data": data}, timeout=60).json()["event_id"]
    return httpx.get(f"{address}gradio_api/call/explain/{event}", timeout=60).text


def uploaded(address: str, photo: Path) -> dict[str, Any]:
    files = {"files": (photo.name, photo.read_bytes())}
    (path,) = httpx.post(f"{address}gradio_api/upload", files=files, timeout=60).json()
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def endpoint(address: str) -> int:
    dependencies = httpx.get(f"{address}config", timeout=60).json()["dependencies"]
    return next(each["id"] for each in dependencies if each["api_name"] == "explain")
