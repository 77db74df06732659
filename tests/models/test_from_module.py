"""Any network as a two-view model: what is read and continued by hooks is what the network itself computes."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer, densenet121, resnet18, swin_t

from twinsight.engine import PairBank
from twinsight.errors import UserError
from twinsight.explainers import GradCAM, InputXGradient, InteractionCAM, LaFAM
from twinsight.models import HookedModel, TwoViewModel

SIDE = 32


class Convolutional(nn.Module):
    """A network whose forward cannot be split: functions between modules, layers in place."""

    def __init__(self, inplace=True):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=inplace)
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=inplace))
        self.last = nn.Conv2d(8, 10, 3, padding=1)
        self.fc = nn.Linear(10, 5)
        for layer in (self.stem, self.body[0], self.last):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x):
        x = self.act(self.stem(x)) * 0.5
        x = F.relu_(self.last(self.body(x)))
        return {"logits": self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)), "other": x}


class Transformer(nn.Module):
    """Tokens with a class token, registers, and either as the embedding."""

    def __init__(self, pool="class", registers=2):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 8, stride=8)
        self.prefix = nn.Parameter(torch.randn(1, 1 + registers, 8))
        self.blocks = nn.ModuleList(Block(8) for _ in range(3))
        self.norm = nn.LayerNorm(8)
        self.pool = pool

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return tokens[:, 0] if self.pool == "class" else tokens[:, self.prefix.shape[1] :].mean(dim=1)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens):
        normed = self.norm1(tokens)
        tokens = tokens + self.attention(normed, normed, normed)[0]
        return tokens + self.mlp(self.norm2(tokens))


class Siamese(nn.Module):
    """One encoder, called on both images in one forward; a predictor on the first side alone would not run twice."""

    def __init__(self):
        super().__init__()
        self.encoder = Convolutional()

    def forward(self, x1, x2):
        return self.encoder(x1)["logits"], -self.encoder(x2)["logits"]


class Bypassed(nn.Module):
    """What follows `conv` also reads the image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return (self.conv(x) * x.mean(dim=1, keepdim=True)).mean(dim=(-2, -1))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def images(count=2, side=SIDE):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def assert_faithful(model, expected, x=None):
    """Whole and in two parts, the embedding is the network's own."""
    x = images() if x is None else x
    with torch.no_grad():
        whole = model(x.clone())
        parts = model.embed(model.features(x.clone()).clone())
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(parts, expected)


def test_a_network_that_cannot_be_split_is_read_and_continued_at_its_layer():
    network = Convolutional().eval()
    with torch.no_grad():
        expected = network(images())
    model = TwoViewModel.from_module(network, feature_layer="last", head="fc", input_size=SIDE)
    assert isinstance(model, HookedModel)
    assert_faithful(model, expected["logits"])
    assert model.features(images()).shape == (2, 10, 8, 8)


@pytest.mark.parametrize("output", ["logits", lambda answer: answer["logits"]])
def test_the_embedding_may_be_a_part_of_the_answer(output):
    network = Convolutional().eval()
    model = TwoViewModel.from_module(network, output=output, input_size=SIDE)
    assert model.feature_layer == "last"
    assert_faithful(model, network(images())["logits"].detach())


def test_a_module_may_stand_on_the_pooled_feature_map():
    network = Convolutional().eval()
    model = TwoViewModel.from_module(network, feature_layer="body", head=nn.Identity(), input_size=SIDE)
    with torch.no_grad():
        expected = network.body(network.act(network.stem(images())) * 0.5).mean(dim=(-2, -1))
    assert_faithful(model, expected)
    assert model.mean_pooled


NETWORKS = {
    "resnet": (lambda: resnet18(), 64, "layer4", "map"),
    "densenet": (lambda: densenet121(), 64, "features", "map"),
    "swin": (lambda: swin_t(), 64, "permute", "map"),
    "class token": (lambda: Transformer(), 32, "blocks.1", "tokens"),
    "mean of tokens": (lambda: Transformer(pool="mean"), 32, "norm", "tokens"),
    "functions": (lambda: nn.Sequential(Convolutional(), Part("logits")), 32, "0.last", "map"),
}


class Part(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, answer):
        return answer[self.name]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_layer_that_decides_the_embedding_is_found(name):
    make, side, layer, kind = NETWORKS[name]
    network = make().eval()
    model = TwoViewModel.from_module(network, input_size=side)
    assert (model.feature_layer, model.layout.kind) == (layer, kind)
    assert_faithful(model, network(images(side=side)).detach(), images(side=side))


def test_channels_last_layers_become_feature_maps():
    network = swin_t().eval()
    model = TwoViewModel.from_module(network, feature_layer="norm", input_size=64)
    assert model.layout.kind == "channels_last"
    assert model.features(images(side=64)).shape == (2, 768, 2, 2)
    assert_faithful(model, network(images(side=64)).detach(), images(side=64))


