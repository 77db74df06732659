"""Checkpoints of self-supervised training, whatever library wrote them: trunk and head are found by what they hold."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from twinsight.errors import UserError, unknown
from twinsight.models.checkpoints import Shapes, read_tensors, sha256, shapes
from twinsight.models.resnet import RESNETS, resnet_trunk
from twinsight.models.two_view import Normalization, TwoViewModel, named_normalization
from twinsight.similarity import Similarity

LIBRARIES = {
    "classy_state_dict.": "VISSL",
    "projection_head.": "lightly",
    "projector.": "solo-learn",
    "neck.": "MMSelfSup",
    "encoder_q.": "MoCo",
    "teacher.": "DINO",
}
"""What the keys of a file hold, and whose it then is, for reports; the first that fits."""
_HEADS = (
    *("projection_head.layers.", "projection_head.", "projector.", "neck.", "heads.", "head.mlp.", "head.layers."),
    *("head.", "mlp."),
)
_SIDES = ("momentum_", "teacher_", "student_", "online_", "target_")
_COPIES = ("momentum", "encoder_k", "target", "ema", "student")
"""In names of networks that follow another one, or that another one follows: taken only where there is no other."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What was taken from a file, and what was left.

    Attributes:
        file: its name.
        library: which library's layout it has, in words.
        architecture: the network that the trunk is.
        trunk, head: what stands before their keys; head is None where there is none.
        used: tensors taken.
        left: tensors not taken, counted by the beginnings of their names.
        missing: tensors of the network that the file does not have.
    """

    file: str
    library: str
    architecture: str
    trunk: str
    head: str | None
    used: int
    left: Mapping[str, int]
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for each.

        >>> print(LoadReport("a.ckpt", "solo-learn", "resnet18", "state_dict.backbone.", None, 122, {"classifier": 2}))
        a.ckpt (solo-learn): 122 tensors used, trunk resnet18 from `state_dict.backbone.`, no head; left: \
2 in `classifier`
        """
        head = f"head from `{self.head}`" if self.head else "no head"
        left = ", ".join(f"{count} in `{name}`" for name, count in self.left.items()) or "none"
        missing = f"; not in the file: {', '.join(self.missing[:4])}" if self.missing else ""
        return (
            f"{self.file} ({self.library}): {self.used} tensors used, trunk {self.architecture} from "
            f"`{self.trunk or 'its top'}`, {head}; left: {left}{missing}"
        )


def checkpoint_model(
    checkpoint: str | Path,
    architecture: str | None = None,
    prefix: str | None = None,
    head: str | None = "auto",
    normalization: Normalization | str | None = "imagenet",
    input_size: int = 224,
    similarity: str | Similarity = "cosine",
) -> TwoViewModel:
    """The network in a checkpoint of self-supervised training, whatever library wrote it.

    Those of lightly, solo-learn, VISSL, MMSelfSup, MoCo and DINO, and files with torchvision's names, are known. Where
    the trunk's keys begin, and which of torchvision's ResNets it is, follows from names and shapes; the head is put
    together from the linear layers and norms that follow it. Of a network and a copy that follows it (momentum
    encoders), the network is taken; of a student and its teacher, the teacher.

    Args:
        checkpoint: a file of ``torch.save`` or safetensors; read weights-only.
        architecture: name of a ResNet of torchvision, or of any network of timm; None finds out.
        prefix: what stands before the trunk's keys, ``"state_dict.momentum_backbone."`` for one; None finds out.
        head: ``"auto"``, what stands before the head's keys, or None to explain pooled features. A classifier of plain
            torchvision files counts as none.
        normalization: of the input space; most self-supervised training is on ImageNet's.
        input_size: side of the views in pixels.
        similarity: score of two embeddings.

    Returns:
        the model, with ``load_report``: what was used and what was left.

    Raises:
        UserError: a file that cannot be read, or holds no such network; the message says what it does hold.
    """
    path = Path(checkpoint).expanduser()
    tensors = read_tensors(path)
    found = shapes(tensors)
    name, trunk_prefix, renamed = trunk_in(path, found, architecture, prefix)
    network, used = build_network(name, tensors, trunk_prefix, renamed)
    width = _width(network, input_size)
    head_prefix = _head_prefix(path, found, trunk_prefix, head, width, used)
    built = None
    if head_prefix is not None:
        distilled = any("last_layer." in key for key in found)  # DINO's head, which has GELUs
        own = {key: tensors[key] for key in found if key.startswith(head_prefix) and "last_layer." not in key}
        built, taken = build_head(own, head_prefix, nn.GELU if distilled else nn.ReLU)
        used |= taken
    if isinstance(network, nn.Sequential):
        model = TwoViewModel(network, built, "avg", named_normalization(normalization), similarity, input_size)
    else:
        whole = network if built is None else nn.Sequential(network, built)
        model = TwoViewModel.from_module(
            whole, normalization=named_normalization(normalization), similarity=similarity, input_size=input_size
        )
    model.load_report = LoadReport(
        path.name, _library(found), name, trunk_prefix, head_prefix, len(used), left_over(found, used)
    )
    model.checkpoint_sha256 = sha256(path)
    logger.info("%s", model.load_report)
    if built is None and head == "auto":
        logger.warning("%s holds no head that is known: the embedding is the pooled feature map", path.name)
    return model.eval()


