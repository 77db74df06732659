"""For all tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from toy_app import Served
from toy_runs import explained, photos, plain, slow, tiny

__all__ = ["explained", "photos", "plain", "slow", "tiny"]

collect_ignore_glob = ["*/conftest.py"]
"""Found as conftest.py all the same. As modules with doctests, all of one name, they get into each other's way."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """On networks as small as these, threads cost more than they bring, and far more where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; in a module's life alone, since Playwright's loop is in the way of tests that have one of their own."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "no Chromium on the path: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The app as it is served, on a port of its own."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("uploads"))}
    from twinsight.app.page import build, launch
    from twinsight.app.work import Workshop, default_models

    workshop = Workshop(default_models())
    page = build(workshop)
    _, address, _ = launch(page)
    yield Served(address, workshop)
    page.close(verbose=False)


@pytest.fixture
def moose(tmp_path: Path) -> Path:
    """A demo photo, as a file of the user's."""
    from twinsight.app.photos import demo_photos

    return Path(shutil.copy(demo_photos()["bull_moose.jpg"], tmp_path))


@pytest.fixture
def photo(moose: Path, tmp_path: Path) -> Path:
    """One that does not ship with the package."""
    from PIL import Image

    path = tmp_path / "my moose.png"
    with Image.open(moose) as opened:
        opened.resize((120, 90)).save(path)
    return path
