"""What every explainer promises, whatever its method."""

import warnings
from pathlib import Path

import matplotlib
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import twinsight.explainers as explainers
from toy import tiny_model, tiny_pair
from toy_cells import write_photo
from twinsight.data import ImageFolder, PairDataModule, SimCLRViews
from twinsight.engine import PairBank, seeds_from_pixels
from twinsight.errors import UserError
from twinsight.explainers import Explainer, ImageExplainer, PairExplanation, PairImages
from twinsight.models import TwoViewModel

CLASSES = {
    name: found
    for name, found in vars(explainers).items()
    if isinstance(found, type) and issubclass(found, Explainer) and found not in (Explainer, ImageExplainer)
}
# Those for transformers are held to the contract with the architectures.
for _name in ("AttentionRollout", "GradientAttention", "TokenOcclusion"):
    del CLASSES[_name]


class MirroredPartner(explainers.PartnerSwapped):
    """Partner swapped without a data module: the other photo is the second view in the mirror."""

    def forward(self, view1, view2, seeds=None, bank=None, partner_view2=None):
        partner = view2.flip(-1) if partner_view2 is None and isinstance(view2, torch.Tensor) else partner_view2
        return super().forward(view1, view2, seeds, bank, partner)


CLASSES["PartnerSwapped"] = MirroredPartner
# Options that make small cells of small views, and draw where the method can.
OPTIONS = {
    "ConditionalOcclusion": {"window": 9, "stride": 5, "baseline": "noise"},
    "ContextAgnosticOcclusion": {"window": 9, "stride": 5},
    "PairwiseOcclusion": {"num_samples": 7},
    "SmoothGrad": {"samples": 3},
    "AveragedTransforms": {"lambdas": [0.6, 0], "noise": True},
    "Inverted": {"of": "conditional_occlusion", "options": {"window": 9, "stride": 5}},
    "Captum": {"options": {"n_steps": 2}},
    "PixelInvariance": {"samples": 7, "size": 8, "epochs": 3, "components": 2, "nmf_weight": 0.5},
    "FeatureVisualization": {"octaves": 2, "iterations": 2},
    "ModelDifference": {"reference": tiny_model(1), "iterations": 2},
}
WITH_LAYER = [name for name in CLASSES if name.endswith("CAM")]
BATCH = 3


@pytest.fixture(params=CLASSES)
def build(request):
    """``build(model)``: an explainer of each class in turn."""
    return lambda model, **options: CLASSES[request.param](model, **OPTIONS.get(request.param, {}), **options)


@pytest.fixture
def views():
    return tiny_pair(0, BATCH)


@pytest.fixture(params=[name for name, found in CLASSES.items() if found.maps])
def build_map(request):
    """``build_map(model)``: an explainer of each class that makes maps."""
    return lambda model, **options: CLASSES[request.param](model, **OPTIONS.get(request.param, {}), **options)


def parts(explanation):
    """Everything that is computed, maps at native and at image size."""
    if isinstance(explanation, PairImages):
        kinds = {"image": explanation.images, "trace": explanation.traces, "frames": explanation.frames}
        made = {f"{kind} {name}": tensor for kind, tensors in kinds.items() for name, tensor in tensors.items()}
        return {"score": explanation.score, **made, **explanation.details}
    found = {"map1": explanation.map1, "map2": explanation.map2, "score": explanation.score}
    found["large1"], found["large2"] = explanation.resized((32, 32))
    # Details may be NaN where there is nothing to tell, and NaN is not equal to itself.
    details = {name: tensor.nan_to_num(nan=-1e9) for name, tensor in explanation.details.items()}
    return {name: tensor for name, tensor in found.items() if tensor is not None} | details


def assert_identical(found, expected):
    found, expected = parts(found), parts(expected)
    assert found.keys() == expected.keys()
    differing = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    assert not differing


