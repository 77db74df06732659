"""Networks of torchvision, timm and Hugging Face by one line of configuration, without a network to download from."""

import json

import hydra.utils
import pytest
import torch
from torch import nn

from toy_cells import composed
from twinsight.config import validate
from twinsight.errors import UserError
from twinsight.models import HookedModel, huggingface_model, timm_model, torchvision_model


def built(*overrides):
    config = composed(*[each for each in overrides if each], "views=whole")
    validate(config)
    return hydra.utils.instantiate(config.model)


# The tiny cells' own model options do not fit other models, so they are composed anew.
@pytest.fixture(autouse=True)
def _plain_cells(monkeypatch):
    import toy_cells

    monkeypatch.setattr(toy_cells, "TINY", ("trainer=cpu", "logger=none", "data=demo_photos"))


def test_a_network_of_torchvision_is_one_line():
    model = built("model=torchvision", "model.name=mobilenet_v3_small", "model.input_size=64")
    assert isinstance(model, HookedModel)
    assert model.feature_layer == "features"
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1024)


def test_logits_are_the_embedding_where_they_are_asked_for():
    assert torchvision_model("resnet18", embedding="logits", input_size=64)(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


def test_a_transformer_of_torchvision_is_built_for_the_size_of_the_views():
    model = torchvision_model("vit_b_32", input_size=64)
    assert model.prefix_rows == 1
    assert model.features(torch.rand(1, 3, 64, 64)).shape == (1, 768, 3, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torchvision_model("resnet51"), "unknown torchvision network `model.name` 'resnet51': did you mean"),
        (lambda: torchvision_model("resnet18", weights="nowhere.pth"), r"`model.weights=nowhere.pth`: no such file"),
        (lambda: torchvision_model("resnet18", embedding="pool"), "unknown `embedding` 'pool': did you mean 'pooled'"),
        (lambda: timm_model("vit_tiny_patch17"), "unknown timm network `model.name`"),
        (lambda: timm_model("resnet18", options={"depths": 3}), "timm cannot build `model.name=resnet18`"),
        (lambda: huggingface_model("nowhere"), r"`model.path=nowhere` holds no config\.json"),
    ],
)
def test_what_cannot_be_built_is_said_by_name(make, message):
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match=message):
        make()


def test_a_network_of_timm_brings_its_normalisation_and_its_tokens():
    pytest.importorskip("timm")
    model = built(
        "model=timm",
        "model.name=vit_tiny_patch16_224",
        "+model.options.depth=2",
        "model.input_size=64",
    )
    assert model.normalization == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (model.feature_layer, model.prefix_rows) == ("blocks.0", 1)
    assert model.features(torch.rand(1, 3, 64, 64)).shape == (1, 192, 5, 4)


@pytest.fixture
def saved(tmp_path):
    """Folders of save_pretrained, tiny and untrained."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    kinds = {
        "vit": transformers.ViTModel(transformers.ViTConfig(**small, image_size=32, patch_size=8)),
        "dinov2": transformers.Dinov2Model(
            transformers.Dinov2Config(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
            )
        ),
        "clip": transformers.CLIPModel(
            transformers.CLIPConfig(
                vision_config={**small, "image_size": 32, "patch_size": 8},
                text_config={**small, "vocab_size": 99},
                projection_dim=12,
            )
        ),
        "resnet": transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
    }
    for name, model in kinds.items():
        model.eval().save_pretrained(tmp_path / name)
        told = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(told))
    return tmp_path, kinds


@pytest.mark.parametrize("name", ["vit", "dinov2", "clip", "resnet"])
def test_a_folder_of_hugging_face_is_the_network_that_was_saved(saved, name):
    folder, kinds = saved
    model = built("model=huggingface", f"model.path={folder / name}", "model.input_size=32")
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        if name == "clip":
            vision = kinds[name].vision_model(pixel_values=x).pooler_output
            expected = kinds[name].visual_projection(vision)
        else:
            expected = kinds[name](pixel_values=x).pooler_output.flatten(1)
        torch.testing.assert_close(model(x), expected)
    assert model.normalization == ((0.5,) * 3, (0.25,) * 3)
    assert model.on_image(model.features(x)).shape[-1] in (4, 8)


def test_a_custom_model_is_made_of_parts_named_by_their_path():
    model = built(
        "model=custom",
        "model.trunk._target_=torch.nn.Conv2d",
        "+model.trunk.in_channels=3",
        "+model.trunk.out_channels=4",
        "+model.trunk.kernel_size=3",
        "+model.head._target_=torch.nn.Linear",
        "+model.head.in_features=4",
        "+model.head.out_features=2",
        "model.input_size=16",
    )
    assert model(torch.rand(1, 3, 16, 16)).shape == (1, 2)


def test_a_module_of_ones_own_is_read_by_hooks():
    model = built(
        "model=module",
        "model.network._target_=torchvision.models.resnet18",
        "model.feature_layer=layer3",
        "model.head=avgpool",
        "model.input_size=64",
    )
    assert model.features(torch.rand(1, 3, 64, 64)).shape == (1, 256, 4, 4)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 512)


def test_missing_names_are_asked_for():
    with pytest.raises(UserError, match=r"model\.trunk\._target_ is missing"):
        built("model=custom")
    with pytest.raises(UserError, match=r"model\.name is missing"):
        built("model=timm")


def test_a_network_without_a_classifier_keeps_what_it_answers():
    assert isinstance(torchvision_model("squeezenet1_1", input_size=64).network, nn.Module)