def fill_network(network: nn.Module, path: Path, name: str) -> LoadReport:
    """Load a file into a network of any library, whatever stands before its keys; a classifier may differ or miss.

    Raises:
        UserError: the file cannot be read, or lacks tensors that the network has, classifiers aside.
    """
    tensors = read_tensors(path)
    found, wanted = shapes(tensors), shapes(network.state_dict())
    # The classifier, which many files lack, is what lies at the end.
    last = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)][-1:]
    body = {key: shape for key, shape in wanted.items() if not (last and key.startswith(f"{last[0]}."))}
    prefix = _best_prefix(found, body)
    if prefix is None:
        raise UserError(f"`weights={path}` does not fit {name}: {_why_not(found, body)}")
    used = {prefix + key for key, shape in wanted.items() if found.get(prefix + key) == shape}
    network.load_state_dict({key: tensors[prefix + key] for key in wanted if prefix + key in used}, strict=False)
    missing = tuple(key for key in wanted if prefix + key not in used and not key.endswith("num_batches_tracked"))
    return LoadReport(path.name, _library(found), name, prefix, None, len(used), left_over(found, used), missing)


def build_head(
    tensors: Mapping[str, Tensor], prefix: str, activation: type[nn.Module] = nn.ReLU
) -> tuple[nn.Sequential, set[str]]:
    """The projection head that tensors make up, in their order, and the keys that it took.

    Linear layers, each with the norm that follows it, and an activation between them: the heads of SimCLR, MoCo, BYOL,
    Barlow Twins, VICReg and SwAV with ReLU, of DINO with GELU.

    >>> made = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    >>> head, used = build_head({f"head.{key}": value for key, value in made.state_dict().items()}, "head.")
    >>> head.eval()(torch.ones(1, 4)).equal(made.eval()(torch.ones(1, 4))), len(used)
    (True, 9)
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        module, _, name = key.removeprefix(prefix).rpartition(".")
        groups.setdefault(module, {})[name] = value
    layers: list[nn.Module] = []
    used = set()
    for module, state in groups.items():
        layer = _layer(state)
        if layer is None:
            continue
        if isinstance(layer, nn.Linear) and layers:
            layers.append(activation())
        layer.load_state_dict(state, strict=False)
        layers.append(layer)
        used |= {prefix + (f"{module}.{name}" if module else name) for name in state}
    return nn.Sequential(*layers), used


def _layer(state: Mapping[str, Tensor]) -> nn.Module | None:
    weight = state.get("weight")
    if weight is not None and weight.ndim == 2:
        return nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in state)
    if "running_mean" in state:
        return nn.BatchNorm1d(len(state["running_mean"]), affine=weight is not None)
    if weight is not None and weight.ndim == 1:
        return nn.LayerNorm(len(weight))
    return None


def trunk_in(
    path: Path, found: Shapes, architecture: str | None, prefix: str | None
) -> tuple[str, str, Mapping[str, str]]:
    """Name of the trunk, what stands before its keys, and its keys as the file has them where they differ."""
    names = [*RESNETS, *(f"{name} with a small stem" for name in RESNETS)] if architecture is None else [architecture]
    names.sort(key=lambda name: -len(_trunk_shapes(name)))  # a deep network has all tensors of a shallow one
    for name in names:
        for renamed in _spellings(name):
            wanted = {renamed[key]: shape for key, shape in _trunk_shapes(name).items()}
            best = _best_prefix(found, wanted) if prefix is None else prefix
            if best is not None and not _lacking(found, wanted, best):
                return name, best, renamed
    if architecture is None:
        raise UserError(
            f"`checkpoint={path}` holds no ResNet of torchvision: {_overview(found)}. Name another network as "
            "`architecture`, any of timm's for one, or build it and use model=module"
        )
    raise UserError(f"`checkpoint={path}` does not fit {architecture}: {_why_not(found, _trunk_shapes(architecture))}")


def _network(name: str) -> nn.Module:
    plain = name.removesuffix(" with a small stem")
    if plain in RESNETS:
        return resnet_trunk(plain, small_stem=plain != name)
    try:
        import timm
    except ImportError:
        raise unknown("`architecture`", name, RESNETS) from None
    if not timm.is_model(name):
        raise unknown("`architecture`", name, [*RESNETS, *timm.list_models()])
    return timm.create_model(name, num_classes=0)


@cache
def _trunk_shapes(name: str) -> Shapes:
    with torch.device("meta"):
        return shapes(_network(name).state_dict())


def _spellings(name: str) -> Iterator[dict[str, str]]:
    """Keys of a trunk as files spell them: by name, or by place where the trunk went into a ``Sequential``."""
    keys = _trunk_shapes(name)
    yield {key: key for key in keys}
    plain = name.removesuffix(" with a small stem")
    if plain in RESNETS:
        with torch.device("meta"):
            places = {child: str(place) for place, (child, _) in enumerate(get_model(plain).named_children())}
        yield {key: ".".join([places[key.partition(".")[0]], key.partition(".")[2]]) for key in keys}


def _best_prefix(found: Shapes, wanted: Shapes) -> str | None:
    """What stands before all of the keys ``wanted``; a network rather than a copy of it, the shorter first."""
    first = next(iter(wanted))
    ends = [key.removesuffix(first) for key in found if key.endswith(first)]
    fitting = [end for end in ends if (not end or end.endswith(".")) and not _lacking(found, wanted, end)]
    return min(fitting, key=lambda end: (any(copy in end for copy in _COPIES), len(end)), default=None)


def _lacking(found: Shapes, wanted: Shapes, prefix: str) -> list[str]:
    return [
        key
        for key, shape in wanted.items()
        if found.get(prefix + key) != shape and not (key.endswith("num_batches_tracked") and prefix + key not in found)
    ]


def build_network(
    name: str, tensors: Mapping[str, Tensor], prefix: str, renamed: Mapping[str, str]
) -> tuple[nn.Module, set[str]]:
    """The trunk that :func:`trunk_in` found, with its weights, and the keys that it took."""
    network = _network(name)
    places = {key: prefix + renamed[key] for key in network.state_dict()}
    network.load_state_dict({key: tensors[place] for key, place in places.items() if place in tensors}, strict=False)
    return network, {place for place in places.values() if place in tensors}


def _width(network: nn.Module, side: int) -> int:
    with torch.inference_mode():
        return network.eval()(torch.zeros(1, 3, side, side)).shape[1]


def _head_prefix(path: Path, found: Shapes, trunk: str, head: str | None, width: int, used: set[str]) -> str | None:
    """What stands before the head's keys: named, or found beside the trunk, on its side of a pair of networks."""
    if head is None:
        return None
    if head != "auto":
        if not any(key.startswith(head) for key in found):
            raise UserError(f"`head={head}`: no key of `checkpoint={path}` begins so: {_overview(found)}")
        return head
    parts = trunk.rstrip(".").split(".")
    side = next((side for side in _SIDES if parts[-1].startswith(side)), "")
    suffix = (
        parts[-1].removeprefix("backbone") if parts[-1].startswith("backbone_") else ""
    )  # lightly: backbone_momentum
    roots = [".".join(parts[:depth]) + "." if depth else "" for depth in range(len(parts) - 1, -1, -1)]
    named = parts[-1] in ("encoder_q", "encoder_k", "encoder")  # whose last layer was replaced by the head
    places = [root + side + _ending(name, suffix) for root in roots for name in _HEADS]
    places = ([f"{trunk}fc."] if named else []) + places
    for place in places:
        keys = [key for key in found if key.startswith(place) and key not in used]
        first = next((found[key] for key in keys if len(found[key]) == 2), None)
        if first is not None and first[1] == width:
            return place
    return None


