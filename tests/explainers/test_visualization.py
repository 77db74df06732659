"""Feature visualisation and model difference: what is optimised, from where, and what comes out."""

import copy

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as F

from oracles.images import gaussian_blur
from toy import tiny_model, tiny_pair
from twinsight.engine import PairBank, generator
from twinsight.errors import UserError
from twinsight.explainers import FeatureVisualization, ModelDifference, PairImages
from twinsight.models import TwoViewModel, build_model, load_model, small_two_view, torchvision_resnet
from twinsight.models.resnet import resnet_trunk
from twinsight.plotting import write_gif

MAKERS = {
    "feature_visualization": lambda model, **options: FeatureVisualization(model, octaves=2, iterations=3, **options),
    "model_difference": lambda model, **options: ModelDifference(model, tiny_model(1), iterations=3, **options),
}


@pytest.fixture(params=MAKERS)
def make(request):
    """``make(model)``: each of the methods in turn."""
    return MAKERS[request.param]


@pytest.fixture
def views():
    return tiny_pair(0, 2)


def centred(pixels):
    return (pixels - 0.5) / 0.25


def eaten(model, x):
    """Centred pixels as the model eats them."""
    mean, std = (torch.tensor(part, dtype=x.dtype).view(3, 1, 1) for part in model.normalization)
    return (0.5 + 0.25 * x - mean) / std


@pytest.mark.parametrize("layer", [None, "trunk.5", "head"])
@pytest.mark.parametrize("objective", ["score", "feature"])
def test_the_objective_rises_within_the_last_octave(objective, layer, views):
    explainer = FeatureVisualization(tiny_model(0), layer=layer, objective=objective, iterations=10)
    trace = explainer(*views).traces["image"]
    assert trace.shape == (2, 30)  # 16, 23 and 32 pixels
    assert (trace[:, -1] > trace[:, 20]).all()
    assert (trace[:, -1] > trace[:, 0]).all()


def test_the_image_of_the_largest_score_is_more_like_view_2_than_noise_is():
    model = load_model("demo_simclr")
    view1, view2 = tiny_pair(0, 1, 64)
    made = FeatureVisualization(model, octaves=3, iterations=10)(view1, view2)
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1 - 0.05
    before = model.similarity(model(noise), model(view2))
    assert (made.details["image_score"] > before + 0.2).all()


@pytest.mark.parametrize("objective", ["score", "feature"])
def test_a_step_follows_the_blurred_gradient_of_the_penalised_objective(objective):
    """One step from the noise of the seed, against the formula, in double precision."""
    model = tiny_model(0).double()
    view1, view2 = (view.double() for view in tiny_pair(0, 1))
    options = {"norm_weight": 0.3, "tv_weight": 0.7, "learning_rate": 0.02}
    explainer = FeatureVisualization(model, objective=objective, octaves=1, iterations=1, **options)
    made = explainer(view1, view2, seeds=torch.tensor([5]))

    noise = torch.rand((1, 3, 32, 32), generator=generator(5, "feature_visualization"))
    x = (0.1 * noise - 0.05).double().requires_grad_()
    found, target = model.trunk(eaten(model, x)).flatten(), model.trunk(view2).flatten()
    value = found @ target / target.norm()
    if objective == "score":
        value = value / found.norm()
    variation = (x[..., 1:] - x[..., :-1]).abs().sum() + (x[..., 1:, :] - x[..., :-1, :]).abs().sum()
    (gradient,) = torch.autograd.grad(value - 0.3 * x.square().sum().sqrt() - 0.7 * variation / x.numel(), x)
    gradient = gaussian_blur(gradient, kernel=3, sigma=0.5)
    expected = 0.5 + 0.25 * (x.detach() + 0.02 * gradient / gradient.abs().mean())
    torch.testing.assert_close(made.images["image"], expected, rtol=0, atol=1e-7)
    assert made.traces["image"].item() == pytest.approx(value.item(), rel=1e-9)
    assert (expected - to_pixels(x)).abs().mean().item() == pytest.approx(0.25 * 0.02, rel=1e-6)


