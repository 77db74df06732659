"""Models by name and weight files of our own: what is written comes back, and what is not ours is refused."""

import hashlib
import json
import pickle
import traceback

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from twinsight.errors import UserError
from twinsight.models import (
    TwoViewModel,
    available_models,
    load_model,
    save_model,
    saved_input_size,
    small_two_view,
    weights_digest,
)

FIGURES = {"method": "SimCLR", "epochs": 3, "knn_accuracy": 0.5, "recipe": {"temperature": 0.2}}
OPTIONS = {"widths": (8, 16), "blocks": 1, "hidden": 12, "embedding": 6, "input_size": 24}


@pytest.fixture
def model():
    """Small, with running statistics that differ from their initial values."""
    torch.manual_seed(0)
    network = small_two_view(**OPTIONS)
    network.train()
    network(torch.rand(8, 3, 24, 24))
    return network.eval()


@pytest.fixture
def file(model, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_model(model, path, FIGURES)
    return path


def contents(path):
    """Tensors and metadata of a weight file, read without our code."""
    header = path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]
    return load_file(path), json.loads(header)["__metadata__"]


# What is written comes back


def test_weights_and_embeddings_come_back_bit_for_bit(model, file):
    loaded = load_model("demo_simclr", checkpoint=file)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    x = torch.randn(3, 3, 24, 24)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_architecture_figures_size_and_normalization_come_back(model, file):
    loaded = load_model("demo_simclr", checkpoint=file)
    assert loaded.figures == FIGURES
    assert loaded.input_size == 24
    assert loaded.normalization == model.normalization
    assert loaded.architecture == model.architecture
    assert not any(module.training for module in loaded.modules())


def test_a_loaded_model_can_be_saved_again(file, tmp_path):
    again = tmp_path / "again.safetensors"
    save_model(load_model("demo_simclr", checkpoint=file), again, FIGURES)
    assert again.read_bytes() == file.read_bytes()


def test_channels_last_weights_come_back(model, tmp_path):
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(model.to(memory_format=torch.channels_last), tmp_path / "a.safetensors", {})
    for name, value in load_model("demo_simclr", checkpoint=tmp_path / "a.safetensors").state_dict().items():
        assert torch.equal(value, expected[name])


def test_size_and_similarity_can_be_chosen_when_loading(file):
    loaded = load_model("demo_simclr", checkpoint=str(file), similarity="dot", input_size=40)
    assert loaded.input_size == 40
    assert loaded.similarity(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])).item() == 11


def test_a_tilde_in_the_path_stands_for_the_home_folder(file, monkeypatch):
    monkeypatch.setenv("HOME", str(file.parent))
    assert load_model("demo_simclr", checkpoint=f"~/{file.name}").input_size == 24


def test_saving_makes_missing_folders_and_leaves_nothing_else_behind(model, tmp_path):
    save_model(model, tmp_path / "deep/er/weights.safetensors", {})
    assert [path.name for path in (tmp_path / "deep/er").iterdir()] == ["weights.safetensors"]


def test_saving_over_a_file_replaces_it(model, file):
    save_model(model, file, {"epochs": 99})
    assert load_model("demo_simclr", checkpoint=file).figures == {"epochs": 99}


def test_a_model_of_unknown_architecture_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="only models built by small_two_view or torchvision_resnet can be saved"):
        save_model(TwoViewModel(nn.Conv2d(3, 4, 3), input_size=8), tmp_path / "a.safetensors", {})
    assert list(tmp_path.iterdir()) == []


def test_the_untrained_demo_network_has_the_options_it_is_given():
    model = small_two_view(widths=[4, 8, 8], blocks=2, hidden=10, embedding=5, input_size=32)
    assert model.features(torch.rand(2, 3, 32, 32)).shape == (2, 8, 4, 4)  # an eighth of the side
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 5)


# Files that are not ours


def refused(path):
    """What is said about a file, without the traceback of whatever read it."""
    with pytest.raises(UserError) as caught:
        load_model("demo_simclr", checkpoint=path)
    shown = "".join(traceback.format_exception(caught.value))
    assert "During handling" not in shown
    assert "direct cause" not in shown
    assert f"`checkpoint={path}`" in str(caught.value)
    return str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    assert "no such file" in refused(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(file, size):
    file.write_bytes(file.read_bytes()[:size])
    assert "not a twinsight weight file" in refused(file)


def test_a_pickle_is_refused_without_being_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",))

    path = tmp_path / "weights.ckpt"
    path.write_bytes(pickle.dumps(Trap()))
    message = refused(path)
    assert "task=pretrain" in message
    assert "not a twinsight weight file" in message
    assert not (tmp_path / "sprung").exists()


def test_a_torch_checkpoint_is_refused(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert "not a twinsight weight file" in refused(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"twinsight": "no json"},
        {"twinsight": "[]"},
        {"twinsight": "{}"},
        {"twinsight": '{"architecture": null, "input_size": 24}'},
        {"twinsight": '{"architecture": {"name": "small_two_view"}, "input_size": 24}'},
        {"twinsight": '{"architecture": {"name": "small_two_view", "options": {}}}'},
    ],
)
def test_safetensors_without_our_metadata_are_refused(file, metadata):
    save_file(load_file(file), file, metadata=metadata)
    assert "not a twinsight weight file" in refused(file)