def state(model):
    """Modes, gradients and hooks of all parts of a model."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        [(name, part.training, *(len(getattr(part, kind)) for kind in hooks)) for name, part in model.named_modules()],
        [(name, parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()],
    )


def test_an_explanation_has_its_maps_and_a_score_per_pair(build_map, views):
    explainer = build_map(tiny_model(0))
    explanation = explainer(*views)
    assert isinstance(explanation, PairExplanation)
    assert explanation.map1.ndim == 3
    assert len(explanation.map1) == BATCH
    assert (explanation.map2 is None) == (explainer.maps == 1)
    assert explanation.score.shape == (BATCH,)
    assert_plain_numbers(explanation)
    for large in explanation.resized((32, 32)):
        assert large is None or large.shape == (BATCH, 32, 32)
    for pixels, view in zip(explanation.views, views, strict=True):
        torch.testing.assert_close(pixels, view * 0.25 + 0.5, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, found in CLASSES.items() if not found.maps])
def test_images_are_pixels_with_traces_and_frames(name, views):
    made = CLASSES[name](tiny_model(0), **OPTIONS[name])(*views)
    assert isinstance(made, PairImages)
    assert made.images
    assert made.images.keys() == made.traces.keys() == made.frames.keys()
    assert_plain_numbers(made)
    for key, image in made.images.items():
        assert image.shape == views[0].shape
        assert 0 <= image.min() <= image.max() <= 1
        assert made.traces[key].ndim == 2
        assert made.frames[key].shape[0] == BATCH
        assert made.frames[key].shape[2:] == image.shape[1:]
        assert torch.equal(made.frames[key][:, -1], image)


def assert_plain_numbers(explanation):
    for tensor in parts(explanation).values():
        assert len(tensor) == BATCH
        assert tensor.dtype == torch.float32
        assert torch.isfinite(tensor).all()
        assert not tensor.requires_grad
        assert not tensor.is_inference()


@pytest.mark.parametrize("asymmetric", [False, True])
def test_a_batch_is_its_pairs_one_by_one(build, views, asymmetric):
    explainer = build(tiny_model(0, asymmetric=asymmetric))
    together = explainer(*views)
    apart = [explainer(*(view[index : index + 1] for view in views)) for index in range(BATCH)]
    for name, tensor in parts(together).items():
        assert torch.equal(tensor, torch.cat([parts(one)[name] for one in apart])), name


def test_the_order_of_a_batch_is_the_order_of_its_explanations(build, views):
    explainer = build(tiny_model(0))
    straight, turned = explainer(*views), explainer(*(view.flip(0) for view in views))
    for name, tensor in parts(straight).items():
        assert torch.equal(tensor, parts(turned)[name].flip(0)), name


def test_a_shared_bank_changes_nothing(build, views):
    model = tiny_model(0)
    explainer, bank = build(model), PairBank(model)
    expected = explainer(*views)
    assert_identical(explainer(*views, bank=bank), expected)
    before = bank.forwards
    assert_identical(explainer(*views, bank=bank), expected)
    assert bank.forwards == before or explainer.cost((32, 32)).backwards  # gradients take passes of their own
    bank.clear()
    for other in CLASSES.values():
        if other is not type(explainer):
            other(model, **OPTIONS.get(other.__name__, {}))(*views, bank=bank)
    assert_identical(explainer(*views, bank=bank), expected)


def test_the_memory_layout_of_the_views_changes_nothing(build, views):
    model = tiny_model(0)
    for explainer in (build(model), explainers.ConditionalOcclusion(model, window=9, stride=5, baseline="mean")):
        expected = parts(explainer(*views))
        for index in (slice(None), slice(0, 1)):  # of one image alone the layout is easily mistaken
            other = [view[index].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for view in views]
            found = parts(explainer(*other))
            assert [name for name in expected if not torch.equal(found[name], expected[name][index])] == []


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_mode_of_the_caller_changes_nothing(build, views, mode):
    explainer = build(tiny_model(0))
    expected = explainer(*views)
    with mode():
        found = explainer(*(view.clone() for view in views))
        bank = PairBank(explainer.model)
        shared = explainer(*(view.clone() for view in views), bank=bank)
    assert_identical(found, expected)
    assert_identical(shared, expected)
    assert_identical(explainer(*views, bank=bank), expected)


def test_a_model_in_training_is_explained_as_in_evaluation_and_left_as_it_was(build, views):
    expected = build(tiny_model(0))(*views)
    model = tiny_model(0).train().requires_grad_(True)
    model.head[1].eval()
    model.trunk[0].weight.requires_grad_(False)
    before = state(model)
    statistics = [buffer.clone() for buffer in model.buffers()]
    assert_identical(build(model)(*views), expected)
    assert state(model) == before
    assert all(map(torch.equal, model.buffers(), statistics))


@pytest.mark.parametrize("part", ["trunk", "head"])
def test_a_model_is_left_as_it_was_when_something_raises_inside(build, views, part):
    assert_left_as_it_was_on_an_error(build, views, part)


@pytest.mark.parametrize("part", ["trunk", "head"])
@pytest.mark.parametrize("name", WITH_LAYER)
def test_a_model_with_a_hook_is_left_as_it_was_when_something_raises_inside(name, views, part):
    assert_left_as_it_was_on_an_error(lambda model: CLASSES[name](model, layer="trunk.3"), views, part)


def assert_left_as_it_was_on_an_error(build, views, part):
    model = tiny_model(0).train().requires_grad_(True)
    explainer = build(model)

    def fail(module, inputs):
        raise ZeroDivisionError("inside the network")

    handle = getattr(model, part)[-1].register_forward_pre_hook(fail)
    before = state(model)
    with pytest.raises(ZeroDivisionError, match="inside the network"):
        explainer(*views)
    assert state(model) == before
    assert torch.is_grad_enabled()
    handle.remove()
    assert_identical(explainer(*views), build(tiny_model(0))(*views))


def test_views_that_require_gradients_get_none(build, views):
    explainer = build(tiny_model(0))
    expected = explainer(*views)
    wanting = [view.clone().requires_grad_() for view in views]
    assert_identical(explainer(*wanting), expected)
    assert all(view.grad is None and view.requires_grad for view in wanting)
    assert all(map(torch.equal, wanting, views))


def test_seeds_default_to_the_pixels_of_view_1(build, views):
    explainer = build(tiny_model(0))
    assert_identical(explainer(*views), explainer(*views, seeds=seeds_from_pixels(views[0])))


def test_noise_is_drawn_from_the_seed_of_the_pair(views):
    model = tiny_model(0)
    explainer = explainers.ConditionalOcclusion(model, **OPTIONS["ConditionalOcclusion"])
    first, again, other = (explainer(*views, seeds=torch.tensor(seeds)) for seeds in ([1, 2, 3], [1, 2, 3], [1, 2, 4]))
    assert_identical(again, first)
    assert torch.equal(other.map1[:2], first.map1[:2])
    assert not torch.equal(other.map1[2], first.map1[2])


@pytest.mark.parametrize("protocol", ["sound", "paper"])
def test_every_option_is_resolved_under_both_protocols(build, views, protocol):
    explainer = build(tiny_model(0), protocol=protocol)
    assert explainer.protocol == protocol
    for name, values in explainer.protocol_options.items():
        given = OPTIONS.get(type(explainer).__name__, {})
        assert explainer.options[name] == given.get(name, values[protocol])
    explainer(*views)


def test_an_unknown_protocol_is_refused_with_the_nearest(build):
    with pytest.raises(UserError, match="unknown protocol 'papers': did you mean 'paper'"):
        build(tiny_model(0), protocol="papers")


def test_a_model_that_is_no_two_view_model_is_refused(build):
    with pytest.raises(UserError, match="`model` must be a TwoViewModel, got Linear"):
        build(nn.Linear(2, 2))


# What is given instead of two good views, and what is said about it.
WRONG = {
    "one view": (lambda a, b: (a[0], b[0]), UserError, r"`view1` must be a float tensor .* got float32 \(3, 32, 32\)"),
    "no pair": (lambda a, b: (a[:0], b[:0]), UserError, r"B >= 1, got float32 \(0, 3, 32, 32\)"),
    "bytes": (lambda a, b: (a, b.byte()), UserError, r"`view2` must be a float tensor .* got uint8 \(3, 3, 32, 32\)"),
    "doubles": (lambda a, b: (a, b.double()), UserError, "`view2` must be float32 for this model, got float64"),
    "halves": (lambda a, b: (a.half(), b), UserError, "`view1` must be float32 for this model, got float16"),
    "an array": (lambda a, b: (a.numpy(), b), TypeError, "`view1` must be a tensor, got ndarray"),
    "uneven": (lambda a, b: (a, b[:2]), UserError, r"one shape, got \(3, 3, 32, 32\) and \(2, 3, 32, 32\)"),
    "other size": (lambda a, b: (a, b[..., :31]), UserError, r"one shape, got .* and \(3, 3, 32, 31\)"),
    "few seeds": (lambda a, b: (a, b, torch.tensor([1])), UserError, r"`seeds` must be \(3,\), .* got \(1,\)"),
    "float seeds": (
        lambda a, b: (a, b, torch.ones(3)),
        TypeError,
        "`seeds` must be a tensor of integers, got torch",
    ),
    "list of seeds": (lambda a, b: (a, b, [1, 2, 3]), TypeError, "`seeds` must be a tensor of integers, got list"),
    "foreign bank": (lambda a, b: (a, b, None, PairBank(tiny_model(1))), UserError, "`bank` was made for another"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_is_refused_by_name_before_any_work(build, views, what):
    arguments, error, message = WRONG[what]
    model = tiny_model(0)
    explainer = build(model)
    model.trunk.register_forward_pre_hook(lambda module, inputs: pytest.fail("the network was asked"))
    with pytest.raises(error, match=message):
        explainer(*arguments(*views))


def test_views_that_are_not_finite_are_refused(build, views):
    views[1][2, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="the embedding of view 2 holds NaN or infinity"):
        build(tiny_model(0))(*views)


@pytest.mark.parametrize("name", WITH_LAYER)
@pytest.mark.parametrize("layer", ["trunk.0", "trunk.4", "trunk.7", "trunk"])
def test_a_layer_is_named_by_its_path(name, layer, views):
    """Whatever follows, also a ReLU that works in place, the activation explained is the layer's own output."""
    model = tiny_model(0)
    expected = CLASSES[name](model, layer=layer)(*views)
    shape = {"trunk.0": (16, 16), "trunk.4": (8, 8), "trunk.7": (4, 4), "trunk": (4, 4)}[layer]
    assert expected.map1.shape == (BATCH, *shape)
    in_place = tiny_model(0)
    for part in in_place.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = True
    assert_identical(CLASSES[name](in_place, layer=layer)(*views), expected)
    assert_identical(CLASSES[name](in_place)(*views), CLASSES[name](model)(*views))


