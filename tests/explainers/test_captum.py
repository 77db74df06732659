"""Captum's attributions on the pair's similarity, against ours where the two are the same method."""

import pytest
import torch

from toy import tiny_model, tiny_pair
from twinsight.engine import PairBank
from twinsight.errors import UserError
from twinsight.explainers import Captum, ConditionalOcclusion, GradCAM, InputXGradient

pytest.importorskip("captum")


def test_input_x_gradient_is_ours():
    model = tiny_model(0)
    views = tiny_pair(0, 2)
    found = Captum(model, "InputXGradient", channels="max_abs")(*views)
    expected = InputXGradient(model)(*views)
    torch.testing.assert_close(found.map1, expected.map1, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.map2, expected.map2, rtol=1e-4, atol=1e-7)


def test_grad_cam_is_ours():
    model = tiny_model(0)
    views = tiny_pair(0, 1)
    options = {"relu_attributions": True}
    found = Captum(model, "LayerGradCam", layer="trunk", options=options)(*views)
    expected = GradCAM(model)(*views)
    torch.testing.assert_close(found.map1, expected.map1, rtol=1e-4, atol=1e-7)


def test_occlusion_is_ours():
    model = tiny_model(0)
    views = tiny_pair(0, 1)
    options = {"sliding_window_shapes": [3, 8, 8], "strides": [3, 8, 8]}
    found = Captum(model, "Occlusion", options=options, baseline="input_zero")(*views).map1
    windows = ConditionalOcclusion(model, window=8, stride=8, baseline="input_zero")(*views).map1
    torch.testing.assert_close(found[:, ::8, ::8] / 3, windows, rtol=1e-4, atol=1e-6)  # ours counts the pixel once


def test_integrated_gradients_add_up_to_the_change_of_the_score():
    model = tiny_model(0)
    view1, view2 = tiny_pair(0, 1)
    explanation = Captum(model, options={"n_steps": 200}, baseline="input_zero")(view1, view2)
    with torch.no_grad():
        black = model.similarity(model(torch.zeros_like(view1)), model(view2))
    torch.testing.assert_close(explanation.map1.sum(), (explanation.score - black)[0], rtol=0, atol=0.02)


METHODS = {
    "GradientShap": {"n_samples": 2},
    "Saliency": {},
    "GuidedBackprop": {},
    "FeatureAblation": {},
    "KernelShap": {"n_samples": 8},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_pair_is_explained_alike_alone_and_in_a_batch_and_again(method):
    model = tiny_model(0, asymmetric=True)
    views = tiny_pair(0, 2)
    explainer = Captum(model, method, options=METHODS[method], grid=4)
    found, again = explainer(*views), explainer(*views, bank=PairBank(model))
    assert torch.equal(found.map1, again.map1)
    assert torch.equal(found.map2[1:], explainer(views[0][1:], views[1][1:]).map2)
    assert found.map1.shape == (2, 32, 32)
    assert torch.isfinite(found.map1).all()
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_what_does_not_fit_is_said():
    model = tiny_model(0)
    with pytest.raises(UserError, match="unknown Captum `method` 'IntegratedGradient': did you mean"):
        Captum(model, "IntegratedGradient")
    with pytest.raises(UserError, match="unknown option of `method=Saliency` 'step'"):
        Captum(model, "Saliency", options={"step": 3})
    with pytest.raises(UserError, match="`method=LayerGradCam` needs a `layer`"):
        Captum(model, "LayerGradCam")
    with pytest.raises(UserError, match="`method=Occlusion` of Captum cannot explain this"):
        Captum(model, "Occlusion")(*tiny_pair(0, 1))
