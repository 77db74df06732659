"""Checkpoints: what training keeps beside the weights is left alone, and a file that does not fit is refused."""

import argparse
import hashlib
import io
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from toy_checkpoints import hollow, loaded, loader, saved, torchvision_backbone
from twinsight.errors import UserError
from twinsight.models import SimSiam, save_model, small_two_view


def refused(name, path, **options):
    with pytest.raises(UserError) as caught:
        loaded(name, path, **options)
    assert f"`checkpoint={path}`" in str(caught.value)
    return str(caught.value)


# What is read


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


def test_the_same_keys_are_read_from_safetensors(path):
    content = hollow("simsiam")["state_dict"]
    flat = {f"state_dict.{key}": value.contiguous() for key, value in content.items()}
    save_file(flat, path)
    assert isinstance(loaded("simsiam", path), SimSiam)


# Files that are not what was asked for


def test_a_renamed_key_is_named_with_what_stands_instead(path):
    content = hollow("simclrv2_r50_1x_sk0")
    content["head"]["layers.0.kernel"] = content["head"].pop("layers.0.weight")
    message = refused("simclrv2_r50_1x", saved(content, path))
    assert "does not fit model 'simclrv2_r50_1x': expected 336 tensors in resnet, head" in message
    assert "found 336 tensors in resnet, head" in message
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


def test_a_backbone_alone_has_no_predictor_to_choose(path):
    saved(torchvision_backbone(), path)
    assert "holds a backbone alone, without a predictor" in refused("simsiam", path, predictor="both")


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


def test_a_foreign_layout_is_described_by_what_was_expected_and_found(path):
    message = refused("simclrv2_r50_1x", saved(hollow("barlow_twins"), path))
    assert "expected 336 tensors in resnet, head, found 334 tensors in model" in message
    assert "336 missing, first `resnet.net.0.0.weight`" in message
    assert "334 unexpected, first `model.module.backbone.conv1.weight`" in message


def test_a_file_of_ours_says_how_to_load_it(tmp_path):
    save_model(small_two_view(), tmp_path / "weights.safetensors", {})
    assert "fit model pretrained" in refused("barlow_twins", tmp_path / "weights.safetensors")


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


def test_truncated_safetensors_are_refused_as_such(path):
    save_file({"resnet.weight": torch.rand(1000)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    assert "is not safetensors, or truncated" in refused("simclrv2_r50_1x", path)


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
