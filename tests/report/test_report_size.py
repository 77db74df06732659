"""What a large report weighs, and what of it is unpacked when it is opened."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toy_study import explainer, write_study
from twinsight.report.command import main

CELLS, PAIRS = 20, 200


def write_photos(folder: Path) -> list[str]:
    """Crops of the demo photos, as detailed as photos are."""
    folder.mkdir()
    photos = sorted(Path(str(resources.files("twinsight") / "data" / "photos")).glob("*.jpg"))
    draw = np.random.default_rng(0)
    names = []
    for number in range(PAIRS):
        with Image.open(photos[number % len(photos)]) as photo:
            left, top = (int(draw.integers(0, length - 220)) for length in photo.size)
            photo.crop((left, top, left + 220, top + 220)).save(folder / f"{number:03d}.jpg", quality=92)
        names.append(f"{number:03d}.jpg")
    return names


@pytest.mark.slow
def test_twenty_cells_of_two_hundred_pairs_stay_under_25_megabytes(tmp_path):
    names = write_photos(tmp_path / "photos")
    explainers = [explainer(f"method_{n}", f"Method {n}", side=64, noise=True) for n in range(CELLS)]
    data = {"_target_": "twinsight.data.ImageFolder", "root": str(tmp_path / "photos")}
    write_study(tmp_path, explainers=explainers, pair_ids=names, indices=range(PAIRS), data=data, points=57)
    assert main(["toy", "--root", str(tmp_path), "--no-figures", "--no-full-maps"]) == 0
    assert (tmp_path / "toy" / "report.html").stat().st_size < 25e6
