"""Versions that differ from one image within a window each: only what the window reaches is computed again.

A window reaches a rectangle of each feature map, its cone, which grows with depth. Through the early stages of a
network each convolution is computed on the cone and on what it sees around it, taken from the feature maps of the image
itself; from where the cone covers most of the map the pass goes on as usual. Exact but for rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional as F

from twinsight.engine.perturbations import Perturbation
from twinsight.models import FoldedConvolution, is_relu

DENSE_FROM = 0.9
"""Share of the side of a feature map from which a cone is not worth cutting out."""
CUTTING = 2e7
"""Multiplications that are done in the time it takes to cut out and paste the cone of one image, on two cores."""


@dataclass
class Cone:
    """What differs from the feature map of the image: one rectangle for each version, all of one size.

    Attributes:
        values: ``(n, C, h, w)``.
        corners: ``(n, 2)`` integers on CPU, top and left.
        around: ``(1, C, H, W)`` of the image itself.
    """

    values: Tensor
    corners: Tensor
    around: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.values.shape[-2], self.values.shape[-1]

    def cut(self, corners: Tensor, size: tuple[int, int], outside: float = 0.0) -> Tensor:
        """``(n, C, *size)`` of the versions' whole maps from other ``corners``, which may lie outside."""
        height, width = self.around.shape[-2:]
        rows, columns = (corners[:, axis, None] + torch.arange(size[axis]) for axis in (0, 1))
        inside = ((rows >= 0) & (rows < height)).unsqueeze(2) & ((columns >= 0) & (columns < width)).unsqueeze(1)
        places = rows.clamp(0, height - 1).unsqueeze(2) * width + columns.clamp(0, width - 1).unsqueeze(1)
        pixels = self.around[0].permute(1, 2, 0).flatten(0, 1)
        pixels = pixels.index_select(0, places.flatten().to(pixels.device))  # of all channels, which lie together
        if not inside.all():
            pixels.index_fill_(0, (~inside).flatten().nonzero().squeeze(1).to(pixels.device), outside)
        found = pixels.unflatten(0, (len(corners), *size)).permute(0, 3, 1, 2)
        self._paste(found, corners)
        return found

    def whole(self) -> Tensor:
        """``(n, C, H, W)``."""
        maps = self.around.expand(len(self.values), -1, -1, -1).clone(memory_format=torch.channels_last)
        self._paste(maps, torch.zeros_like(self.corners))
        return maps

    def holds(self, other: "Cone") -> bool:
        """Whether nothing of ``other`` lies outside this one's rectangles."""
        ends, others = (each.corners + torch.tensor(each.size) for each in (self, other))
        return bool((self.corners <= other.corners).all() and (ends >= others).all())

    def _paste(self, maps: Tensor, corners: Tensor) -> None:
        tall, wide = self.size
        for index, (top, left) in enumerate((self.corners - corners).tolist()):
            rows = slice(max(top, 0), min(top + tall, maps.shape[-2]))
            columns = slice(max(left, 0), min(left + wide, maps.shape[-1]))
            if rows.start < rows.stop and columns.start < columns.stop:
                inside = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
                maps[index, :, rows, columns] = self.values[index, :, inside[0], inside[1]]


def windows_of(perturbation: Perturbation) -> Tensor | None:
    """``(N, 4)`` windows outside which all versions are ``perturbation.outside``; None unless alike and inside."""
    boxes = perturbation.boxes
    if boxes is None or len(boxes) == 0:
        return None
    height, width = perturbation.image.shape[-2:]
    ends = boxes[:, :2] + boxes[:, 2:]
    inside = (boxes[:, :2] >= 0).all() and (ends <= torch.tensor((height, width))).all()
    return boxes if inside and (boxes[:, 2:] == boxes[0, 2:]).all() else None


class Incremental:
    """Feature maps of versions of one image, by cones where that pays.

    Args:
        trunk: a folded trunk.
        image: ``(C, H, W)``, what all versions are outside their windows.

    >>> from twinsight.engine import erased_windows
    >>> from twinsight.models import folded, small_two_view
    >>> image, boxes = torch.rand(3, 64, 64), torch.tensor([[8, 8, 9, 9], [30, 40, 9, 9]])
    >>> versions = erased_windows(image, torch.zeros(3, 64, 64), boxes).versions(torch.arange(2))
    >>> trunk = folded(small_two_view().eval(), versions).trunk
    >>> with torch.no_grad():
    ...     torch.allclose(Incremental(trunk, image)(versions, boxes), trunk(versions), atol=1e-5)
    True
    """

    def __init__(self, trunk: fx.GraphModule, image: Tensor, valid: dict[Any, FoldedConvolution] | None = None) -> None:
        self.valid: dict[Any, FoldedConvolution] = {} if valid is None else valid
        """Convolutions without padding, by size of their cones; to share between images."""
        self._trunk = trunk
        self._around: dict[fx.Node, Any] = {}
        self._areas: dict[fx.Node, int] = {}
        image = image.unsqueeze(0).clone(memory_format=torch.channels_last)
        _Recorder(trunk, self._around).run(image)

    def __call__(self, images: Tensor, boxes: Tensor) -> Tensor:
        """``(n, D, h, w)`` of versions ``(n, C, H, W)`` that differ from the image inside ``boxes`` (n, 4) alone."""
        tall, wide = boxes[0, 2:].tolist()
        windows = _empty((len(images), images.shape[1], tall, wide), images)
        for index, (top, left) in enumerate(boxes[:, :2].tolist()):
            windows[index] = images[index, :, top : top + tall, left : left + wide]
        walker = _Walker(self._trunk, self._around, self.valid)
        found = walker.run((windows, boxes[:, :2]))
        self._areas = walker.areas
        return found.whole() if isinstance(found, Cone) else found

    @property
    def pays(self) -> bool:
        """Whether cones of the size that came last save a tenth of all, and more than it takes to cut them out."""
        whole = {n: self._multiplications(n) for n in self._trunk.graph.nodes}
        saved = sum(whole[n] * (1 - area / self._around[n][0, 0].numel()) for n, area in self._areas.items())
        return saved > max(CUTTING * len(self._areas), 0.1 * sum(whole.values()))

    def _multiplications(self, n: fx.Node) -> float:
        """Of a layer with weights over the whole image, 0 for whatever else."""
        module = self._trunk.get_submodule(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, FoldedConvolution):
            seen = self._around[n.all_input_nodes[0]]
            each = seen.shape[1] / module.geometry[-1] * math.prod(module.kernel_size)
        else:
            weight = getattr(module, "weight", None)
            each = weight[0].numel() if isinstance(weight, Tensor) and weight.ndim > 1 else 0
        return self._around[n].numel() * each if each else 0.0


