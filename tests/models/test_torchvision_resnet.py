"""Torchvision's ResNets as models of ours: what is cut, which weights go in, and that files of ours hold them."""

import hashlib

import pytest
import torch
import torchvision
from torch import nn

from twinsight.errors import UserError
from twinsight.models import load_model, save_model, small_two_view, torchvision_resnet, weights_digest
from twinsight.models.resnet import RESNETS, resnet_trunk

SMALL = {"small_stem": True, "input_size": 32}
BARE = {"embedding": None, "normalization": None, "input_size": 64}


def classifier(name="resnet18", seed=0):
    """Torchvision's own network, with running statistics that differ from their initial values."""
    torch.manual_seed(seed)
    network = torchvision.models.get_model(name, weights=None)
    network.train()
    with torch.no_grad():
        network(torch.rand(4, 3, 64, 64))
    return network.eval()


def torchvision_features(network, x):
    """Layer by layer, as torchvision's forward has them before the average."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    return network.layer4(network.layer3(network.layer2(network.layer1(x))))


@pytest.fixture(scope="module")
def network():
    return classifier()


# What is cut


def test_the_names_are_torchvisions_resnets():
    assert {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152"} < set(RESNETS)
    assert {"wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d"} < set(RESNETS)
    assert not [name for name in RESNETS if "resnet" not in name and "resnext" not in name]


@pytest.mark.parametrize("name", RESNETS)
def test_every_trunk_gives_the_feature_map_of_its_classifier(name):
    with torch.device("meta"):
        whole = torchvision.models.get_model(name, weights=None)
        for small_stem, side in ((False, 2), (True, 8)):
            trunk = resnet_trunk(name, small_stem)
            assert trunk(torch.rand(1, 3, 64, 64)).shape == (1, whole.fc.in_features, side, side)
            assert set(trunk.state_dict()) == {key for key in whole.state_dict() if not key.startswith("fc.")}


def test_the_small_stem_is_a_3x3_convolution_of_stride_1_without_pooling():
    trunk = resnet_trunk("resnet18", small_stem=True)
    names = [name for name, _ in trunk.named_children()]
    assert names == ["conv1", "bn1", "relu", "layer1", "layer2", "layer3", "layer4"]
    assert (trunk.conv1.kernel_size, trunk.conv1.stride, trunk.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    # He et al.'s deviation sqrt(2 / fan_out), within five standard errors of 1728 draws.
    assert trunk.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=5 / (2 * 1728) ** 0.5)


def test_no_activation_is_overwritten():
    assert not any(module.inplace for module in resnet_trunk("resnet18").modules() if isinstance(module, nn.ReLU))


def test_the_head_is_simclrs_as_wide_as_the_trunk_unless_asked():
    head = torchvision_resnet("resnet18", **SMALL).head
    assert [layer.weight.shape for layer in head if isinstance(layer, nn.Linear)] == [(512, 512), (128, 512)]
    head = torchvision_resnet("resnet18", hidden=24, embedding=12, **SMALL).head
    assert [layer.weight.shape for layer in head if isinstance(layer, nn.Linear)] == [(24, 512), (12, 24)]


def test_without_a_head_the_embedding_is_the_pooled_feature_map(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    model = torchvision_resnet("resnet18", tmp_path / "resnet18.pth", **BARE).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = torchvision_features(network, x)
        torch.testing.assert_close(model.features(x), expected)
        torch.testing.assert_close(model(x), expected.mean((2, 3)))


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [
        ("imagenet", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ("cifar10", ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
        ([[0.5, 0.5, 0.5], [0.1, 0.1, 0.1]], ((0.5,) * 3, (0.1,) * 3)),
        (None, None),
    ],
)
def test_the_input_space_is_named_given_or_plain_and_comes_back(normalization, expected, tmp_path):
    model = torchvision_resnet("resnet18", normalization=normalization, **SMALL)
    assert model.normalization == expected
    save_model(model, tmp_path / "a.safetensors", {})
    assert load_model("pretrained", checkpoint=tmp_path / "a.safetensors").normalization == expected


# Files of ours


def test_a_saved_network_comes_back_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    model = torchvision_resnet("resnet18", hidden=24, embedding=12, normalization="cifar10", **SMALL)
    model.train()(torch.rand(4, 3, 32, 32))
    file = tmp_path / "network.safetensors"
    save_model(model.eval(), file, {"epochs": 3})
    loaded = load_model("pretrained", checkpoint=file)
    assert loaded.architecture == model.architecture
    assert (loaded.input_size, loaded.figures) == (32, {"epochs": 3})
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert weights_digest(loaded) == hashlib.sha256(file.read_bytes()).hexdigest()
    save_model(loaded, tmp_path / "again.safetensors", {"epochs": 3})
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


# Weights of classifiers


@pytest.mark.parametrize("place", [None, "state_dict", "model"])
def test_a_classifiers_file_fills_the_trunk_wherever_its_weights_lie(network, tmp_path, place):
    state = network.state_dict()
    torch.save(state if place is None else {place: state, "epoch": 90}, tmp_path / "resnet18.pth")
    model = torchvision_resnet("resnet18", str(tmp_path / "resnet18.pth"), **BARE)
    assert all(torch.equal(value, state[name]) for name, value in model.trunk.state_dict().items())


def test_files_without_counters_of_batches_are_taken_as_torchvision_publishes_them(network, tmp_path):
    old = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    torch.save(old, tmp_path / "resnet18.pth")
    state = torchvision_resnet("resnet18", tmp_path / "resnet18.pth", **BARE).trunk.state_dict()
    assert all(torch.equal(state[name], old[name]) for name in state if name in old)
    assert all(state[name] == 0 for name in state if name not in old)


def test_the_digest_is_that_of_the_file_only_where_the_file_decides_everything(network, tmp_path):
    file = tmp_path / "resnet18.pth"
    torch.save(network.state_dict(), file)
    assert weights_digest(torchvision_resnet("resnet18", file, **BARE)) == hashlib.sha256(file.read_bytes()).hexdigest()
    one, other = (torchvision_resnet("resnet18", file, input_size=64) for _ in range(2))
    assert weights_digest(one) != weights_digest(other), "the heads are random"


def test_an_untrained_head_over_trained_weights_is_said(network, tmp_path, caplog):
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    torchvision_resnet("resnet18", tmp_path / "resnet18.pth", input_size=64)
    assert "the projection head of model resnet18 is untrained, embedding=null leaves it out" in caplog.text


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1"])
def test_torchvisions_weights_are_fetched_checked_and_unpickled_without_code(network, weights, monkeypatch):
    asked = []

    def fetch(url, **options):
        asked.append((url, options))
        return network.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    model = torchvision_resnet("resnet18", weights, **BARE)
    state = network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.trunk.state_dict().items())
    ((url, options),) = asked
    assert url.endswith(".pth")
    assert "resnet18" in url
    assert options["check_hash"]
    assert options["weights_only"]


def test_torchvisions_weights_can_be_fetched_for_every_network():
    for name in RESNETS:
        assert "DEFAULT" in torchvision.models.get_model_weights(name).__members__


def test_weights_that_cannot_be_fetched_ask_for_a_file(monkeypatch):
    def fetch(url, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    message = r"weights DEFAULT of resnet18 cannot be downloaded \(no route to host\): give a file, `checkpoint=FILE`"
    with pytest.raises(UserError, match=message):
        torchvision_resnet("resnet18", "DEFAULT")


# What is refused


def refused(*args, **options):
    with pytest.raises(UserError) as caught:
        torchvision_resnet(*args, **options)
    return str(caught.value)


def test_an_unknown_network_is_named_with_the_nearest():
    assert "unknown torchvision ResNet 'resnet81': did you mean 'resnet18'?" in refused("resnet81")


def test_an_unknown_normalization_is_named_with_the_nearest():
    assert "unknown `normalization` 'imagnet': did you mean 'imagenet'?" in refused("resnet18", normalization="imagnet")


def test_a_missing_file_lists_torchvisions_own_weights(tmp_path):
    assert refused("resnet50", "DEFALT") == (
        "`checkpoint=DEFALT`: no such file. Torchvision's weights of resnet50: IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"
    )


def test_torchvisions_weights_do_not_go_with_the_small_stem():
    assert "`checkpoint=DEFAULT` needs `small_stem=false`" in refused("resnet18", "DEFAULT", **SMALL)


def test_the_file_of_another_network_is_refused_with_the_one_it_fits(network, tmp_path):
    file = tmp_path / "resnet18.pth"
    torch.save(network.state_dict(), file)
    message = refused("resnet34", file)
    assert f"`checkpoint={file}` does not fit resnet34" in message
    assert "missing, first `layer1.2.conv1.weight`" in message
    assert message.endswith("The file fits model torchvision_resnet with name=resnet18")


def test_the_file_of_another_stem_is_refused_with_both_shapes(network, tmp_path):
    file = tmp_path / "resnet18.pth"
    torch.save(network.state_dict(), file)
    message = refused("resnet18", file, **SMALL)
    assert "does not fit resnet18 with small_stem" in message
    assert "first `conv1.weight`: expected (64, 3, 3, 3), found (64, 3, 7, 7)" in message
    torch.save(resnet_trunk("resnet18", small_stem=True).state_dict(), file)
    assert refused("resnet18", file).endswith("with name=resnet18 and small_stem=true")


def test_a_file_of_ours_is_sent_to_the_model_that_loads_it(tmp_path):
    file = tmp_path / "ours.safetensors"
    save_model(small_two_view(widths=(8, 16), blocks=1), file, {})
    assert refused("resnet18", file).endswith("Files that `task=pretrain` wrote fit model pretrained")


def test_a_file_that_fits_nothing_is_said_to(tmp_path):
    torch.save({"weight": torch.zeros(2, 3)}, tmp_path / "linear.pth")
    assert refused("resnet18", tmp_path / "linear.pth").endswith("It fits no other model that is known here")


def test_a_pickled_object_is_refused_without_being_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",))

    torch.save({"conv1.weight": Trap()}, tmp_path / "resnet18.pth")
    assert "holds a pickled object" in refused("resnet18", tmp_path / "resnet18.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_truncated_file_is_refused(network, tmp_path):
    file = tmp_path / "resnet18.pth"
    torch.save(network.state_dict(), file)
    file.write_bytes(file.read_bytes()[:1000])
    assert "truncated" in refused("resnet18", file)
