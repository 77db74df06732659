"""Every explainer on every architecture: it keeps the contract, or refuses with its reason; the table says which."""

import warnings

import pytest
import torch
from architectures import ARCHITECTURES, PAGE, VARIANTS, built, documented, made

from twinsight.engine import PairBank
from twinsight.errors import NotApplicable
from twinsight.explainers import PairImages

pytest.importorskip("timm")
pytest.importorskip("transformers")


def values(explanation):
    if isinstance(explanation, PairImages):
        return {**explanation.images, **explanation.traces, "score": explanation.score}
    found = {"map1": explanation.map1, "map2": explanation.map2, "score": explanation.score, **explanation.details}
    return {name: each for name, each in found.items() if each is not None}


def state(model):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    parts = [
        (name, part.training, "forward" in vars(part), *(len(getattr(part, kind)) for kind in hooks))
        for name, part in model.named_modules()
    ]
    return parts, [(name, each.requires_grad, each.grad) for name, each in model.named_parameters()]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_explainer_keeps_the_contract_or_refuses_with_its_reason(architecture):
    model = made(architecture)
    side = model.input_size
    view1, view2, partner = torch.rand(3, 2, 3, side, side, generator=torch.Generator().manual_seed(0))
    seeds = torch.tensor([1, 2])
    before = state(model)
    worked, refusals = 0, {}
    for variant in VARIANTS:
        try:
            explainer = built(variant, model)
        except NotApplicable as refusal:
            refusals[variant] = str(refusal)
            continue
        bank = PairBank(model, chunk_size=4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Captum's
            found = explainer(view1, view2, seeds, bank, partner)
            alone = explainer(view1[1:], view2[1:], seeds[1:], bank, partner[1:])
        for name, tensor in values(found).items():
            assert len(tensor) == 2, (variant, name)
            assert tensor.dtype == torch.float32, (variant, name)
            assert torch.isfinite(tensor).all() or name.startswith("standard_error"), (variant, name)
            assert torch.equal(tensor[1:].nan_to_num(), values(alone)[name].nan_to_num()), (variant, name)
        if explainer.maps:
            large1, large2 = found.resized((side, side))
            assert large1.shape == (2, side, side), variant
            assert (large2 is None) == (explainer.maps == 1), variant
        assert state(model) == before, variant
        worked += 1
    assert worked >= 15
    assert all(len(reason) > 20 for reason in refusals.values())


@pytest.mark.slow
def test_the_table_of_the_documentation_is_up_to_date():
    """`make tables` writes it."""
    assert documented(PAGE.read_text()) == PAGE.read_text()
