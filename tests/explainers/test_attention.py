"""Explainers of vision transformers against attention and tokens written out by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from toy import tiny_model
from toy_transformer import TinyTransformer
from twinsight.engine import PairBank
from twinsight.errors import NotApplicable, UserError
from twinsight.explainers import AttentionRollout, ConditionalOcclusion, GradientAttention, TokenOcclusion
from twinsight.explainers.attention import attending
from twinsight.models import TwoViewModel

POOLS = ["class", "mean"]


def transformer(pool="class", **options):
    network = TinyTransformer(pool, **options).eval()
    return network, TwoViewModel.from_module(network, input_size=32)


def views():
    return torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def opened(network, x):
    """The embedding, and the attention of every layer, with softmax written out."""
    tokens, found = network.entering(x), []
    for block in network.blocks:
        q, k, v = block.attention.split(block.norm1(tokens))
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
        found.append(weights)
        tokens = tokens + block.attention.out((weights @ v).transpose(1, 2).flatten(2))
        tokens = tokens + block.mlp(block.norm2(tokens))
    return network.embedded(network.norm(tokens)), found


def read_rows(network, total):
    """Rows of the tokens that the embedding is made of, over the tokens of the image."""
    rows = total[0] if network.pool == "class" else total.mean(dim=0)
    return rows[network.prefix.shape[1] :].view(4, 4)


@pytest.mark.parametrize("pool", POOLS)
def test_rollout_is_the_product_of_attentions_and_connections_past_them(pool):
    network, model = transformer(pool)
    x1, x2 = views()
    found = AttentionRollout(model)(x1, x2)
    for x, heatmap in ((x1, found.map1), (x2, found.map2)):
        _, attentions = opened(network, x)
        total = torch.eye(attentions[0].shape[-1])
        for attention in attentions:
            total = (0.5 * attention[0].mean(dim=0) + 0.5 * torch.eye(len(total))) @ total
        torch.testing.assert_close(heatmap[0], read_rows(network, total).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pool", POOLS)
def test_gradient_attention_passes_on_what_makes_the_pair_similar(pool):
    network, model = transformer(pool)
    x1, x2 = views()
    found = GradientAttention(model)(x1, x2)
    for x, other, heatmap in ((x1, x2, found.map1), (x2, x1, found.map2)):
        z, attentions = opened(network, x.clone().requires_grad_())
        score = F.cosine_similarity(z, network(other).detach()).sum()
        gradients = torch.autograd.grad(score, attentions)
        total = torch.eye(attentions[0].shape[-1])
        for attention, gradient in zip(attentions, gradients, strict=True):
            step = torch.stack([(a * g).clamp(min=0) for a, g in zip(attention[0], gradient[0], strict=True)])
            total = total + step.mean(dim=0) @ total
        expected = read_rows(network, total - torch.eye(len(total))).detach()
        assert expected.max() > 0
        torch.testing.assert_close(heatmap[0], expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("pool", POOLS)
def test_left_out_tokens_are_left_out(pool):
    network, model = transformer(pool)
    x1, x2 = views()
    explainer = TokenOcclusion(model, window=2)
    found = explainer(x1, x2)
    prefix = network.prefix.shape[1]
    base = F.cosine_similarity(network(x1), network(x2))
    for x, other, heatmap in ((x1, x2, found.map1), (x2, x1, found.map2)):
        tokens = network.entering(x)
        for top in range(3):
            for left in range(3):
                places = [row * 4 + column for row in (top, top + 1) for column in (left, left + 1)]
                keep = [n for n in range(tokens.shape[1]) if n - prefix not in places]
                z = network.embedded(network.norm(network.blocks(tokens[:, keep])))
                drop = (base - F.cosine_similarity(z, network(other)))[0].detach()
                torch.testing.assert_close(heatmap[0, top, left], drop, rtol=1e-4, atol=1e-6)
    assert explainer.geometry((32, 32)).window == (16, 16)
    assert found.resized((32, 32))[0].shape == (1, 32, 32)


def test_what_is_left_out_is_not_computed():
    network, model = transformer()
    seen = []
    handle = network.blocks[0].norm1.register_forward_pre_hook(
        lambda module, inputs: seen.append(tuple(inputs[0].shape))
    )
    patched = []
    other = network.patch.register_forward_pre_hook(lambda module, inputs: patched.append(len(inputs[0])))
    bank = PairBank(model, chunk_size=3)
    explainer = TokenOcclusion(model, window=2)
    seen.clear()
    patched.clear()
    explainer(*views(), bank=bank)
    handle.remove()
    other.remove()
    chunks = [shape for shape in seen if shape[1] == 14]
    assert len(chunks) == 6  # nine windows of each view, three at once
    assert all(shape == (3, 14, 8) for shape in chunks)
    assert sum(patched) == 4  # once for each view whole and once for its tokens, never for a window


@pytest.mark.parametrize("kind", [AttentionRollout, GradientAttention, TokenOcclusion])
def test_networks_without_tokens_are_refused_with_the_reason(kind):
    with pytest.raises(NotApplicable, match="vision transformer"):
        kind(tiny_model(0))
    convolutional = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(NotApplicable, match="vision transformer"):
        kind(TwoViewModel.from_module(convolutional, input_size=32))


def test_attention_of_windows_is_refused_with_its_sizes():
    timm = pytest.importorskip("timm")
    network = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(1, 1), num_heads=(2, 2), embed_dim=8
    )
    network.reset_classifier(0)
    with pytest.raises(NotApplicable, match="vision transformer"):
        GradientAttention(TwoViewModel.from_module(network.eval(), input_size=64))


def test_attention_of_multi_head_modules_is_seen():
    network = VisionTransformer(32, 8, 2, 2, 16, 32).eval()
    network.heads = nn.Identity()
    model = TwoViewModel.from_module(network, input_size=32)
    found = AttentionRollout(model)(*views())
    assert found.map1.shape == (1, 4, 4)
    with torch.no_grad(), attending() as attentions:
        network(views()[0])
    assert [tuple(each.shape) for each in attentions] == [(1, 2, 17, 17)] * 2
    torch.testing.assert_close(attentions[0].sum(dim=-1), torch.ones(1, 2, 17))


def test_seeing_attention_changes_no_embedding():
    network, _ = transformer()
    x = views()[0]
    with torch.no_grad():
        expected = network(x)
        with attending():
            torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-6)


def test_options_out_of_range_are_refused():
    _, model = transformer()
    with pytest.raises(UserError, match="unknown `fusion` 'mode'"):
        AttentionRollout(model, fusion="mode")
    with pytest.raises(UserError, match="`window` must be 1 to 3 of the 4 tokens of a side, got 4"):
        TokenOcclusion(model, window=4)
    with pytest.raises(UserError, match="`stride` must be at least 1"):
        TokenOcclusion(model, stride=0)


def test_networks_whose_tokens_cannot_be_left_out_are_refused(monkeypatch):
    with pytest.raises(NotApplicable, match="leaving tokens out needs a vision transformer, read by from_module"):
        TokenOcclusion(tiny_model(0))
    _, model = transformer()
    whole = model.embed_tokens

    def all_or_none(tokens):
        if tokens.shape[1] != model.tokens(model.probe()).shape[1]:
            raise RuntimeError("a table of positions")
        return whole(tokens)

    monkeypatch.setattr(model, "embed_tokens", all_or_none)
    with pytest.raises(NotApplicable, match="this transformer takes all of its tokens or none: a table of positions"):
        TokenOcclusion(model)


def test_painting_over_and_leaving_out_ask_for_the_same_windows():
    _, model = transformer()
    left_out, painted = TokenOcclusion(model, window=2), ConditionalOcclusion(model, window=16, stride=8)
    assert left_out.geometry((32, 32)).tops == painted.geometry((32, 32)).tops
    assert left_out(*views()).map1.shape == painted(*views()).map1.shape
