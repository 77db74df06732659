"""What the app computes: what a run computes, within limits, until it is told to stop."""

import shlex
import subprocess
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinsight.__main__ import run_words
from twinsight.app.photos import check_photo, demo_photos, names_of
from twinsight.app.settings import Settings, explainer_names, explainer_options
from twinsight.app.work import Cancelled, Explained, LeftOut, Workshop, default_models
from twinsight.errors import UserError
from twinsight.explainers import ConditionalOcclusion, Explainer, GradCAM
from twinsight.study.records import read, unpacked_array

NINE = ("si", "sd", "ci", "cd", "sad", "sic", "cad", "cic", "ms")


@pytest.fixture(scope="module")
def workshop() -> Workshop:
    return Workshop(default_models())


def explained(workshop: Workshop, settings: Settings, *photos: Path, scored: bool = False) -> dict[str, Explained]:
    found = workshop.explain(settings, photos, scored, threading.Event(), lambda done, doing: None)
    return {one.name: one for one in found if isinstance(one, Explained)}


def run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """What the command to copy computes; the folders of its cells by the name of the explainer."""
    monkeypatch.chdir(tmp_path)
    *before, last = [line for line in command.splitlines() if not line.startswith("#")]
    for line in before:
        subprocess.run(["sh", "-c", line], check=True, cwd=tmp_path)
    words = shlex.split(last)
    assert words[:2] == ["python", "run.py"]
    small = ["pictures.limit=0", "trainer=cpu", f"paths.output_root={tmp_path}/outputs"]
    assert run_words([word.replace("FOLDER", ".") for word in words[2:]] + small) == 0
    assert not (tmp_path / "outputs" / "wandb").exists()  # it needs no account and sends nothing
    return {folder.name.split("-")[2]: folder for folder in (tmp_path / "outputs" / "cells").iterdir()}


@pytest.mark.parametrize("number", [1, 2])
def test_the_command_to_copy_gives_the_same_maps_and_scores(number, workshop, photo, moose, tmp_path, monkeypatch):
    photos = [photo, moose][:number]
    options = {"gradcam": {"form": "elementwise"}}
    settings = Settings("demo_barlow_twins", ("gradcam", "lafam"), options, protocol="paper", seed=3, points=4)
    found = explained(workshop, settings, *photos, scored=True)
    if number == 1:
        moose.unlink()  # FOLDER holds the photo alone
    cells = run(settings.command(photos, True, workshop.models), tmp_path, monkeypatch)
    assert found.keys() == cells.keys() == {"gradcam", "lafam"}
    for name, one in found.items():
        (record,), (arrays,) = list(read(cells[name])), list(read(cells[name], "arrays"))
        assert record["score"] == one.columns["score"]
        assert {column: record[column] for column in NINE if column in record} == {
            column: one.columns[column] for column in NINE if column in one.columns
        }
        stored = unpacked_array(arrays, "map1")
        np.testing.assert_allclose(stored, one.maps[0], atol=1e-3 * np.abs(stored).max())
        assert set(one.curves) == {"si", "sd", "ci1", "ci2", "cd1", "cd2"}


def test_a_demo_photo_is_the_pair_of_that_name_among_the_demo_photos(workshop, tmp_path, monkeypatch):
    photo, settings = demo_photos()["honey_bee.jpg"], Settings(explainers=("gradcam",))
    cells = run(settings.command([photo], False, workshop.models), tmp_path, monkeypatch)
    scores = {row["pair_id"]: row["score"] for row in read(cells["gradcam"])}
    assert scores["honey_bee.jpg"] == explained(workshop, settings, photo)["gradcam"].columns["score"]


def test_a_link_gives_the_settings_back():
    options = {"gradcam": {"form": "elementwise"}, "pairwise_occlusion": {"scale": "[0.2,0.3]"}}
    settings = Settings("demo_supervised", tuple(options), options, "paper", "whole", 7, 12)
    query = settings.query([demo_photos()["honey_bee.jpg"]])
    from urllib.parse import parse_qsl

    assert Settings.from_query(dict(parse_qsl(query)), default_models()) == settings
    assert dict(parse_qsl(query))["photo"] == "honey_bee.jpg"


def test_every_explainer_is_offered_with_its_options():
    assert {"gradcam", "conditional_occlusion", "pixel_invariance"} <= set(explainer_names())
    assert {"window", "stride", "baseline"} <= {option.name for option in explainer_options("conditional_occlusion")}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gradcam": {"layer": "${oc.env:HOME}"}}, "a number, a word or a list"),
        ({"gradcam": {"layer": "{_target_: os.system, command: ls}"}}, "a number, a word or a list"),
        ({"gradcam": {"layer": {"_target_": "os.system"}}}, "a number, a word or a list"),
        ({"gradcam": {"_target_": "os.system"}}, "unknown option"),
        ({"gradcam": {"layer": "a,b"}}, "a number, a word or a list"),
        ({"gradcam": {"layer": "../secret"}}, "a number, a word or a list"),
        ({"smoothgrad": {"samples": 10**9}}, "at most"),
    ],
)
def test_options_are_plain_values_and_nothing_that_a_configuration_would_build_or_look_up(given, message):
    with pytest.raises(UserError, match=message):
        Settings(explainers=tuple(given), options=given)


