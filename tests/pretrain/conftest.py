"""Coloured shapes in class folders, and a process that is left as it was found."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

SHAPES = {"blue_disc": (40, 60, 220), "green_square": (30, 180, 60), "red_disc": (220, 40, 30)}


@pytest.fixture(autouse=True)
def _surroundings_restored() -> Iterator[None]:
    """A run sets variables, signal handlers and switches of the whole process; the next test should not see them."""
    environment, interrupt, threads = dict(os.environ), signal.getsignal(signal.SIGINT), torch.get_num_threads()
    torch.set_num_threads(1)  # on such small tensors threads cost more than they bring
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    signal.signal(signal.SIGINT, interrupt)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` with 48 photos of 32 pixels and ``test`` with 15, in three class folders; read only."""
    root, draw = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 5)):
        for name, colour in SHAPES.items():
            for number in range(count):
                write_shape(root / split / name / f"{number:02d}.png", name, colour, draw)
    return root


def write_shape(path: Path, name: str, colour: tuple[int, int, int], draw: np.random.Generator) -> None:
    photo = Image.fromarray(draw.integers(90, 160, (32, 32, 3), dtype=np.uint8))
    left, top, side = draw.integers(1, 12), draw.integers(1, 12), draw.integers(10, 19)
    # So far from its own colour that classes overlap: an accuracy of 1 would prove little.
    red, green, blue = (
        int(0.5 * own + 0.5 * drawn) for own, drawn in zip(colour, draw.integers(256, size=3), strict=True)
    )
    paint = ImageDraw.Draw(photo)
    form = paint.ellipse if "disc" in name else paint.rectangle
    form((left, top, left + side, top + side), fill=(red, green, blue))
    path.parent.mkdir(parents=True, exist_ok=True)
    photo.save(path)
