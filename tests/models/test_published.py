"""Published models: their files fill them to the golden embeddings, and whatever else a file holds is refused."""

import argparse
import hashlib
import io
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from toy import load_golden
from toy_checkpoints import EMBEDDINGS, LAYOUTS, flat_shapes, hollow, loader, write_filled
from twinsight.errors import UserError
from twinsight.models import (
    SimCLRv2ResNet,
    SimSiam,
    build_model,
    load_model,
    published_models,
    save_model,
    small_two_view,
    weights_digest,
)
from twinsight.models.published import PUBLISHED, models_that_fit

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def path(tmp_path):
    yield tmp_path / "checkpoint.pth"
    for file in tmp_path.iterdir():  # pytest keeps folders of past runs, and these files are large
        file.unlink()


def saved(content, path, **options):
    torch.save(content, path, **options)
    return path


def loaded(name, path, **options):
    """As small as it can be, where it does not matter what the model computes."""
    return load_model(name, checkpoint=path, **{"input_size": 32, **options})


def refused(name, path, **options):
    with pytest.raises(UserError) as caught:
        loaded(name, path, **options)
    assert f"`checkpoint={path}`" in str(caught.value)
    return str(caught.value)


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


# Other ways in which the same weights are kept


def test_what_training_keeps_beside_the_weights_is_left_alone(path):
    state = {0: {"momentum": torch.zeros(3)}}
    extra = {"epoch": 7, "args": argparse.Namespace(arch="resnet50", lr=0.1), "optimizer": {"state": state}}
    model = loaded("simsiam", saved({**hollow("simsiam"), **extra}, path))
    assert isinstance(model, SimSiam)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_file_of_the_old_format_is_read(path):
    saved(hollow("simclrv2_r50_1x_sk0"), path, _use_new_zipfile_serialization=False)
    assert loaded("simclrv2_r50_1x", path).checkpoint_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_half_precision_weights_compute_in_single_precision(path):
    content = {"state_dict": {key: value.half() for key, value in hollow("simsiam")["state_dict"].items()}}
    model = loaded("simsiam", saved(content, path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


BACKBONES = {
    "published place": ("simclrv2_r50_1x", lambda: {"resnet": hollow("simclrv2_r50_1x_sk0")["resnet"]}),
    "bare": ("simclrv2_r50_1x_sk1", lambda: hollow("simclrv2_r50_1x_sk1")["resnet"]),
    "bare torchvision": ("barlow_twins", lambda: torchvision_backbone()),
    "torchvision as state_dict": ("simsiam", lambda: {"state_dict": torchvision_backbone(), "epoch": 7}),
}


def torchvision_backbone():
    prefix = "module.backbone."
    items = hollow("barlow_twins")["model"].items()
    return {key.removeprefix(prefix): value for key, value in items if key.startswith(prefix)}


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_backbone_alone_gets_the_identity_as_head_and_a_line_in_the_log(kind, path, caplog):
    name, content = BACKBONES[kind]
    model = loaded(name, saved(content(), path))
    assert isinstance(model.head, nn.Identity)
    assert model.symmetric
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), model.features(x).mean((2, 3)))
    assert f"{path} holds a backbone alone: model {name} gets the identity as head" in caplog.text


def test_a_backbone_alone_has_no_predictor_to_choose(path):
    saved(torchvision_backbone(), path)
    assert "holds a backbone alone, without a predictor" in refused("simsiam", path, predictor="both")


# Files that are not what was asked for


def test_a_renamed_key_is_named_with_what_stands_instead(path):
    content = hollow("simclrv2_r50_1x_sk0")
    content["head"]["layers.0.kernel"] = content["head"].pop("layers.0.weight")
    message = refused("simclrv2_r50_1x", saved(content, path))
    assert "does not fit model 'simclrv2_r50_1x': expected 336 tensors in resnet, head" in message
    assert "found 338 tensors in resnet, head" in message
    assert "1 missing, first `head.layers.0.weight`; 1 unexpected, first `head.layers.0.kernel`" in message
    assert "of another shape" not in message
    assert "fits no other published model" in message


def test_a_wrong_shape_is_named_with_both(path):
    content = hollow("barlow_twins")
    content["model"]["module.projector.6.weight"] = torch.zeros(1).expand(4096, 8192)
    message = refused("barlow_twins", saved(content, path))
    assert (
        "1 of another shape, first `model.module.projector.6.weight`: expected (8192, 8192), found (4096, 8192)"
        in message
    )
    assert "missing" not in message


def test_half_a_head_is_not_a_backbone(path):
    content = hollow("simsiam")
    content["state_dict"] = {key: value for key, value in content["state_dict"].items() if "predictor" not in key}
    assert "8 missing, first `state_dict.module.predictor.0.weight`" in refused("simsiam", saved(content, path))


