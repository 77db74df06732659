"""The published models: how each is built, where its file keeps what, which pixels it eats."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twinsight.errors import UserError, unknown
from twinsight.models.checkpoints import (
    Layout,
    Shapes,
    backbone_layouts,
    fitting_layout,
    read_tensors,
    sha256,
    shapes,
)
from twinsight.models.resnet import barlow_twins_projector, resnet_trunk, simsiam_predictor, simsiam_projector
from twinsight.models.simclrv2 import BLOCKS, SimCLRv2ResNet, simclrv2_head
from twinsight.models.simsiam import SimSiam
from twinsight.models.two_view import IMAGENET_NORMALIZATION, Normalization, TwoViewModel
from twinsight.protocol import PROTOCOLS
from twinsight.similarity import Similarity

_INPUT_SIZE = 224

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """A model whose weights others published.

    Attributes:
        parts: builds the networks: ``trunk``, ``head`` and, where there is one, ``prediction_head``.
        layout: of the published file.
        normalization: mean and std of the input space, None for pixels in [0, 1].
        file: the published file in words.
    """

    parts: Callable[[], dict[str, nn.Module]]
    layout: Layout
    normalization: Normalization | None
    file: str

    def layouts(self) -> Iterator[Layout]:
        """The published layout, then those of files that hold the backbone alone."""
        yield self.layout
        trunk = self.layout.prefixes["trunk"]
        yield Layout({"trunk": trunk}, self.layout.ignored, self.layout.entries)
        ignored = [key.removeprefix(trunk) for key in self.layout.ignored if key.startswith(trunk)]
        yield from backbone_layouts(tuple(ignored))


def _simclrv2_parts(depth: int, width: int, selective_kernels: bool) -> dict[str, nn.Module]:
    return {"trunk": SimCLRv2ResNet(depth, width, selective_kernels), "head": simclrv2_head(2048 * width)}


def _barlow_twins_parts() -> dict[str, nn.Module]:
    return {"trunk": resnet_trunk("resnet50"), "head": barlow_twins_projector()}


def _simsiam_parts() -> dict[str, nn.Module]:
    return {"trunk": resnet_trunk("resnet50"), "head": simsiam_projector(), "prediction_head": simsiam_predictor()}


def _simclrv2(depth: int, width: int, selective_kernels: bool) -> Published:
    file = f"r{depth}_{width}x_sk{int(selective_kernels)}.pth"
    return Published(
        parts=partial(_simclrv2_parts, depth, width, selective_kernels),
        layout=Layout({"trunk": "resnet.", "head": "head.layers."}, ("resnet.fc.",), ("resnet", "head")),
        normalization=None,
        file=f'the weights converted to PyTorch, {file}, {{"resnet": ..., "head": ...}}',
    )


PUBLISHED: dict[str, Published] = {
    f"simclrv2_r{depth}_{width}x{'_sk1' if selective_kernels else ''}": _simclrv2(depth, width, selective_kernels)
    for depth in BLOCKS
    for width in (1, 2, 3)
    for selective_kernels in (False, True)
}
PUBLISHED["barlow_twins"] = Published(
    parts=_barlow_twins_parts,
    layout=Layout(
        {"trunk": "model.module.backbone.", "head": "model.module.projector."},
        ignored=("model.module.bn.",),  # of the loss
        entries=("model",),
    ),
    normalization=IMAGENET_NORMALIZATION,
    file='the full checkpoint of training, checkpoint.pth, {"model": ...}',
)
PUBLISHED["simsiam"] = Published(
    parts=_simsiam_parts,
    layout=Layout(
        {
            "trunk": "state_dict.module.encoder.",
            "head": "state_dict.module.encoder.fc.",
            "prediction_head": "state_dict.module.predictor.",
        },
        entries=("state_dict",),
    ),
    normalization=IMAGENET_NORMALIZATION,
    file='the checkpoint of pre-training, checkpoint_0099.pth.tar, {"state_dict": ...}',
)


def published_models() -> list[str]:
    """Names of published models, which :func:`twinsight.models.load_model` takes together with a checkpoint.

    >>> [name for name in published_models() if "simclrv2" not in name], len(published_models())
    (['barlow_twins', 'simsiam'], 20)
    """
    return sorted(PUBLISHED)


def published_name(name: str) -> str | None:
    """The name in ``PUBLISHED``, None where there is none. Published files say sk0 for "no selective kernels".

    >>> published_name("simclrv2_r50_1x_sk0"), published_name("demo_simclr")
    ('simclrv2_r50_1x', None)
    """
    name = name.removesuffix("_sk0")
    return name if name in PUBLISHED else None


def build_model(
    name: str,
    seed: int | None = None,
    similarity: str | Similarity = "cosine",
    input_size: int | None = None,
    protocol: str = "sound",
    predictor: str | None = None,
) -> TwoViewModel:
    """The published architecture called ``name`` with random weights, in evaluation mode: for tests and benchmarks.

    Args:
        name: one of :func:`published_models`.
        seed: of the weights; PyTorch's random state is left as it was. None draws from that state.
        similarity, input_size, protocol, predictor: as in :func:`twinsight.models.load_model`.

    Raises:
        UserError: unknown name, or an option that does not fit it.

    >>> model = build_model("simclrv2_r50_1x", seed=0, input_size=32)
    >>> with torch.inference_mode():
    ...     model(torch.rand(1, 3, 32, 32)).shape
    torch.Size([1, 128])
    """
    known = published_name(name)
    if known is None:
        raise unknown("published model", name, PUBLISHED)
    check_options(known, protocol, predictor)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        parts = PUBLISHED[known].parts()
    return _assembled(known, parts, similarity, input_size, protocol, predictor)


def load_published(
    name: str,
    checkpoint: str | Path | None,
    similarity: str | Similarity = "cosine",
    input_size: int | None = None,
    protocol: str = "sound",
    predictor: str | None = None,
) -> TwoViewModel:
    """The model ``PUBLISHED[name]`` with the weights of a file; :func:`twinsight.models.load_model` says more."""
    check_options(name, protocol, predictor)
    if checkpoint is None:
        raise UserError(
            f"`checkpoint` of model '{name}' is missing and nothing is downloaded: "
            f"give {PUBLISHED[name].file}, as `checkpoint=FILE`"
        )
    path = Path(checkpoint).expanduser()
    tensors = read_tensors(path)
    layout = _fitting_layout(name, path, shapes(tensors))
    if "head" not in layout.prefixes:
        if predictor is not None:
            raise UserError(f"`predictor={predictor}`: `checkpoint={path}` holds a backbone alone, without a predictor")
        logger.warning(
            "%s holds a backbone alone: model %s gets the identity as head, its embedding is the pooled feature map",
            *(path, name),
        )
    with torch.device("meta"):
        parts = {part: module for part, module in PUBLISHED[name].parts().items() if part in layout.prefixes}
    layout.fill(parts, tensors)
    del tensors  # and with it the mapped file
    model = _assembled(name, parts, similarity, input_size, protocol, predictor)
    model.checkpoint_sha256 = sha256(path)
    return model


def check_options(name: str, protocol: str, predictor: str | None) -> None:
    """Refuse an option of asymmetric models where ``name`` is none, and an unknown protocol.

    >>> check_options("simsiam", "sound", predictor="both")
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    if predictor is not None and name != "simsiam":
        raise UserError(f"`predictor={predictor}` is an option of model 'simsiam', '{name}' has no predictor")


