"""Published models: their networks give the golden embeddings, and their names and options mean what they say."""

import hashlib

import pytest
import torch
from torch import nn

from toy import load_golden
from toy_checkpoints import (
    EMBEDDINGS,
    LAYOUTS,
    flat_shapes,
    hollow,
    loaded,
    loader,
    saved,
    torchvision_backbone,
    write_filled,
)
from twinsight.errors import UserError
from twinsight.models import (
    SimCLRv2ResNet,
    SimSiam,
    build_model,
    load_model,
    published_models,
    weights_digest,
)
from twinsight.models.published import PUBLISHED, models_that_fit

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# What the networks compute


@pytest.mark.parametrize("name", [name for name in EMBEDDINGS if name != "simsiam"])
def test_a_published_file_gives_the_golden_embedding(name, path):
    model = load_model(loader(name), checkpoint=write_filled(name, path))
    view1 = load_golden("a").view1
    features = model.features(view1)
    assert list(features.shape) == EMBEDDINGS[name]["feature_map_shape"]
    assert_golden(model.embed(features), EMBEDDINGS[name]["embedding"])
    assert model.symmetric
    assert model.mean_pooled
    assert not model.training
    assert (model.normalization, model.input_size) == (None if "simclrv2" in name else IMAGENET, 224)
    assert weights_digest(model) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_published_simsiam_predicts_from_view_1_or_as_in_the_paper_from_both(path):
    view1, golden = load_golden("a").view1, EMBEDDINGS["simsiam"]
    sound = load_model("simsiam", checkpoint=write_filled("simsiam", path))
    paper = SimSiam(sound.trunk, sound.head, sound.prediction_head, protocol="paper", input_size=32)
    features = sound.features(view1)
    assert list(features.shape) == golden["feature_map_shape"]
    assert_golden(sound.embed(features), golden["embedding"])
    assert_golden(sound.embed(features, view=2), golden["projector_embedding"])
    for view in (1, 2):
        assert_golden(paper.embed(features, view), golden["embedding"])
    assert not sound.symmetric
    assert (sound.normalization, sound.input_size) == (IMAGENET, 224)


def test_a_published_simsiam_takes_the_paper_protocol_from_its_caller(path):
    saved(hollow("simsiam"), path)
    assert not loaded("simsiam", path).symmetric
    assert loaded("simsiam", path, protocol="paper").symmetric
    assert not loaded("simsiam", path, protocol="paper", predictor="view1").symmetric