def test_a_classifier_is_not_a_published_backbone(path):
    content = {**torchvision_backbone(), "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    assert "2 unexpected, first `fc.weight`" in refused("barlow_twins", saved(content, path))


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("simclrv2_r50_1x", "simclrv2_r50_2x_sk0"),
        ("simclrv2_r50_1x", "simclrv2_r50_1x_sk1"),
        ("simclrv2_r101_1x", "simclrv2_r50_1x_sk0"),
        ("simclrv2_r50_1x", "barlow_twins"),
        ("barlow_twins", "simsiam"),
        ("simsiam", "simclrv2_r50_1x_sk0"),
        ("demo_simclr", "barlow_twins"),
    ],
)
def test_the_file_of_another_model_says_which_model_it_fits(asked, given, path):
    message = refused(asked, saved(hollow(given), path))
    assert message.endswith(f"The file fits model {loader(given)}")


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_fits_one_model(name):
    assert models_that_fit(flat_shapes(name)) == [loader(name)]


def test_a_foreign_layout_is_described_by_what_was_expected_and_found(path):
    message = refused("simclrv2_r50_1x", saved(hollow("barlow_twins"), path))
    assert "expected 336 tensors in resnet, head, found 334 tensors in model" in message
    assert "336 missing, first `resnet.net.0.0.weight`" in message
    assert "334 unexpected, first `model.module.backbone.conv1.weight`" in message


def test_a_file_of_ours_says_how_to_load_it(tmp_path):
    save_model(small_two_view(), tmp_path / "weights.safetensors", {})
    assert "fit model demo_simclr" in refused("barlow_twins", tmp_path / "weights.safetensors")


@pytest.mark.parametrize("content", [[], {}, torch.zeros(3), {"epoch": 7}])
def test_a_file_without_weights_is_refused(content, path):
    assert "expected 336 tensors in resnet, head, found " in refused("simclrv2_r50_1x", saved(content, path))


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, sprung):
        self.sprung = sprung

    def __reduce__(self):
        return os.system, (f"touch {self.sprung}",)


@pytest.mark.parametrize("how", ["zip", "old", "pickle"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_pickled_object_is_named_and_does_not_run(how, path):
    sprung = path.with_name("sprung")
    content = {**hollow("simclrv2_r50_1x_sk0"), "args": argparse.Namespace(callback=Trap(sprung))}
    if how == "pickle":
        path.write_bytes(pickle.dumps({"args": Trap(sprung)}, protocol=2))
    else:
        saved(content, path, _use_new_zipfile_serialization=how == "zip")
    message = refused("simclrv2_r50_1x", path)
    if how != "pickle":
        assert f"holds a pickled object, `{os.system.__module__}.system`, which could run code" in message
        assert "save its tensors alone" in message
    assert not sprung.exists()


def test_an_object_beyond_the_allowed_ones_is_named(path):
    message = refused("barlow_twins", saved({**hollow("barlow_twins"), "args": argparse.Namespace(out=Path())}, path))
    assert f"`{type(Path()).__module__}.{type(Path()).__name__}`" in message
    assert "argparse.Namespace are read" in message


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_truncated_file_is_refused_as_such(keep, zipped, path):
    buffer = io.BytesIO()
    torch.save({"resnet": {"weight": torch.rand(100_000)}}, buffer, _use_new_zipfile_serialization=zipped)
    path.write_bytes(buffer.getvalue()[: int(keep * len(buffer.getvalue()))])
    message = refused("simclrv2_r50_1x", path)
    assert f"is truncated or damaged ({path.stat().st_size:,} bytes): fetch it again" in message


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b"version https://git-lfs", b"PK\x05\x06" + bytes(18)])
def test_something_else_under_that_name_is_refused(content, path):
    path.write_bytes(content)
    assert "is not a file of torch.save" in refused("simsiam", path)


def test_a_file_that_is_not_there_is_named(path):
    assert "no such file" in refused("simsiam", path)
    assert "no such file" in refused("simsiam", path.parent)


def test_refusing_a_file_raises_no_other_warnings(path):
    path.write_bytes(pickle.dumps({"a": 1}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused("simsiam", path)


# The file afterwards


def test_a_loaded_model_does_not_hold_on_to_its_file(path):
    model = loaded("simclrv2_r50_1x", saved(hollow("simclrv2_r50_1x_sk0"), path))
    x = torch.rand(1, 3, 32, 32)
    before = model(x)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(os.urandom(size))
    assert torch.equal(model(x), before)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(path) not in maps.read_text()