@pytest.mark.parametrize("name", WITH_LAYER)
def test_the_trunk_as_layer_is_the_default(name, views):
    model = tiny_model(0)
    for found, expected in zip(
        parts(CLASSES[name](model, layer="trunk")(*views)).values(),
        parts(CLASSES[name](model)(*views)).values(),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WITH_LAYER)
def test_an_unknown_layer_is_refused_with_the_valid_ones(name):
    with pytest.raises(UserError, match=r"unknown `layer` 'trunk\.9': did you mean 'trunk.*Valid: .*head\.3.*trunk\.8"):
        CLASSES[name](tiny_model(0), layer="trunk.9")


class Twice(nn.Module):
    """Runs one convolution twice and another never."""

    def __init__(self):
        super().__init__()
        self.twice, self.never = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.twice(self.twice(x))


@pytest.mark.parametrize("name", WITH_LAYER)
def test_a_layer_without_one_feature_map_is_refused(name, views):
    with pytest.raises(UserError, match=r"`layer=head.0` must give feature maps \(B, D, h, w\), got \(1, 12\)"):
        CLASSES[name](tiny_model(0), layer="head.0")(*views)
    model = TwoViewModel(Twice(), input_size=32)
    for layer, times in (("trunk.twice", 2), ("trunk.never", 0)):
        before = state(model)
        with pytest.raises(UserError, match=f"`layer={layer}` runs {times} times in one pass"):
            CLASSES[name](model, layer=layer)(*views)
        assert state(model) == before


