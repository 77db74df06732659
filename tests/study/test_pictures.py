"""Pictures of a cell: one per explained pair, made from the records."""

import numpy as np
import pytest
from PIL import Image

import twinsight.study.pictures as drawing
from toy_cells import only_cell, rows
from twinsight.study import explain


def pictures(folder):
    return sorted((folder / "pictures").glob("*.png"))


def pixels(path):
    """The picture as it is on disk, decoded in full."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("explainer", ["gradcam", "conditional_occlusion"])
def test_every_explained_pair_has_a_picture_up_to_the_limit(explained, explainer):
    folder = explained(f"explainer={explainer}", "pictures.limit=2", "data.limit=3")
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["00000-ant.png", "00001-bee.png"]
    for path in pictures(folder):
        height, width, _ = pixels(path).shape
        # Two rows of views at 384 pixels or more, with a heading and scores: legible, and no poster.
        assert 700 < width < 2000
        assert 800 < height < 2000
        assert pixels(path).std() > 10


def test_pictures_of_different_pairs_differ(explained):
    first, second = (pixels(path) for path in pictures(explained("explainer=gradcam", "pictures.limit=2")))
    assert first.shape == second.shape
    assert (first != second).any(axis=-1).mean() > 0.2


def test_no_pictures_are_drawn_where_none_are_wanted(explained):
    assert not (explained("explainer=gradcam", "pictures.limit=0", "data.limit=2") / "pictures").exists()


@pytest.fixture
def drawn(monkeypatch):
    """Names of the pictures that are drawn."""
    names = []
    genuine = drawing.draw_pair

    def recording(*args, path, **kwargs):
        names.append(path.name)
        return genuine(*args, path=path, **kwargs)

    monkeypatch.setattr(drawing, "draw_pair", recording)
    return names


def test_only_missing_pictures_of_a_finished_cell_are_drawn(tiny, drawn):
    config = tiny("explainer=gradcam", "pictures.limit=2")
    assert explain(config) == 0
    first, second = pictures(only_cell(config))
    assert drawn == [first.name, second.name]
    kept = first.stat().st_mtime_ns
    expected = pixels(second)
    second.unlink()
    config.pictures.limit = 3
    assert explain(config) == 0
    assert drawn[2:] == ["00001-bee.png", "00002-cat.png"]
    assert first.stat().st_mtime_ns == kept
    np.testing.assert_array_equal(pixels(second), expected)


def test_skipped_pairs_have_no_picture_and_do_not_count(tiny, photos, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in photos.iterdir():
        (folder / path.name).write_bytes(b"no picture" if path.stem == "ant" else path.read_bytes())
    config = tiny("explainer=gradcam", f"data.root={folder}", "pictures.limit=2")
    assert explain(config) == 0
    assert [path.name for path in pictures(only_cell(config))] == ["00001-bee.png", "00002-cat.png"]


def test_photos_of_one_name_in_several_folders_have_pictures_of_their_own(tiny, photos, tmp_path):
    folder = tmp_path / "classes"
    for kind, name in (("a", "ant"), ("b", "bee")):
        (folder / kind).mkdir(parents=True)
        (folder / kind / "same name (1).png").write_bytes((photos / f"{name}.png").read_bytes())
    config = tiny("explainer=gradcam", f"data.root={folder}", "pictures.limit=2")
    assert explain(config) == 0
    found = pictures(only_cell(config))
    assert [path.name for path in found] == ["00000-same_name__1_.png", "00001-same_name__1_.png"]
    assert not np.array_equal(*map(pixels, found))


@pytest.mark.parametrize("explainer", ["OneMap", "Constant", "NotFinite"])
def test_maps_that_are_missing_or_rank_nothing_are_drawn_too(tiny, explainer):
    config = tiny("pictures.limit=1", "data.limit=1", explainer={"_target_": f"toy_cells.{explainer}"})
    assert explain(config) == 0
    (path,) = pictures(only_cell(config))
    assert pixels(path).std() > 10


def test_a_picture_shows_the_pair_of_its_record(tiny, drawn, monkeypatch):
    shown = []
    genuine = drawing.draw_pair

    def recording(view1, view2, map1, map2, similarity, scores, subtitle, **kwargs):
        shown.append((similarity, scores, subtitle, view1.shape, view2.shape, np.asarray(map1).shape))
        return genuine(view1, view2, map1, map2, similarity, scores=scores, subtitle=subtitle, **kwargs)

    monkeypatch.setattr(drawing, "draw_pair", recording)
    config = tiny("explainer=conditional_occlusion", "pictures.limit=3", "pictures.side=64")
    assert explain(config) == 0
    records = rows(only_cell(config))[:3]
    for row, (similarity, scores, subtitle, *shapes, map_shape) in zip(records, shown, strict=True):
        assert similarity == row["score"]
        assert scores["SI"] == row["si"]
        assert subtitle.startswith(row["pair_id"])
        # At the photo's own resolution, but no smaller than the model saw it and no larger than asked for.
        sides = [min(64, max(32, *row[f"view{view}_box"][2:])) for view in (1, 2)]
        assert shapes == [(side, side, 3) for side in sides]
        assert map_shape == (32, 32)