def to_pixels(x):
    return 0.5 + 0.25 * x.detach()


@pytest.mark.parametrize(("side", "octaves"), [(32, 3), (64, 5), (224, 8), (12, 1)])
def test_octaves_below_sixteen_pixels_are_left_out(side, octaves):
    explainer = FeatureVisualization(tiny_model(0), iterations=2)
    assert explainer.cost((side, side)).backwards == 2 * octaves


def test_octaves_grow_to_the_size_of_the_view(views):
    model = tiny_model(0)
    sides = []
    handle = model.trunk[0].register_forward_pre_hook(lambda module, inputs: sides.append(inputs[0].shape[-1]))
    FeatureVisualization(model, layer="trunk.5", iterations=1)(views[0][:1], views[1][:1])
    handle.remove()
    assert sides[2:] == [16, 16, 23, 23, 32, 32, 32]  # after both views, view 2 and one step at each; the final image


@pytest.mark.parametrize("learning_rate", [0.05, 5.0])
def test_images_stay_within_valid_pixels_in_pixel_space(learning_rate, views):
    model = tiny_model(0)
    model.normalization = ((0.3, 0.5, 0.7), (0.2, 0.25, 0.3))
    fed = []
    model.trunk[0].register_forward_pre_hook(lambda module, inputs: fed.append(inputs[0]))
    made = FeatureVisualization(model, octaves=2, iterations=4, learning_rate=learning_rate)(*views)
    (image,) = made.images.values()
    # The last image that the network was given is the one that was made, normalised.
    pixels = fed[-1][0] * torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1) + torch.tensor([0.3, 0.5, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(pixels, image[1], rtol=0, atol=1e-5)
    rebuilt = ModelDifference(model, model, iterations=4, learning_rate=learning_rate * 1e6)(*views)
    for found in (image, *rebuilt.images.values()):
        assert 0 <= found.min() <= found.max() <= 1
        if learning_rate > 1:  # a step beyond both ends
            assert (found.min(), found.max()) == (0, 1)


def test_passes_are_counted_and_announced(make, views):
    model = tiny_model(0)
    for options in ({}, {"layer": "trunk.5"}) if make is MAKERS["feature_visualization"] else ({},):
        explainer, bank = make(model, **options), PairBank(model)
        explainer(*(view[:1] for view in views), bank=bank)
        cost = explainer.cost((32, 32))
        assert (bank.forwards, bank.backwards) == (cost.forwards, cost.backwards)


def test_the_seed_of_a_pair_decides_its_images(make, views):
    explainer = make(tiny_model(0))
    first, again, other = (explainer(*views, seeds=torch.tensor(seeds)) for seeds in ([1, 2], [1, 2], [1, 3]))
    for name in first.images:
        assert torch.equal(first.images[name], again.images[name])
        assert torch.equal(first.images[name][0], other.images[name][0])
        assert not torch.equal(first.images[name][1], other.images[name][1])


def test_errors_of_reconstruction_fall_and_deeper_layers_give_back_less_of_the_view():
    torch.manual_seed(0)
    model = load_model("demo_simclr")
    view = tiny_pair(0, 1, 64)[0]
    made = ModelDifference(model, small_two_view(), iterations=30)(view, view)
    assert list(made.images) == [f"{who}/trunk.stages.{depth}" for who in ("model", "reference") for depth in range(3)]
    for trace in made.traces.values():
        assert trace.shape == (1, 30)
        assert trace[0, -1] < 0.5 * trace[0, 0]
    for depth in (1, 2, 3):
        for who in ("model", "reference"):
            last = made.traces[f"{who}/trunk.stages.{depth - 1}"][0, -1].item()
            assert made.details[f"{who}_error_{depth}"].item() == pytest.approx(last, rel=0.2)
    pixel_errors = [made.details[f"model_pixel_error_{depth}"].item() for depth in (1, 2, 3)]
    assert pixel_errors == sorted(pixel_errors)


def test_reconstruction_descends_the_published_loss_with_momentum():
    """Three steps from the noise of the seed, against the formula, in double precision."""
    model = tiny_model(0).double()
    view = tiny_pair(0, 1)[0].double()
    options = {"power_weight": 1e-4, "tv_weight": 1e-5, "learning_rate": 1e3}
    explainer = ModelDifference(model, model, layers=["trunk.5"], iterations=3, **options)
    made = explainer(view, view, seeds=torch.tensor([5]))

    part = model.trunk[:6]
    target = part(view)
    noise = torch.randn(view.shape, generator=generator(5, "model_difference")).double()
    x, velocity, rate = 0.1 * noise, 0, 1e3 * 32**2 / 224**2
    for step in range(3):
        x.requires_grad_()
        error = (part(eaten(model, x)) - target).square().sum() / target.square().sum()
        assert made.traces["model/trunk.5"][0, step].item() == pytest.approx(error.item(), rel=1e-6)
        variation = (x[..., 1:] - x[..., :-1]).square().sum() + (x[..., 1:, :] - x[..., :-1, :]).square().sum()
        (gradient,) = torch.autograd.grad(0.1 * error + 1e-4 * (x**6).sum() + 1e-5 * variation, x)
        velocity = 0.9 * velocity + gradient
        x = (x.detach() - rate * velocity).clamp(-2, 2)
    torch.testing.assert_close(made.images["model/trunk.5"], to_pixels(x), rtol=0, atol=1e-6)
    missed = (to_pixels(x) - (view * 0.25 + 0.5)).square().mean().sqrt().item()
    assert made.details["model_pixel_error_1"].item() == pytest.approx(missed, rel=1e-5)


def test_model_and_reference_start_from_one_image_and_follow_one_schedule(views):
    one, other = tiny_model(0), tiny_model(1)
    straight, swapped = ModelDifference(one, other, iterations=3), ModelDifference(other, one, iterations=3)
    straight, swapped = straight(*views), swapped(*views)
    same = ModelDifference(one, copy.deepcopy(one), iterations=3)(*views)
    for name in straight.images:
        who, layer = name.split("/")
        mirrored = f"{'reference' if who == 'model' else 'model'}/{layer}"
        assert torch.equal(straight.images[name], swapped.images[mirrored])
        assert torch.equal(same.images[name], same.images[mirrored])
        assert torch.equal(same.images[name], straight.images[f"model/{layer}"])
        assert not torch.equal(straight.images[name], straight.images[mirrored])


def test_another_learning_rate_for_the_reference_confounds_the_comparison(views):
    model = tiny_model(0)
    made = ModelDifference(model, model, iterations=3, reference_learning_rate=1e3)(*views)
    assert not torch.equal(made.images["model/trunk.8"], made.images["reference/trunk.8"])


class Denormalising(nn.Sequential):
    """A trunk for pixels around one for normalised images, under the same module names."""

    def forward(self, x):
        return super().forward((x - 0.5) / 0.25)


def test_each_model_eats_its_own_normalisation(views):
    model = tiny_model(0)
    pixels = TwoViewModel(Denormalising(*copy.deepcopy(model.trunk)), copy.deepcopy(model.head), input_size=32).eval()
    made = ModelDifference(model, pixels, iterations=5)(*views)
    for depth in ("trunk.2", "trunk.5", "trunk.8"):
        torch.testing.assert_close(made.images[f"model/{depth}"], made.images[f"reference/{depth}"], rtol=0, atol=1e-3)


def test_models_whose_modules_have_other_names_are_compared_at_the_same_depths():
    """SimCLRv2's stages are numbered from the stem, torchvision's are called layer1 to layer4."""
    published = build_model("simclrv2_r50_1x", seed=0, input_size=32)
    explainer = ModelDifference(published, torchvision_resnet("resnet50", input_size=32), iterations=1)
    assert explainer.options["layers"] == ["trunk.net.2", "trunk.net.3", "trunk.net.4"]
    assert explainer.options["reference_layers"] == ["trunk.layer2", "trunk.layer3", "trunk.layer4"]
    model = tiny_model(0)
    found = ModelDifference(model, tiny_model(1), layers=["trunk.2"], reference_layers=["trunk.5"], iterations=1)
    assert list(found(*tiny_pair(0, 1)).images) == ["model/trunk.2", "reference/trunk.2"]
    with pytest.raises(UserError, match="must be as many"):
        ModelDifference(model, model, layers=["trunk.2"], reference_layers=["trunk.5", "trunk.8"])


def test_default_layers_are_thirds_of_the_stages():
    assert ModelDifference(tiny_model(0), tiny_model(1)).options["layers"] == ["trunk.2", "trunk.5", "trunk.8"]
    resnet = TwoViewModel(resnet_trunk("resnet18"), input_size=32)
    layers = ModelDifference(resnet, resnet).options["layers"]
    assert layers == ["trunk.layer2", "trunk.layer3", "trunk.layer4"]


def test_what_cannot_be_compared_is_refused():
    model = tiny_model(0)
    with pytest.raises(UserError, match=r"`reference` eats images of 64 pixels, the model of 32: load both with"):
        ModelDifference(model, small_two_view())
    with pytest.raises(UserError, match="unknown model 'demo_simclear': did you mean 'demo_simclr'"):
        ModelDifference(model, "demo_simclear")
    with pytest.raises(UserError, match="`reference` must be a TwoViewModel or the name of one, got Linear"):
        ModelDifference(model, nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"unknown `layers` of the `reference` 'trunk\.5': .*Valid: .*trunk\.stages"):
        ModelDifference(model, small_two_view(input_size=32), layers=["trunk.5"])
    with pytest.raises(UserError, match=r"unknown `layers` 'trunk\.9': did you mean 'trunk.*Valid: .*trunk\.8"):
        ModelDifference(model, model, layers=["trunk.9"])
    bare = TwoViewModel(nn.Conv2d(3, 4, 3), input_size=32)
    with pytest.raises(UserError, match="`layers` cannot be derived for this trunk: name modules"):
        ModelDifference(bare, bare)
    assert ModelDifference(bare, bare, layers=["trunk"]).options["layers"] == ["trunk"]


def test_a_reference_by_name_takes_the_size_of_the_model():
    explainer = ModelDifference(small_two_view(input_size=32), "demo_simclr")
    assert explainer.reference.input_size == 32
    assert explainer.options["reference"]["weights"] == load_model("demo_simclr").checkpoint_sha256


def test_a_reference_is_left_as_it_was(views):
    reference = tiny_model(1).train().requires_grad_(True)
    statistics = [buffer.clone() for buffer in reference.buffers()]
    found = ModelDifference(tiny_model(0), reference, iterations=2)(*views)
    assert reference.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in reference.parameters())
    assert all(map(torch.equal, reference.buffers(), statistics))
    assert not any(part._forward_hooks for part in reference.modules())
    expected = ModelDifference(tiny_model(0), tiny_model(1), iterations=2)(*views)
    assert all(torch.equal(found.images[name], image) for name, image in expected.images.items())


def test_a_wrong_layer_is_refused_with_the_valid_ones(views):
    with pytest.raises(UserError, match=r"unknown `layer` 'trunk\.9': did you mean 'trunk.*Valid: .*head\.3.*trunk\.8"):
        FeatureVisualization(tiny_model(0), layer="trunk.9")


class Twice(nn.Module):
    """Runs one convolution twice and another never."""

    def __init__(self):
        super().__init__()
        self.twice, self.never = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.twice(self.twice(x))


@pytest.mark.parametrize(("layer", "times"), [("trunk.twice", 2), ("trunk.never", 0)])
def test_a_layer_that_does_not_run_once_is_refused(layer, times, views):
    model = TwoViewModel(Twice(), input_size=32)
    for explainer in (FeatureVisualization(model, layer=layer), ModelDifference(model, model, layers=[layer])):
        with pytest.raises(UserError, match=f"`layer={layer}` runs {times} times in one pass"):
            explainer(*views)
        assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "scores"}, "unknown `objective` 'scores': did you mean 'score'"),
        ({"octaves": 0}, "`octaves` must be an integer of at least 1, got 0"),
        ({"iterations": 1.5}, "`iterations` must be an integer of at least 1, got 1.5"),
        ({"octave_scale": 1.0}, "`octave_scale` must be above 1, got 1.0"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0"),
    ],
)
def test_wrong_options_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        FeatureVisualization(tiny_model(0), **options)


