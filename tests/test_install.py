"""The package as a user installs it: no checkout beside it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from twinsight.models import available_models

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, ROOT]
    subprocess.run(command, check=True)
    return next(folder.glob("twinsight-*.whl"))


def test_the_wheel_carries_configuration_photos_and_weights(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configuration = {f"twinsight/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert configuration <= names
    assert {f"twinsight/weights/{name}.safetensors" for name in available_models()} <= names
    assert "twinsight/data/photos/ATTRIBUTION.md" in names
    assert "twinsight/py.typed" in names
    page = ROOT / "src" / "twinsight" / "report" / "html" / "assets"
    shipped = {f"twinsight/report/html/assets/{path.relative_to(page)}" for path in page.rglob("*") if path.is_file()}
    assert len(shipped) > 10
    assert shipped <= names


def test_an_installed_copy_runs_from_any_folder(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    command = [sys.executable, "-m", "twinsight", "data.limit=1", "logger=none", "metrics=none", "trainer=cpu"]
    done = subprocess.run(
        command, cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(elsewhere.glob("outputs/cells/demo_photos-demo_simclr-interaction_cam-*/pictures/*.png"))
