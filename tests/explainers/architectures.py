"""A dozen small real architectures with random weights: every explainer works on each, or says why not.

``python tests/explainers/architectures.py`` writes the table of ``docs/models-and-data.md``; a test checks it.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import DenseNet
from torchvision.models.resnet import BasicBlock, ResNet

import twinsight.explainers as explainers
from twinsight.errors import NotApplicable
from twinsight.explainers import Explainer, ImageExplainer
from twinsight.models import TwoViewModel, small_two_view, timm_model

PAGE = Path(__file__).parents[2] / "docs" / "models-and-data.md"
BEGIN, END = "<!-- begin matrix: architectures (make tables) -->", "<!-- end matrix -->"


def _timm(name: str, input_size: int = 32, **options: Any) -> Callable[[], TwoViewModel]:
    return lambda: timm_model(name, options=options, input_size=input_size)


def _clip_tower() -> TwoViewModel:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    network = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=8))
    return TwoViewModel.from_module(network.eval(), output="image_embeds", input_size=32)


class Siamese(nn.Module):
    """One encoder, called twice in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = small_two_view(widths=(8, 8, 16), blocks=1, hidden=16, embedding=8, input_size=32)

    def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.encoder(x1), self.encoder(x2)


def _siamese() -> TwoViewModel:
    return TwoViewModel.from_module(Siamese().eval(), "encoder.trunk", both_views=True, input_size=32)


def _resnet() -> TwoViewModel:
    network = ResNet(BasicBlock, [1, 1, 1, 1])
    return TwoViewModel.from_module(network.eval(), "layer4", head="avgpool", input_size=64)


def _densenet() -> TwoViewModel:
    return TwoViewModel.from_module(DenseNet(8, (1, 1, 1, 1), 16, num_classes=8).eval(), input_size=64)


def _convnext() -> TwoViewModel:
    from timm.models.convnext import ConvNeXt

    network = ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), num_classes=0)
    return TwoViewModel.from_module(network.eval(), input_size=64)


def _mixer() -> TwoViewModel:
    from timm.models.mlp_mixer import MlpMixer

    network = MlpMixer(img_size=64, patch_size=16, num_blocks=3, embed_dim=32, num_classes=0)
    return TwoViewModel.from_module(network.eval(), input_size=64)


ARCHITECTURES: dict[str, Callable[[], TwoViewModel]] = {
    "SmallResNet": lambda: small_two_view(widths=(8, 8, 16), blocks=1, hidden=16, embedding=8, input_size=32).eval(),
    "ResNet": _resnet,
    "MobileNetV3": _timm("mobilenetv3_small_050", 64),
    "EfficientNet-lite": _timm("tf_efficientnet_lite0", 64),
    "DenseNet": _densenet,
    "ConvNeXt": _convnext,
    "Swin": _timm("swin_tiny_patch4_window7_224", 64, window_size=2, depths=(1, 1, 2, 1), embed_dim=24),
    "ViT, class token": _timm("vit_tiny_patch16_224", 64, depth=4),
    "ViT, mean of tokens": _timm("vit_tiny_patch16_224", 64, depth=3, global_pool="avg"),
    "DINOv2": _timm("vit_small_patch14_reg4_dinov2", 56, depth=4, embed_dim=48, num_heads=3),
    "CLIP image tower": _clip_tower,
    "MLP-Mixer": _mixer,
    "Siamese": _siamese,
}

# Options that make every explainer quick.
OPTIONS: dict[str, dict[str, Any]] = {
    "conditional_occlusion": {"stride": 24},
    "context_agnostic_occlusion": {"stride": 24},
    "pairwise_occlusion": {"num_samples": 4},
    "smoothgrad": {"samples": 2},
    "averaged_transforms": {"lambdas": [0.5, 0]},
    "inverted": {"of": "gradcam"},
    "matched_random": {"of": "gradcam"},
    "partner_swapped": {"of": "gradcam"},
    "pixel_invariance": {"samples": 5, "size": 4, "epochs": 2, "components": 2},
    "feature_visualization": {"octaves": 1, "iterations": 1},
    "model_difference": {"iterations": 1},
    "captum": {"options": {"n_steps": 2}},
}
CLASSES = {
    found.name: found
    for found in vars(explainers).values()
    if isinstance(found, type) and issubclass(found, Explainer) and found not in (Explainer, ImageExplainer)
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in CLASSES},
    "input_x_gradient, guided": ("input_x_gradient", {"guided": "all"}),
}


def built(variant: str, model: TwoViewModel) -> Explainer:
    """An explainer for a model; raises NotApplicable with the reason where it is not for it."""
    name, more = VARIANTS[variant]
    given = {**OPTIONS.get(name, {}), **more}
    if name == "model_difference":
        given["reference"] = model
    return CLASSES[name](model, **given)


def made(architecture: str) -> TwoViewModel:
    """An architecture with the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ARCHITECTURES[architecture]().eval()


def why_not(variant: str, model: TwoViewModel) -> str | None:
    """Why an explainer is not for a model; None where it is."""
    try:
        built(variant, model)
    except NotApplicable as error:
        return str(error)
    return None


def table() -> str:
    """Architectures down, explainers across; reasons below, numbered."""
    notes: list[str] = []
    shown = [name for name in VARIANTS if name not in ("inverted", "matched_random", "partner_swapped", "random")]
    rows = {variant: [] for variant in shown}
    for architecture in ARCHITECTURES:
        model = made(architecture)
        for variant in shown:
            reason = why_not(variant, model)
            if reason is not None and reason not in notes:
                notes.append(reason)
            rows[variant].append("yes" if reason is None else f"no ({notes.index(reason) + 1})")
    lines = [["explainer", *ARCHITECTURES], ["---"] * (1 + len(ARCHITECTURES))]
    lines += [[variant, *cells] for variant, cells in rows.items()]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return text + "\n\n" + "\n".join(f"{place}. {note}" for place, note in enumerate(notes, 1))


def documented(text: str) -> str:
    """The page with its table brought up to date."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    PAGE.write_text(documented(PAGE.read_text()))