def test_frames_are_few_and_the_last_is_the_image(views):
    made = FeatureVisualization(tiny_model(0), iterations=20)(*views)
    assert made.frames["image"].shape == (2, 24, 3, 32, 32)
    assert torch.equal(made.frames["image"][:, -1], made.images["image"])
    short = FeatureVisualization(tiny_model(0), octaves=1, iterations=3)(*views)
    assert short.frames["image"].shape == (2, 3, 3, 32, 32)


def test_a_progress_bar_shows_only_where_asked_for(make, views, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "twinsight.explainers.images.track", lambda steps, description, **_: shown.append(description) or steps
    )
    quiet = make(tiny_model(0))(*views)
    assert shown == []
    loud = make(tiny_model(0), progress=True)(*views)
    assert shown
    assert all(description.startswith(loud.title) for description in shown)
    assert all(torch.equal(image, quiet.images[name]) for name, image in loud.images.items())


def test_a_page_holds_views_images_and_traces(make, views, tmp_path):
    made = make(tiny_model(0))(*views)
    axes = made.plot(1, path=tmp_path / "page.png")
    assert all(isinstance(each, Axes) for each in axes)
    images = [each.images[0].get_array() for each in axes if each.images]
    lines = [each.lines for each in axes if each.lines]
    assert len(images) == len(made.images) + len(made.shown)
    assert sum(map(len, lines)) == len(made.traces)
    np.testing.assert_allclose(images[0], made.views[0][1].movedim(0, -1).numpy(), atol=1e-6)
    for found, image in zip(images[len(made.shown) :], made.images.values(), strict=True):
        np.testing.assert_allclose(found, image[1].movedim(0, -1).numpy(), atol=1e-6)
    written = " ".join(text.get_text() for text in axes[0].figure.texts)
    assert made.title in written
    assert f"{made.score[1]:.3f}" in written
    with Image.open(tmp_path / "page.png") as page:
        assert page.size == axes[0].figure.canvas.get_width_height()
    with pytest.raises(UserError, match="`index` must be one of 2 pairs, got 2"):
        made.plot(2)