class _Recorder(fx.Interpreter):
    """Runs a network and keeps what every node gave."""

    def __init__(self, trunk: fx.GraphModule, kept: dict[fx.Node, Any]) -> None:
        super().__init__(trunk)
        self._kept = kept

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        # A copy: what comes next may work in place.
        self._kept[n] = found.clone() if isinstance(found, Tensor) else found
        return found


class _Walker(fx.Interpreter):
    """Runs a network on cones as far as it can, then on whole maps."""

    def __init__(self, trunk: fx.GraphModule, around: dict[fx.Node, Any], valid: dict[Any, FoldedConvolution]) -> None:
        super().__init__(trunk)
        self.areas: dict[fx.Node, int] = {}
        """Of the cone that each convolution gave."""
        self._around = around
        self._valid = valid

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "placeholder":
            windows, corners = super().run_node(n)
            return Cone(windows, corners, self._around[n])
        if n.op == "output":
            return super().run_node(n)
        arguments, keywords = self.fetch_args_kwargs_from_env(n)
        found = self._on_cones(n, arguments)
        if found is not None:
            return found
        whole: Any = map_aggregate((arguments, keywords), lambda each: each.whole() if isinstance(each, Cone) else each)
        return getattr(self, n.op)(n.target, *whole)

    def _on_cones(self, n: fx.Node, arguments: Sequence[Any]) -> Cone | None:
        """What a node gives on cones; None where it cannot, or it would not pay."""
        first, around = (*arguments, None)[0], self._around[n]
        if not (isinstance(first, Cone) and isinstance(around, Tensor) and around.ndim == 4):
            return None
        if max(mine / whole for mine, whole in zip(first.size, first.around.shape[-2:], strict=True)) > DENSE_FROM:
            return None
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, FoldedConvolution):
            return self._convolved(n, module, first, arguments[1] if len(arguments) > 1 else None)
        if isinstance(module, nn.MaxPool2d) and module.dilation == 1 and not module.ceil_mode:
            reach = _Reach.of(module.kernel_size, module.stride, module.padding)
            corners, size = reach.outputs(first, around)
            seen = first.cut(*reach.inputs(corners, size), outside=-math.inf)
            return Cone(F.max_pool2d(seen, module.kernel_size, module.stride), corners, around)
        if is_relu(n, module):
            return Cone(F.relu(first.values), first.corners, around)
        return None

    def _convolved(self, n: fx.Node, module: FoldedConvolution, first: Cone, summand: Any) -> Cone | None:
        around = self._around[n]
        stride, padding, dilation, _ = module.geometry
        kernel = [1 + (size - 1) * apart for size, apart in zip(module.kernel_size, dilation, strict=True)]
        reach = _Reach.of(kernel, stride, padding)
        corners, size = reach.outputs(first, around)
        added = None
        if summand is not None:
            if not isinstance(summand, Cone) or not Cone(around.new_empty(1, 1, *size), corners, around).holds(summand):
                return None
            added = summand.cut(corners, size)
        seen = first.values if reach.pointwise else first.cut(*reach.inputs(corners, size))
        self.areas[n] = math.prod(size)
        key = (n, tuple(seen.shape[1:]))
        if key not in self._valid:
            self._valid[key] = module.without_padding(seen.shape)
        return Cone(self._valid[key](seen, added), corners, around)


@dataclass(frozen=True)
class _Reach:
    """Which outputs a rectangle of inputs reaches through a kernel, and which inputs these see."""

    kernel: Tensor
    stride: Tensor
    padding: Tensor

    @classmethod
    def of(cls, *sizes: Any) -> "_Reach":
        return cls(*(torch.tensor((size, size) if isinstance(size, int) else tuple(size)) for size in sizes))

    @property
    def pointwise(self) -> bool:
        return bool((self.kernel == 1).all() and (self.stride == 1).all())

    def outputs(self, cone: Cone, around: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Corners and size, moved inside the map of outputs where they would stick out."""
        whole = torch.tensor(around.shape[-2:])
        size = torch.minimum((torch.tensor(cone.size) + self.kernel - 2) // self.stride + 1, whole)
        first = -((self.kernel - 1 - self.padding - cone.corners) // self.stride)  # rounded up
        corners = torch.minimum(first.clamp(min=0), whole - size)
        return corners, (int(size[0]), int(size[1]))

    def inputs(self, corners: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Corners and size of what outputs see."""
        tall, wide = ((torch.tensor(size) - 1) * self.stride + self.kernel).tolist()
        return corners * self.stride - self.padding, (tall, wide)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