def rewritten(file, tensors=None, **described):
    """The file with other tensors, or described by other metadata."""
    before, metadata = contents(file)
    ours = json.loads(metadata["twinsight"]) | described
    save_file(before if tensors is None else tensors, file, metadata={"twinsight": json.dumps(ours)})
    return file


def test_a_renamed_weight_is_named(file):
    tensors, _ = contents(file)
    tensors["trunk.stem.kernel"] = tensors.pop("trunk.stem.weight")
    message = refused(rewritten(file, tensors))
    assert "trunk.stem.kernel" in message
    assert "trunk.stem.weight" in message


def test_a_weight_of_the_wrong_shape_is_named(file):
    tensors, _ = contents(file)
    tensors["trunk.stem.weight"] = torch.zeros(8, 3, 5, 5)
    message = refused(rewritten(file, tensors))
    assert "trunk.stem.weight" in message
    assert "does not hold the weights it describes" in message


def test_an_unknown_architecture_in_a_file_is_named(file):
    message = refused(rewritten(file, architecture={"name": "small_two_views", "options": {}}))
    assert f"unknown architecture in `checkpoint={file}` 'small_two_views': did you mean 'small_two_view'" in message


def test_an_option_that_the_architecture_does_not_take_is_named(file):
    options = {"widths": [8, 16], "depth": 3}
    assert "depth" in refused(rewritten(file, architecture={"name": "small_two_view", "options": options}))


def test_a_size_that_makes_no_sense_is_named(file):
    for size in (0, -1):
        with pytest.raises(UserError, match=f"`input_size` must be positive, got {size}"):
            load_model("demo_simclr", checkpoint=file, input_size=size)


# Names


def test_an_unknown_model_is_named_with_the_nearest():
    with pytest.raises(UserError, match="unknown model 'demo_simcrl': did you mean 'demo_simclr'"):
        load_model("demo_simcrl")


@pytest.mark.parametrize("name", available_models())
def test_every_bundled_model_loads_and_says_how_good_it_is(name):
    model = load_model(name)
    assert not model.training
    assert 0.5 < model.figures["knn_accuracy"] <= 1
    assert model.figures["recipe"]
    assert model(torch.zeros(2, 3, 64, 64)).shape[0] == 2


def test_the_bundled_demo_finds_two_crops_of_a_photo_more_alike_than_two_photos():
    from twinsight.data import DemoPhotos, PairDataModule, SimCLRViews

    model = load_model("demo_simclr")
    data = PairDataModule(DemoPhotos(), SimCLRViews(64, strength=0.5), model.normalization, batch_size=64)
    (batch,) = data.predict_dataloader()
    with torch.no_grad():
        z1, z2 = model(batch.view1), model(batch.view2)
    same = model.similarity(z1, z2)
    other = model.similarity(z1, model(batch.partner_view2).detach())
    assert same.mean() > other.mean() + 0.2


# Digests


def test_the_digest_of_a_loaded_model_is_that_of_its_file(file):
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert weights_digest(load_model("demo_simclr", checkpoint=file)) == expected
    assert weights_digest(load_model("demo_simclr", checkpoint=file, input_size=40, similarity="dot")) == expected


def test_equal_weights_have_equal_digests_wherever_they_come_from(model):
    torch.manual_seed(1)
    other = small_two_view(**OPTIONS)
    assert weights_digest(other) != weights_digest(model)
    other.load_state_dict(model.state_dict())
    assert weights_digest(other) == weights_digest(model) == weights_digest(model)


def test_the_digest_changes_with_a_single_weight_or_statistic(model):
    digests = {weights_digest(model)}
    for name in ("trunk.stem.weight", "head.4.bias", "trunk.stem_norm.running_mean", "head.1.num_batches_tracked"):
        model.state_dict()[name].view(-1)[0] += 1
        digests.add(weights_digest(model))
    assert len(digests) == 5


def test_the_digest_of_a_file_changes_with_a_single_weight(model, file, tmp_path):
    with torch.no_grad():
        model.trunk.stem.weight[0, 0, 0, 0] += 1e-3
    save_model(model, tmp_path / "other.safetensors", FIGURES)
    other = load_model("demo_simclr", checkpoint=tmp_path / "other.safetensors")
    assert weights_digest(other) != weights_digest(load_model("demo_simclr", checkpoint=file))


def test_the_digest_does_not_depend_on_memory_layout(model):
    before = weights_digest(model)
    assert weights_digest(model.to(memory_format=torch.channels_last)) == before


def test_the_digest_tells_types_and_shapes_apart():
    def holding(tensor):
        module = nn.Module()
        module.register_buffer("values", tensor)
        return weights_digest(module)

    zeros = (torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(2, dtype=torch.float64))
    assert len({holding(tensor) for tensor in zeros}) == 4


# The name for a network of one's own


def test_a_network_of_ones_own_loads_by_an_obvious_name(model, file):
    loaded = load_model("pretrained", checkpoint=file)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert weights_digest(loaded) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_network_of_ones_own_needs_its_file():
    with pytest.raises(UserError, match=r"`checkpoint` of model 'pretrained' is missing: give a .safetensors file"):
        load_model("pretrained")


def test_the_size_a_file_was_made_for_is_known_without_its_weights(file, tmp_path):
    assert saved_input_size(file) == saved_input_size(str(file)) == 24
    assert saved_input_size(None) == saved_input_size(tmp_path / "nowhere.safetensors") == 64
    torch.save({}, tmp_path / "foreign.pth")
    assert saved_input_size(tmp_path / "foreign.pth", default=32) == 32