def _ending(name: str, suffix: str) -> str:
    first, _, rest = name.partition(".")
    return f"{first}{suffix}.{rest}"


def _library(found: Shapes) -> str:
    return next((name for mark, name in LIBRARIES.items() if any(mark in key for key in found)), "plain names")


def left_over(found: Shapes, used: set[str]) -> dict[str, int]:
    return dict(Counter(".".join(key.split(".")[:2]) for key in found if key not in used))


def _overview(found: Shapes) -> str:
    begin = Counter(".".join(key.split(".")[:2]) for key in found).most_common(6)
    places = ", ".join(f"`{name}` ({count})" for name, count in begin)
    return f"{len(found)} tensors, in {places}" if begin else "no tensors"


def _why_not(found: Shapes, wanted: Shapes) -> str:
    first = next(iter(wanted))
    ends = [key.removesuffix(first) for key in found if key.endswith(first)] or [""]
    prefix = min(ends, key=lambda end: len(_lacking(found, wanted, end)))
    lacking = _lacking(found, wanted, prefix)
    key = lacking[0]
    there = found.get(prefix + key)
    what = "which is not there" if there is None else f"which is {there} there"
    return (
        f"{len(lacking)} of {len(wanted)} tensors do not fit, first `{key}` {wanted[key]}, {what}; "
        f"it holds {_overview(found)}"
    )