def test_an_option_of_the_wrong_type_is_named(workshop, moose):
    settings = Settings(explainers=("smoothgrad",), options={"smoothgrad": {"samples": "many"}})
    with pytest.raises(UserError, match=r"explainer.samples.* must be int"):
        explained(workshop, settings, moose)


def test_what_makes_no_sense_for_a_model_is_left_out_with_a_reason(workshop, moose):
    settings = Settings(explainers=("gradcam", "attention_rollout"))
    found = list(workshop.explain(settings, [moose], False, threading.Event(), lambda done, doing: None))
    assert [(one.name, isinstance(one, LeftOut)) for one in found] == [("gradcam", False), ("attention_rollout", True)]


@pytest.mark.parametrize("explainer", ["conditional_occlusion", "smoothgrad", "feature_visualization"])
def test_work_that_nobody_wants_stops_before_the_next_pass(explainer, workshop, moose):
    stop, shares = threading.Event(), []

    def tell(done: float, doing: str) -> None:
        shares.append(done)
        if len(shares) == 5:
            stop.set()

    before = workshop.passes
    with pytest.raises(Cancelled):
        list(workshop.explain(Settings(explainers=(explainer,)), [moose], False, stop, tell))
    assert len(shares) == 5  # none after the word
    assert shares == sorted(shares)
    assert 0 < workshop.passes - before <= 5 * 2 * 16
    explained(workshop, Settings(explainers=("gradcam",)), moose)  # the next one gets its turn


def test_an_explainer_that_does_not_say_what_it_costs_is_explained_all_the_same(workshop, moose, monkeypatch):
    settings = Settings(explainers=("gradcam",))
    expected = explained(workshop, settings, moose)["gradcam"].maps[0]
    monkeypatch.setattr(GradCAM, "cost", Explainer.cost)
    np.testing.assert_array_equal(explained(workshop, settings, moose)["gradcam"].maps[0], expected)


def test_the_bar_is_not_full_while_an_explainer_that_does_not_say_what_it_costs_is_at_work(
    workshop, moose, monkeypatch
):
    monkeypatch.setattr(ConditionalOcclusion, "cost", Explainer.cost)
    shares: dict[str, list[float]] = {}
    few = {"conditional_occlusion": {"stride": 4}, "smoothgrad": {"samples": 8}}
    settings = Settings(explainers=("gradcam", "conditional_occlusion", "smoothgrad"), options=few)
    told = workshop.explain(
        settings, [moose], False, threading.Event(), lambda done, doing: shares.setdefault(doing, []).append(done)
    )
    assert [one.name for one in told] == list(settings.explainers)
    in_order = [share for each in shares.values() for share in each]
    assert in_order == sorted(in_order)
    cheap, silent, last = shares.values()
    assert len(silent) > 3
    assert cheap[0] == 0.0
    assert 0 < silent[0] < silent[-1] < last[0] < 1.0


def png(path: Path, width: int, height: int) -> Path:
    """A file of some bytes that says it is that large."""
    Image.new("1", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def test_files_beyond_the_limits_are_refused_undecoded(tmp_path):
    large = tmp_path / "large.jpg"
    large.write_bytes(bytes(20_000_001))
    text = tmp_path / "text.jpg"
    text.write_text("no photo")
    script = tmp_path / "script.jpg"
    script.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    for path, message in [
        (large, "at most 20 MB"),
        (png(tmp_path / "wide.png", 10_000, 5_001), "10000 x 5001 pixels: give a photo of at most 50 megapixels"),
        (png(tmp_path / "bomb.png", 100_000, 100_000), "at most 50 megapixels"),
        (text, "is no image"),
        (script, "is no image"),
    ]:
        with pytest.raises(UserError, match=message):
            check_photo(path)
    check_photo(png(tmp_path / "enough.png", 10_000, 5_000))


def test_a_choice_that_cannot_be_made_is_named(workshop, moose):
    with pytest.raises(UserError, match="an explainer was chosen twice"):
        Settings(explainers=("gradcam", "gradcam"))
    with pytest.raises(UserError, match="unknown model 'nosuch': choose one of "):
        explained(workshop, Settings("nosuch"), moose)


def test_a_photo_that_breaks_off_is_named(workshop, moose):
    moose.write_bytes(moose.read_bytes()[:2000])
    with pytest.raises(UserError, match="the photo cannot be read"):
        explained(workshop, Settings(explainers=("gradcam",)), moose)


def test_names_of_files_are_mended_where_folders_of_images_would_pass_them_by(tmp_path):
    path = tmp_path / "photo.jfif"
    Image.new("RGB", (4, 4)).save(path, "JPEG")
    assert names_of([path, path]) == ["photo.jpg", "photo-2.jpg"]