def test_explanations_are_drawn_without_a_display(build_map, views, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    backend = matplotlib.get_backend(auto_select=False)
    explanation = build_map(tiny_model(0))(*views)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = explanation.plot(1)
    assert f"similarity {explanation.score[1]:.3f}" in first.figure.get_suptitle()
    first.figure.canvas.draw()
    shown = [axes.images[-1].get_array() for axes in (first, second)]
    assert all(array is not None and array.shape[0] > 0 for array in shown)
    assert matplotlib.get_backend(auto_select=False) == backend
    figure = matplotlib.figure.Figure()
    axes = tuple(figure.subplots(1, 2))
    assert explanation.plot(2, axes=axes) == axes


def test_an_explanation_without_views_says_what_it_needs():
    with pytest.raises(UserError, match="does not hold its views"):
        PairExplanation(torch.zeros(1, 2, 2), None, torch.zeros(1)).plot()


def test_names_and_titles_tell_explainers_apart():
    assert len({found.name for found in CLASSES.values()}) == len(CLASSES)
    assert len({found.title for found in CLASSES.values()}) == len(CLASSES)
    assert all(found.name.isidentifier() for found in CLASSES.values())


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")  # Lightning's own business
def test_a_trainer_explains_a_data_module(build, tmp_path: Path):
    for index in range(3):
        write_photo(tmp_path / f"{index}.png", index)
    model = tiny_model(0)
    data = PairDataModule(ImageFolder(tmp_path), SimCLRViews(32), model.normalization, batch_size=2)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    explainer = build(model)
    found = trainer.predict(explainer, datamodule=data)
    assert [len(explanation.score) for explanation in found] == [2, 1]
    for explanation, batch in zip(found, data.predict_dataloader(), strict=True):
        expected = explainer(batch.view1, batch.view2, batch.seeds, partner_view2=batch.partner_view2)
        assert_identical(explanation, expected)


def test_the_cost_is_what_the_network_is_asked_for(build):
    """Counted at the network itself, one image per pass so that no chunk is filled up."""
    model = tiny_model(0, asymmetric=True)  # nothing is shared between the views
    explainer, passes = build(model), {"forwards": 0, "backwards": 0}

    def count(module, inputs):
        passes["forwards"] += len(inputs[0])
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda gradient: passes.update(backwards=passes["backwards"] + len(gradient)))

    networks = [model, *([explainer.reference] if isinstance(explainer, explainers.ModelDifference) else [])]
    handles = [network.trunk.register_forward_pre_hook(count) for network in networks]
    explainer(*tiny_pair(0, 1), bank=PairBank(model, chunk_size=1))
    for handle in handles:
        handle.remove()
    cost = explainer.cost((32, 32))
    if isinstance(explainer, explainers.PartnerSwapped):
        assert passes["forwards"] <= cost.forwards
    else:
        assert passes == {"forwards": cost.forwards, "backwards": cost.backwards}


