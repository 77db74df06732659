"""The two-view model: parts that do not fit are refused when it is built, and building leaves no trace."""

import math

import pytest
import torch
from torch import nn

from twinsight.errors import UserError
from twinsight.models import AveragePool, MaxPool, TwoViewModel, evaluating


def convolution(channels=8):
    return nn.Conv2d(3, channels, 3, stride=2, padding=1)


class Answer(nn.Module):
    """Whatever it is asked, it answers the same kind of thing."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


class Recorder(nn.Module):
    """Notes shape, mode and gradients of every call."""

    def __init__(self):
        super().__init__()
        self.layer = convolution()
        self.calls = []

    def forward(self, x):
        self.calls.append((tuple(x.shape), self.training, self.layer.weight.requires_grad, torch.is_grad_enabled()))
        return self.layer(x)


class Predictor(TwoViewModel):
    """View 1 is doubled by a predictor, view 2 is not: embeddings differ between the views."""

    symmetric = False

    def embed(self, features, view=1):
        z = super().embed(features, view)
        return 2 * z if view == 1 else z


# What is computed


def test_the_embedding_is_the_head_of_the_mean_of_the_feature_map():
    trunk, head = convolution(), nn.Linear(8, 5)
    model = TwoViewModel(trunk, head, input_size=16)
    x = torch.rand(3, 3, 16, 16)
    features = model.features(x)
    assert features.shape == (3, 8, 8, 8)
    expected = head(trunk(x).flatten(2).sum(-1) / 64)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model.embed(features), expected)


def test_max_pooling_takes_the_largest_value_of_each_channel():
    model = TwoViewModel(convolution(), pool="max", input_size=16)
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(model(x), model.features(x).flatten(2).max(-1).values)


def test_without_a_head_the_embedding_is_the_pooled_feature_map():
    model = TwoViewModel(convolution(), input_size=16)
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(model(x), model.features(x).mean((2, 3)))


def test_a_symmetric_model_treats_both_views_alike():
    model = TwoViewModel(convolution(), nn.Linear(8, 5), input_size=16)
    x = torch.rand(2, 3, 16, 16)
    assert model.symmetric
    assert torch.equal(model(x, view=1), model(x, view=2))


def test_an_asymmetric_model_sends_each_view_its_own_way():
    model = Predictor(convolution(), nn.Linear(8, 5), input_size=16)
    x = torch.rand(2, 3, 16, 16)
    assert not model.symmetric
    torch.testing.assert_close(model(x, view=1), 2 * model(x, view=2))
    assert torch.equal(model(x), model(x, view=1))


def test_the_similarity_is_the_one_that_was_chosen():
    z1, z2 = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    for similarity, expected in (("cosine", 24 / 25), ("dot", 24.0), ("negative_squared_distance", -2.0)):
        model = TwoViewModel(convolution(), similarity=similarity, input_size=16)
        torch.testing.assert_close(model.similarity(z1, z2), torch.tensor([expected]))


def test_a_similarity_of_ones_own_gets_view_1_first():
    model = TwoViewModel(convolution(), similarity=lambda z1, z2: (z1 - 10 * z2).sum(-1), input_size=16)
    assert model.similarity(torch.tensor([[1.0]]), torch.tensor([[2.0]])).item() == -19


def test_an_unknown_similarity_is_named_with_the_nearest():
    with pytest.raises(UserError, match="unknown similarity 'cosin': did you mean 'cosine'"):
        TwoViewModel(convolution(), similarity="cosin", input_size=16)


def test_pixels_undo_the_normalization():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model = TwoViewModel(convolution(), normalization=(mean, std), input_size=16)
    pixels = torch.rand(2, 3, 5, 7)
    normalized = torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(model.pixels(normalized), pixels)


def test_pixels_stay_in_0_to_1():
    for normalization in (None, ((0.5,) * 3, (0.25,) * 3)):
        model = TwoViewModel(convolution(), normalization=normalization, input_size=16)
        pixels = model.pixels(torch.tensor([-9.0, 0.5, 9.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3))
        assert pixels[0, 0, 0, 0] == 0
        assert pixels[0, 0, 0, 2] == 1


def test_pixels_of_an_unnormalized_model_are_its_input():
    x = torch.rand(1, 3, 4, 4)
    assert torch.equal(TwoViewModel(convolution(), input_size=16).pixels(x), x)


def test_pixels_have_the_precision_of_the_input():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model = TwoViewModel(convolution(), normalization=(mean, std), input_size=16)
    pixels = torch.rand(2, 3, 5, 7, dtype=torch.float64)
    normalized = torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(model.pixels(normalized), pixels, rtol=0, atol=1e-14)


# What a model says about itself


def test_mean_pooled_is_true_only_where_the_gradient_is_constant_over_space():
    def gradient_varies_over_space(model):
        features = torch.rand(1, 8, 4, 4, requires_grad=True)
        gradient = torch.autograd.grad(model.embed(features).square().sum(), features)[0].flatten(2)
        return not torch.allclose(gradient, gradient[..., :1].expand_as(gradient))

    average = TwoViewModel(convolution(), nn.Linear(8, 5), input_size=16)
    assert average.mean_pooled
    assert not gradient_varies_over_space(average)
    largest = TwoViewModel(convolution(), nn.Linear(8, 5), pool="max", input_size=16)
    assert not largest.mean_pooled
    assert gradient_varies_over_space(largest)


def test_a_pooling_module_counts_as_mean_only_when_it_is_the_mean():
    assert TwoViewModel(convolution(), pool=AveragePool(), input_size=16).mean_pooled
    assert not TwoViewModel(convolution(), pool=MaxPool(), input_size=16).mean_pooled
    assert not TwoViewModel(convolution(), pool=nn.Flatten(), input_size=16).mean_pooled


def test_an_embed_of_ones_own_is_never_taken_for_mean_pooling():
    assert not Predictor(convolution(), nn.Linear(8, 5), input_size=16).mean_pooled


# Parts that do not fit


@pytest.mark.parametrize(
    ("trunk", "message"),
    [
        (
            nn.Sequential(convolution(), nn.Flatten()),
            r"`trunk` must return feature maps \(B, D, h, w\), got \(1, 512\)",
        ),
        (nn.Sequential(convolution(), nn.Flatten(2)), r"`trunk` must return feature maps .*, got \(1, 8, 64\)"),
        (nn.Conv2d(4, 8, 3), r"`trunk` does not fit images \(1, 3, 16, 16\).*expected input.*to have 4 channels"),
        (nn.Conv2d(3, 8, 17), r"`trunk` does not fit images \(1, 3, 16, 16\)"),
        (Answer(lambda x: (x, x)), "`trunk` must return a tensor, got tuple"),
        (Answer(lambda x: {"features": x}), "`trunk` must return a tensor, got dict"),
    ],
)
def test_a_trunk_that_returns_no_feature_maps_is_refused(trunk, message):
    with pytest.raises(UserError, match=message):
        TwoViewModel(trunk, input_size=16)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Linear(9, 4), r"`head` does not fit pooled feature maps \(1, 8, 8, 8\).*1x8 and 9x4"),
        (nn.Unflatten(1, (2, 4)), r"`head` must return embeddings \(B, d\), got \(1, 2, 4\) for B = 1"),
        (nn.Flatten(0), r"`head` must return embeddings \(B, d\), got \(8,\) for B = 1"),
        (Answer(lambda z: z.expand(3, -1)), r"`head` must return embeddings \(B, d\), got \(3, 8\) for B = 1"),
        (Answer(lambda z: [z]), "`head` must return a tensor, got list"),
    ],
)
def test_a_head_that_returns_no_embeddings_is_refused(head, message):
    with pytest.raises(UserError, match=message):
        TwoViewModel(convolution(), head, input_size=16)


def test_pooling_that_keeps_the_spatial_axes_is_refused():
    with pytest.raises(UserError, match=r"embeddings \(B, d\), got \(1, 8, 8, 8\)"):
        TwoViewModel(convolution(), pool=nn.Identity(), input_size=16)


def test_a_subclass_whose_forward_goes_another_way_is_refused():
    class Detour(TwoViewModel):
        def forward(self, x, view=1):
            return super().forward(x, view) + 0.01

    with pytest.raises(UserError, match=r"forward\(x, view=1\) differs from embed\(features\(x\)\)"):
        Detour(convolution(), input_size=16)


def test_the_second_view_of_an_asymmetric_model_is_checked_too():
    class Detour(Predictor):
        def forward(self, x, view=1):
            return super().forward(x, view) + (0.01 if view == 2 else 0)

    with pytest.raises(UserError, match=r"forward\(x, view=2\) differs"):
        Detour(convolution(), input_size=16)


def test_a_subclass_is_checked_with_what_its_own_init_adds():
    class Late(TwoViewModel):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.predictor = nn.Linear(8, 2)

        def embed(self, features, view=1):
            return self.predictor(super().embed(features, view))

    assert Late(convolution(), input_size=16)(torch.rand(1, 3, 16, 16)).shape == (1, 2)


def test_the_check_uses_one_image_of_the_input_size():
    trunk = Recorder()
    TwoViewModel(trunk, input_size=24)
    assert {shape for shape, *_ in trunk.calls} == {(1, 3, 24, 24)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_model_of_another_precision_can_be_built(dtype):
    assert TwoViewModel(convolution().to(dtype), input_size=16).trunk.weight.dtype == dtype


def test_a_model_without_parameters_can_be_built():
    assert TwoViewModel(nn.AvgPool2d(2), input_size=16)(torch.ones(1, 3, 16, 16)).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool": "mean"}, "`pool` must be 'avg', 'max' or a module, got 'mean'"),
        ({"normalization": ((0.5,) * 3, (0.0,) * 3)}, r"`normalization` must be \(mean, std\).*std > 0"),
        ({"normalization": ((0.5,) * 3, (0.5,) * 2)}, r"`normalization` must be \(mean, std\) of equal length"),
        ({"input_size": 0}, "`input_size` must be positive, got 0"),
        ({"input_size": -4}, "`input_size` must be positive, got -4"),
    ],
)
def test_an_argument_out_of_range_is_named_with_its_value(arguments, message):
    with pytest.raises(UserError, match=message):
        TwoViewModel(convolution(), **{"input_size": 16, **arguments})


# Building leaves no trace


def half_frozen():
    """A trunk in mixed modes: a frozen batch norm that evaluates inside a network that trains."""
    trunk = nn.Sequential(convolution(), nn.BatchNorm2d(8), nn.Dropout(0.5))
    trunk.train()
    trunk[1].eval()
    trunk[1].weight.requires_grad_(False)
    return trunk


def state(module):
    return (
        [child.training for child in module.modules()],
        [parameter.requires_grad for parameter in module.parameters()],
        [parameter.grad for parameter in module.parameters()],
    )


def test_modes_and_gradients_are_as_they_were_after_the_check():
    trunk = half_frozen()
    before = state(trunk)
    TwoViewModel(trunk, input_size=16)
    assert state(trunk) == before


@pytest.mark.parametrize("head", [nn.Linear(9, 4), nn.Flatten(0), Answer(lambda z: 1 / 0)])
def test_modes_and_gradients_are_as_they_were_after_a_check_that_raises(head):
    trunk = half_frozen()
    before = state(trunk)
    with pytest.raises((UserError, ZeroDivisionError)):
        TwoViewModel(trunk, head, input_size=16)
    assert state(trunk) == before


def test_the_check_runs_in_evaluation_mode_without_gradients():
    trunk = Recorder()
    TwoViewModel(trunk, input_size=16)
    assert {(training, needs, enabled) for _, training, needs, enabled in trunk.calls} == {(False, False, False)}


def test_the_check_leaves_running_statistics_alone():
    trunk = nn.Sequential(convolution(), nn.BatchNorm2d(8))
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    TwoViewModel(trunk, input_size=16)
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())


def test_the_check_leaves_the_global_random_state_alone():
    trunk = convolution()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    TwoViewModel(trunk, input_size=16)
    assert torch.equal(torch.rand(1), expected)


# Borrowing evaluation mode


def test_evaluating_freezes_everything_inside_the_block():
    trunk = half_frozen()
    with evaluating(trunk):
        assert not any(child.training for child in trunk.modules())
        assert not any(parameter.requires_grad for parameter in trunk.parameters())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_evaluating_gives_every_state_back_when_the_block_raises(error):
    trunk = half_frozen()
    before = state(trunk)
    with pytest.raises(error), evaluating(trunk):
        raise error
    assert state(trunk) == before


def test_evaluating_nests():
    trunk = half_frozen()
    before = state(trunk)
    with evaluating(trunk):
        with evaluating(trunk):
            pass
        assert not any(child.training for child in trunk.modules())
    assert state(trunk) == before


def test_evaluating_lets_gradients_reach_the_input():
    layer = nn.Linear(3, 1, bias=False)
    x = torch.rand(2, 3, requires_grad=True)
    with evaluating(layer):
        gradient = torch.autograd.grad(layer(x).sum(), x)[0]
    torch.testing.assert_close(gradient, layer.weight.detach().expand(2, 3))
    assert layer.weight.grad is None


def test_the_trained_score_of_identical_views_is_that_of_identical_embeddings():
    model = TwoViewModel(convolution(), nn.Linear(8, 5), similarity="cosine", input_size=16)
    z = model(torch.rand(4, 3, 16, 16))
    assert all(math.isclose(score, 1, abs_tol=1e-5) for score in model.similarity(z, z).tolist())