def test_a_film_becomes_an_animation(views, tmp_path):
    made = FeatureVisualization(tiny_model(0), octaves=1, iterations=6)(*views)
    film = made.film("image", 1)
    assert film.shape == (6, 32, 32, 3)
    with Image.open(write_gif(film, tmp_path / "film.gif", side=None)) as animation:
        assert animation.n_frames == 6
        assert animation.size == (32, 32)
        animation.seek(5)
        found = F.pil_to_tensor(animation.convert("RGB")).float() / 255
    assert (found - made.images["image"][1]).abs().mean() < 0.03  # a palette of 256 colours


def test_made_images_move_between_devices(make, views):
    moved = make(tiny_model(0))(*views).to("meta")
    assert isinstance(moved, PairImages)
    for tensors in (moved.images, moved.traces, moved.frames, moved.details):
        assert all(tensor.device.type == "meta" for tensor in tensors.values())
    assert {tensor.device.type for tensor in (moved.score, *moved.views)} == {"meta"}


def test_references_that_eat_other_pixels_are_told_apart():
    weights = small_two_view(input_size=32).state_dict()
    identities = []
    for normalization in (None, ((0.5,) * 3, (0.25,) * 3)):
        reference = small_two_view(input_size=32)
        reference.load_state_dict(weights)
        reference.normalization = normalization
        model = small_two_view(input_size=32)
        model.load_state_dict(weights)
        identities.append(ModelDifference(model, reference).identity())
    assert identities[0] != identities[1]


@pytest.mark.parametrize("layers", ["trunk.5", [], ["trunk.5", "trunk.5"]])
def test_layers_are_a_list_of_different_paths(layers):
    with pytest.raises(UserError, match="must be a list of different module paths"):
        ModelDifference(tiny_model(0), tiny_model(1), layers=layers)