def models_that_fit(found: Shapes) -> list[str]:
    """Names of the published models that a file with the tensors ``found`` can fill.

    >>> models_that_fit({"fc.weight": (10, 10)})
    []
    """
    return [
        name
        for name, published in PUBLISHED.items()
        if any(not layout.compare(_part_shapes(name), found) for layout in published.layouts())
    ]


@cache
def _part_shapes(name: str) -> dict[str, Shapes]:
    with torch.device("meta"):
        return {part: shapes(module.state_dict()) for part, module in PUBLISHED[name].parts().items()}


def _fitting_layout(name: str, path: Path, found: Shapes) -> Layout:
    layout, difference = fitting_layout(PUBLISHED[name].layouts(), _part_shapes(name), found)
    if layout is not None:
        return layout
    others = models_that_fit(found)
    if others:
        remedy = f"The file fits model {' or '.join(others)}"
    elif any(key.startswith("trunk.") for key in found):
        remedy = "Files that `task=pretrain` wrote fit model pretrained"
    else:
        remedy = "It fits no other published model either"
    raise UserError(f"`checkpoint={path}` does not fit model '{name}': {difference}. {remedy}")


def _assembled(
    name: str,
    parts: Mapping[str, nn.Module],
    similarity: str | Similarity,
    input_size: int | None,
    protocol: str,
    predictor: str | None,
) -> TwoViewModel:
    options: dict[str, Any] = {
        "normalization": PUBLISHED[name].normalization,
        "similarity": similarity,
        "input_size": _INPUT_SIZE if input_size is None else input_size,
    }
    trunk, head = parts["trunk"], parts.get("head")
    if head is not None and "prediction_head" in parts:
        return SimSiam(trunk, head, parts["prediction_head"], predictor, protocol, **options).eval()
    return TwoViewModel(trunk, head, **options).eval()