def test_class_tokens_and_registers_lie_in_rows_above_the_image():
    network = Transformer(registers=4).eval()
    model = TwoViewModel.from_module(network, "blocks.1", input_size=SIDE)
    seen = []
    handle = network.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    features = model.features(images())
    handle.remove()
    assert model.prefix_rows == 2  # five tokens in rows of four
    assert features.shape == (2, 8, 2 + 4, 4)
    torch.testing.assert_close(features[..., :2, :].flatten(2)[..., :5], seen[0][:, :5].transpose(1, 2))
    torch.testing.assert_close(model.on_image(features).flatten(2), seen[0][:, 5:].transpose(1, 2))


def test_a_gradient_at_tokens_is_that_of_the_network():
    """Grad-CAM on tokens against the gradient taken by hand at the input of the last block."""
    network = Transformer().eval()
    model = TwoViewModel.from_module(network, input_size=SIDE)
    x1, x2 = images()[:1], images()[1:]

    def tail(tokens):
        return network.norm(network.blocks[2](tokens))[:, 0]

    seen = []
    handle = network.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    z2 = network(x2).detach()
    network(x1)
    handle.remove()
    tokens = seen[1].requires_grad_()
    gradient = torch.autograd.grad(F.cosine_similarity(tail(tokens), z2).sum(), tokens)[0]
    expected = (tokens * gradient[:, 3:].mean(dim=1, keepdim=True))[:, 3:].sum(dim=-1).relu().view(1, 4, 4)
    found = GradCAM(model)(x1, x2).map1
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(GradCAM(model, layer="network.blocks.1")(x1, x2).map1, found, rtol=1e-4, atol=1e-6)


def test_a_shared_encoder_that_is_called_twice_has_two_views():
    network = Siamese().eval()
    model = TwoViewModel.from_module(
        network, feature_layer="encoder.last", both_views=True, input_size=SIDE, similarity="dot"
    )
    x1, x2 = images()[:1], images()[1:]
    expected = network(x1.clone(), x2.clone())
    for view, x in ((1, x1), (2, x2)):
        torch.testing.assert_close(model(x, view), expected[view - 1])
        torch.testing.assert_close(model.embed(model.features(x, view).clone(), view), expected[view - 1])
    by_head = TwoViewModel.from_module(network, "encoder.last", head="encoder.fc", both_views=True, input_size=SIDE)
    torch.testing.assert_close(by_head(x2, 2), -expected[1])
    explanation = InteractionCAM(model)(x1, x2)
    torch.testing.assert_close(explanation.score, (expected[0] * expected[1]).sum(dim=1).detach())


def test_what_a_network_of_another_kind_lacks_is_said():
    with pytest.raises(UserError, match="`both_views` needs `feature_layer`: name the layer of the encoder"):
        TwoViewModel.from_module(Siamese().eval(), both_views=True, input_size=SIDE)
    model = TwoViewModel.from_module(Convolutional().eval(), "last", "fc", input_size=SIDE)
    with pytest.raises(UserError, match="this needs a vision transformer, with blocks that take all tokens"):
        model.first_block()


def test_layers_in_place_change_no_explanation():
    plain, inplace = Convolutional(inplace=False).eval(), Convolutional().eval()
    inplace.load_state_dict(plain.state_dict())
    x1, x2 = images()[:1], images()[1:]
    for layer in ("stem", "body", "last"):
        models = [TwoViewModel.from_module(each, layer, "fc", input_size=SIDE) for each in (plain, inplace)]
        for kind in (GradCAM, InteractionCAM, LaFAM, InputXGradient):
            first, second = (kind(model)(x1, x2) for model in models)
            assert torch.equal(first.map1, second.map1)
            assert torch.equal(first.map2, second.map2)


@pytest.mark.parametrize("how", ["channels last", "half", "bfloat16", "frozen", "training"])
def test_networks_are_explained_in_whatever_state_they_are(how):
    network = Convolutional(inplace=False).eval()
    x1, x2 = images()[:1], images()[1:]
    model = TwoViewModel.from_module(network, "last", "fc", similarity="dot", input_size=SIDE)
    expected = GradCAM(model, form="elementwise")(x1, x2).map1
    changed = copy.deepcopy(network)
    if how == "channels last":
        changed = changed.to(memory_format=torch.channels_last)
    elif how in ("half", "bfloat16"):
        changed = changed.to(torch.half if how == "half" else torch.bfloat16)
    elif how == "frozen":
        changed.requires_grad_(False)
    else:
        changed.train()
    before = (changed.training, [parameter.requires_grad for parameter in changed.parameters()])
    model = TwoViewModel.from_module(changed, "last", "fc", similarity="dot", input_size=SIDE)
    found = GradCAM(model, form="elementwise")(x1, x2)
    assert found.map1.dtype == found.score.dtype == torch.float32
    exact = how in ("frozen", "training")
    largest = expected.abs().max()
    torch.testing.assert_close(found.map1 / largest, expected / largest, rtol=0, atol=0 if exact else 0.1)
    assert InputXGradient(model)(x1, x2).map1.dtype == torch.float32
    assert PairBank(model).embedding(x1[0]).dtype == torch.float32
    assert (model.network.training, [parameter.requires_grad for parameter in changed.parameters()]) == before