def assert_golden(embedding, golden):
    assert embedding.shape == (1, golden["dim"])
    error = (embedding[0, :16] - torch.tensor(golden["first"])).abs().max()
    assert error <= 1e-3 * golden["norm"]
    assert embedding.norm().item() == pytest.approx(golden["norm"], rel=1e-3)


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_and_shapes_of_weights_are_those_of_the_published_file(name):
    published = PUBLISHED[loader(name)]
    with torch.device("meta"):
        parts = published.parts()
    ours = {
        prefix + key: tuple(value.shape)
        for part, prefix in published.layout.prefixes.items()
        for key, value in parts[part].state_dict().items()
    }
    theirs = {key: s for key, s in flat_shapes(name).items() if not key.startswith(("resnet.fc.", "model.module.bn."))}
    assert ours == theirs
    if "n_params" in EMBEDDINGS[name]:
        width = parts["trunk"].net[-1].blocks[-1].net[0].in_channels
        classifier = 1000 * width + 1000
        assert parameters(*parts.values()) + classifier == EMBEDDINGS[name]["n_params"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_fits_one_model(name):
    assert models_that_fit(flat_shapes(name)) == [loader(name)]


# Millions of parameters and running statistics of the trunk, from the release of SimCLRv2 (arXiv 2006.10029, table 1).
SIZES = {
    50: {(1, False): 24, (1, True): 35, (2, False): 94, (2, True): 140},
    101: {(1, False): 43, (1, True): 65, (2, False): 170, (2, True): 257},
    152: {(1, False): 58, (1, True): 89, (2, False): 233, (2, True): 354, (3, True): 795},
}


@pytest.mark.parametrize("depth", SIZES)
def test_simclrv2_has_as_many_parameters_as_published(depth):
    for (width, selective_kernels), millions in SIZES[depth].items():
        with torch.device("meta"):
            trunk = SimCLRv2ResNet(depth, width, selective_kernels).eval()
            assert trunk(torch.empty(1, 3, 64, 64)).shape == (1, 2048 * width, 2, 2)
        numbers = parameters(trunk) + sum(b.numel() for b in trunk.buffers() if b.ndim)
        assert round(numbers / 1e6) == millions, (width, selective_kernels)


def parameters(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def test_simclrv2_ends_its_blocks_with_a_function_and_has_modules_inside():
    with torch.device("meta"):
        trunk = SimCLRv2ResNet(50)
    assert sum(isinstance(module, nn.ReLU) for module in trunk.modules()) == 1 + 2 * 16
    block = build_model("simclrv2_r50_1x", seed=0, input_size=32).trunk.net[1].blocks[1]
    x = torch.randn(1, 256, 8, 8)
    torch.testing.assert_close(block(x), (x + block.net(x)).clamp(min=0))


# What a model says about itself


def test_weights_of_a_seed_are_the_same_and_leave_the_random_state_alone():
    before = torch.get_rng_state()
    first, second, other = (build_model("simclrv2_r50_1x", seed=seed, input_size=32) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert weights_digest(first) == weights_digest(second) != weights_digest(other)


def test_a_gradient_of_simsiam_is_constant_over_space_as_it_says():
    model = SimSiam(nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(4, 4), input_size=8)
    with torch.enable_grad():
        features = torch.rand(1, 8, 4, 4, requires_grad=True)
        (gradient,) = torch.autograd.grad(model.embed(features).square().sum(), features)
    assert model.mean_pooled
    torch.testing.assert_close(gradient, gradient[..., :1, :1].expand_as(gradient))


# Names and options


@pytest.mark.parametrize("name", published_models())
def test_without_a_checkpoint_the_message_says_which_file_is_expected(name):
    with pytest.raises(UserError, match=rf"`checkpoint` of model '{name}' is missing .* give .*\.pth.*checkpoint=FILE"):
        load_model(name)


@pytest.mark.parametrize("build", [load_model, build_model])
def test_an_unknown_name_is_answered_with_the_nearest(build):
    with pytest.raises(UserError, match="'simclr_v2_r50_1x': did you mean 'simclrv2_r50_1x'"):
        build("simclr_v2_r50_1x")


@pytest.mark.parametrize("name", ["barlow_twins", "demo_simclr"])
def test_options_that_a_model_does_not_have_are_refused(name):
    with pytest.raises(UserError, match=f"`predictor=both` is an option of model 'simsiam', '{name}' has no predictor"):
        load_model(name, predictor="both")
    with pytest.raises(UserError, match="unknown protocol 'papr': did you mean 'paper'"):
        load_model(name, protocol="papr")


def test_an_unknown_predictor_is_named():
    parts = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(4, 4)
    with pytest.raises(UserError, match="unknown `predictor` 'view2': did you mean 'view1'"):
        SimSiam(*parts, predictor="view2", input_size=8)


# Backbones


BACKBONES = {
    "published place": ("simclrv2_r50_1x", lambda: {"resnet": hollow("simclrv2_r50_1x_sk0")["resnet"]}),
    "bare": ("simclrv2_r50_1x_sk1", lambda: hollow("simclrv2_r50_1x_sk1")["resnet"]),
    "bare torchvision": ("barlow_twins", torchvision_backbone),
    "torchvision as state_dict": ("simsiam", lambda: {"state_dict": torchvision_backbone(), "epoch": 7}),
}


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_backbone_alone_gets_the_identity_as_head_and_a_line_in_the_log(kind, path, caplog):
    name, content = BACKBONES[kind]
    model = loaded(name, saved(content(), path))
    assert isinstance(model.head, nn.Identity)
    assert model.symmetric
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), model.features(x).mean((2, 3)))
    assert f"{path} holds a backbone alone: model {name} gets the identity as head" in caplog.text
