"""What the tests of models share."""

import pytest


@pytest.fixture
def path(tmp_path):
    """Where a checkpoint goes; pytest keeps the folders of past runs, and these files are large."""
    yield tmp_path / "checkpoint.pth"
    for file in tmp_path.iterdir():
        file.unlink()