def test_nothing_before_the_layer_is_computed_when_a_pass_goes_on_there():
    network = resnet18().eval()
    model = TwoViewModel.from_module(network, input_size=64)
    features = model.features(images(side=64))
    ran = []
    for name, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    model.embed(features)
    assert ran == ["avgpool", "fc"]


def test_the_network_is_left_as_it_was_also_when_something_raises():
    network = Convolutional().train()
    state = {name: dict(vars(module)) for name, module in network.named_modules()}
    model = TwoViewModel.from_module(network, "body", "fc", input_size=SIDE)
    features = model.features(images())
    with pytest.raises(RuntimeError):
        model.embed(features[:, :3])
    for name, module in network.named_modules():
        assert "forward" not in vars(module)
        assert vars(module).keys() == state[name].keys()
        assert not module._forward_hooks
        assert module.training


# Layer, head and further options of Convolutional, and what is said about them.
WRONG = {
    "no such layer": (("lasts", "fc", {}), "unknown `feature_layer` 'lasts': did you mean 'last'"),
    "no such head": (("last", "fcs", {}), "unknown `head` 'fcs'"),
    "no map": (
        ("fc", "fc", {}),
        "`feature_layer=fc` must give feature maps (B, C, H, W), or tokens (B, N, C), got (1, 5)",
    ),
    "no vector": (("stem", "last", {}), "`head=last` must be embeddings (B, d), got (1, 10, 8, 8)"),
    "many answers": (
        ("last", None, {}),
        "the answer of Convolutional must be embeddings (B, d), got dict of logits, other: name the part of it as",
    ),
    "no such part": (("last", None, {"output": "z"}), "`output=z` is no part of the network's answer, dict of logits"),
    "twice": (("last", "fc", {"both_views": True}), "takes 2 positional arguments but 3 were given"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused_by_its_name(what):
    (layer, head, options), message = WRONG[what]
    with pytest.raises(UserError, match=re.escape(message)):
        TwoViewModel.from_module(Convolutional(), layer, head=head, input_size=SIDE, **options)


def test_a_layer_that_does_not_decide_alone_is_refused():
    with pytest.raises(UserError, match="does not depend on `feature_layer=conv` alone, but on what was computed"):
        TwoViewModel.from_module(Bypassed(), "conv", input_size=SIDE)
    with pytest.raises(UserError, match=r"no layer of Bypassed gives feature maps .* that decide the embedding alone"):
        TwoViewModel.from_module(Bypassed(), input_size=SIDE)
    with pytest.raises(UserError, match=r"`feature_layer=blocks\.2\.norm1` alone"):
        TwoViewModel.from_module(Transformer(), "blocks.2.norm1", input_size=SIDE)


def test_a_layer_that_runs_more_than_once_is_refused():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    network = nn.Sequential(conv, conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match="`feature_layer=0` runs 2 times in one pass: choose one that runs once"):
        TwoViewModel.from_module(network, "0", input_size=SIDE)
    with pytest.raises(UserError, match=r"`feature_layer=0\.encoder\.last` runs 2 times"):
        TwoViewModel.from_module(nn.Sequential(Twice()), "0.encoder.last", input_size=SIDE)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Convolutional()

    def forward(self, x):
        return self.encoder(x)["logits"] + self.encoder(x.flip(-1))["logits"]


def test_tokens_that_are_no_square_are_refused_where_their_prefix_is_known():
    with pytest.raises(UserError, match=r"must give a square number of tokens and 1 more, got 19: see `prefix_tokens`"):
        TwoViewModel.from_module(Transformer(), "blocks.1", prefix_tokens=1, input_size=SIDE)


def test_something_that_is_no_module_is_refused():
    with pytest.raises(UserError, match=r"`network` must be a torch\.nn\.Module, got function"):
        TwoViewModel.from_module(lambda x: x)


def test_a_torchvision_transformer_is_cut_before_its_last_block():
    network = VisionTransformer(64, 16, 3, 2, 16, 32).eval()
    network.heads = nn.Identity()
    model = TwoViewModel.from_module(network, input_size=64)
    assert model.feature_layer == "encoder.layers.encoder_layer_1"
    assert model.prefix_rows == 1
    assert_faithful(model, network(images(side=64)).detach(), images(side=64))
