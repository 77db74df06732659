"""Explaining and scoring in one call from Python: whatever holds the pictures, whoever made the maps."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import twinsight
from toy import tiny_maps, tiny_model, tiny_pair
from twinsight.api import as_views, quantus_explain_func
from twinsight.engine import PairBank
from twinsight.errors import UserError
from twinsight.explainers import GradCAM, InteractionCAM
from twinsight.metrics.functional import average_drop, insertion_deletion

SHORT = {"insertion_deletion": {"points": 8}}


@pytest.fixture
def pixels():
    """Two pictures of 32 x 32 pixels in 8 bits."""
    return [(view[0] * 0.25 + 0.5).mul(255).round().byte() for view in tiny_pair(0, 1)]


def test_importing_the_package_alone_brings_no_torch_along():
    said = "import sys, twinsight; print('torch' in sys.modules, 'explain' in dir(twinsight) or twinsight.__all__)"
    out = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout
    assert out.startswith("False")


def test_an_explanation_is_that_of_the_explainer_whatever_holds_the_pictures(pixels, tmp_path):
    model = tiny_model(0)
    views = [((pixel / 255 - 0.5) / 0.25)[None] for pixel in pixels]
    expected = InteractionCAM(model)(*views)
    photos = [Image.fromarray(pixel.movedim(0, -1).numpy()) for pixel in pixels]
    for name, photo in zip("ab", photos, strict=True):
        photo.save(tmp_path / f"{name}.png")
    forms = (
        pixels,
        [pixel / 255 for pixel in pixels],
        [pixel[None] / 255 for pixel in pixels],
        photos,
        [np.asarray(photo) for photo in photos],
        [str(tmp_path / "a.png"), tmp_path / "b.png"],
    )
    for view1, view2 in forms:
        found = twinsight.explain(model, view1, view2)
        torch.testing.assert_close(found.map1, expected.map1, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.score, expected.score)


def test_options_reach_the_explainer_by_name_class_or_built(pixels):
    model = tiny_model(0)
    by_name = twinsight.explain(model, *pixels, explainer="gradcam", form="elementwise")
    by_class = twinsight.explain(model, *pixels, explainer=GradCAM, form="elementwise")
    built = twinsight.explain(model, *pixels, explainer=GradCAM(model, form="elementwise"))
    assert torch.equal(by_name.map1, by_class.map1)
    assert torch.equal(by_name.map1, built.map1)
    assert not torch.equal(by_name.map1, twinsight.explain(model, *pixels, explainer="gradcam").map1)


def test_pictures_of_any_size_are_cut_to_their_centre_and_resized():
    model = tiny_model(0)
    wide = torch.zeros(3, 64, 128)
    wide[:, :, 32:96] = 0.5
    views = as_views(model, [wide, np.zeros((40, 20), np.uint8)])
    assert views.shape == (2, 3, 32, 32)
    torch.testing.assert_close(views[0], torch.zeros(3, 32, 32), rtol=0, atol=1e-6)
    assert (views[1] == -2).all()


def test_scores_are_those_of_the_metrics_and_share_the_bank(pixels):
    model = tiny_model(0)
    bank = PairBank(model)
    found = twinsight.evaluate(model, *pixels, "gradcam", metrics={**SHORT, "average_drop": {}}, bank=bank)
    explanation = twinsight.explain(model, *pixels, "gradcam")
    x1, x2 = (as_views(model, pixel) for pixel in pixels)
    maps = explanation.resized((32, 32))
    assert torch.equal(found["ci"], insertion_deletion(model, x1, x2, *maps, points=8).ci)
    assert torch.equal(found["sad"], average_drop(model, x1, x2, *maps).sad)
    assert torch.equal(found["score"], explanation.score)
    before = bank.forwards
    twinsight.evaluate(model, *pixels, "gradcam", metrics=SHORT, bank=bank)
    assert bank.forwards == before


def test_the_protocol_is_that_of_explainer_and_metrics(pixels):
    found, sound = (
        twinsight.evaluate(tiny_model(0), *pixels, "gradcam", metrics=SHORT, protocol=name)
        for name in ("paper", "sound")
    )
    assert not torch.equal(found["cd"], sound["cd"])


def test_maps_made_elsewhere_are_scored(pixels, tmp_path):
    model = tiny_model(0)
    map1, map2 = tiny_maps(3, 1)
    x1, x2 = (as_views(model, pixel) for pixel in pixels)
    expected = insertion_deletion(model, x1, x2, map1, map2, points=8)
    np.savez(tmp_path / "maps.npz", map1=map1.numpy(), map2=map2.numpy())
    np.savez(tmp_path / "other.npz", heat=map1.numpy())
    for maps in (
        (map1, map2),
        (map1[0].numpy(), map2[0].numpy()),
        tmp_path / "maps.npz",
        (map1[:, None], map2[:, None]),
    ):
        found = twinsight.evaluate(model, *pixels, maps=maps, metrics=SHORT)
        assert torch.equal(found["si"], expected.si)
    alone = twinsight.evaluate(model, *pixels, maps=(map1, None), metrics=SHORT)
    assert torch.equal(alone["ci1"], expected.ci1)
    assert alone["si"].isnan().all()
    with pytest.raises(UserError, match=r"needs map1 .*it has heat"):
        twinsight.evaluate(model, *pixels, maps=tmp_path / "other.npz")
    with pytest.raises(UserError, match=r"`map1` must be \(1, h, w\), a map for each pair, got \(2, 32, 32\)"):
        twinsight.evaluate(model, *pixels, maps=tiny_maps(3, 2))
    with pytest.raises(UserError, match="metric max_sensitivity needs `explainer`, which was not given"):
        twinsight.evaluate(model, *pixels, maps=(map1, map2), metrics=["max_sensitivity"])


def test_explainers_plug_into_quantus(pixels):
    model = tiny_model(0)
    view1, view2 = tiny_pair(0, 3)
    function = quantus_explain_func(view2, "gradcam", form="elementwise")
    found = function(model, view1[[2, 0]].numpy(), np.array([2, 0]), device="cpu")
    expected = GradCAM(model, form="elementwise")(view1, view2).resized((32, 32))[0][[2, 0]]
    assert np.array_equal(found, expected[:, None].numpy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo_simclrs",), "unknown model 'demo_simclrs': did you mean 'demo_simclr'"),
        ((torch.nn.Linear(2, 2),), r"got Linear: TwoViewModel\.from_module\(network, normalization=\.\.\."),
        ((tiny_model(0), "grad_cam"), "unknown explainer 'grad_cam': did you mean 'gradcam'"),
    ],
)
def test_what_is_not_known_is_said(pixels, arguments, message):
    model, *rest = arguments
    with pytest.raises(UserError, match=message):
        twinsight.explain(model, *pixels, *rest)


def test_options_that_do_not_fit_are_said(pixels):
    with pytest.raises(UserError, match=r"gradcam: .*unexpected keyword argument 'window'"):
        twinsight.explain(tiny_model(0), *pixels, "gradcam", window=3)
    with pytest.raises(UserError, match="unknown metric 'insertion'"):
        twinsight.evaluate(tiny_model(0), *pixels, metrics=["insertion"])


def test_what_cannot_be_scored_is_said(pixels, tmp_path):
    np.savez(tmp_path / "maps.npz", first=np.zeros((1, 4, 4)))
    for given, message in [
        ({"maps": tmp_path / "maps.npz"}, r"needs map1 \(and map2, where there is one\), it has first$"),
        (
            {"explainer": "feature_visualization", "octaves": 1, "iterations": 1},
            "metrics score maps, and feature_visualization makes images",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            twinsight.evaluate(tiny_model(0), *pixels, **given)
    with pytest.raises(UserError, match="no pictures were given"):
        twinsight.explain(tiny_model(0), [], [])