# Why the two views of a method do not change places; all others must.
NOT_SYMMETRIC = {
    "AveragedTransforms": "mixes run from view 1 to view 2",
    "FeatureVisualization": "the image is made for view 2",
    "ModelDifference": "view 1 is rebuilt",
    "PairwiseOcclusion": "rectangles are drawn for each view; with boxes given see test_occlusion.py",
    "PartnerSwapped": "the other photo's second view takes part, not its first",
    "PixelInvariance": "one map, of view 1",
    "RandomMap": "noise is drawn for each view",
    "MatchedRandom": "noise is drawn for each view",
    "SmoothGrad": "noise is drawn for each view; the published one shares it, but takes its deviation from view 1",
}


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in NOT_SYMMETRIC])
def test_swapping_the_views_swaps_the_maps(name, views):
    explainer, seeds = CLASSES[name](tiny_model(0), **OPTIONS.get(name, {})), torch.arange(BATCH)
    straight, swapped = explainer(*views, seeds=seeds), explainer(*reversed(views), seeds=seeds)
    for one, other in ((straight.map1, swapped.map2), (straight.map2, swapped.map1)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * one.abs().max().item())
    torch.testing.assert_close(straight.score, swapped.score)


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in NOT_SYMMETRIC])
def test_two_equal_views_have_equal_maps(name, views):
    # The dot product, since the gradient of a cosine at its maximum is rounding noise.
    explainer = CLASSES[name](tiny_model(0, similarity="dot"), **OPTIONS.get(name, {}))
    found = explainer(views[0], views[0], seeds=torch.arange(BATCH))
    torch.testing.assert_close(found.map1, found.map2, rtol=1e-4, atol=1e-5 * found.map1.abs().max().item())


def test_a_network_in_half_precision_has_scores_and_maps_in_full(build_map, views):
    """Mixed precision is for the network: rounded similarities would tie, and pictures could not be drawn."""
    explainer = build_map(tiny_model(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = explainer(*views)
        large = found.resized((32, 32))
        found.plot()
    for tensor in (found.score, found.map1, *(large[:1]), *found.details.values()):
        assert tensor.dtype == torch.float32
    assert not torch.equal(found.score, explainer(*views).score)  # the network did compute in half precision
    torch.testing.assert_close(found.score, explainer(*views).score, rtol=0, atol=0.05)
