"""The app as it is served, on a port of its own."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from twinsight.app.photos import demo_photos
from twinsight.app.work import Workshop, default_models


class Served(NamedTuple):
    address: str
    workshop: Workshop


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("uploads"))}
    from twinsight.app.page import build, launch

    workshop = Workshop(default_models())
    page = build(workshop)
    _, address, _ = launch(page)
    yield Served(address, workshop)
    page.close(verbose=False)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """One that does not ship with the package."""
    path = tmp_path / "my moose.png"
    with Image.open(demo_photos()["bull_moose.jpg"]) as opened:
        opened.resize((120, 90)).save(path)
    return path


@pytest.fixture
def moose(tmp_path: Path) -> Path:
    return Path(shutil.copy(demo_photos()["bull_moose.jpg"], tmp_path))
