"""The contract of methods that answer with images instead of maps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import track
from torch import Tensor

from twinsight.errors import UserError
from twinsight.explainers.base import Explainer, Pair
from twinsight.models import TwoViewModel
from twinsight.plotting import draw_images

FRAMES = 24
"""Snapshots kept of an optimisation, at most."""

T = TypeVar("T")


class Images(NamedTuple):
    """What an image maker made for one pair. Names with a slash, ``"row/column"``, are drawn as a grid.

    Attributes:
        images: ``(3, H, W)`` pixels in [0, 1], by name.
        traces: ``(T,)`` of each image: what was optimised, step by step.
        frames: ``(K, 3, H, W)`` snapshots on the way to each image, the last one the image itself.
        details: scalars, which become columns of the record.
    """

    images: Mapping[str, Tensor]
    traces: Mapping[str, Tensor]
    frames: Mapping[str, Tensor]
    details: Mapping[str, Tensor] = MappingProxyType({})


class ImageExplainer(Explainer, abstract=True):
    """Base of methods that make images: :meth:`explain` returns :class:`Images` of one pair, calls :class:`PairImages`.

    Args:
        model: the network to explain.
        protocol: ``"sound"`` or ``"paper"``.
        progress: show a progress bar per image in the terminal.
        given: the options of the subclass.
    """

    maps = 0
    trace_label: ClassVar[str] = "Objective"
    """What traces hold, for figures."""
    shown: ClassVar[tuple[int, ...]] = (1, 2)
    """The views that belong beside the images in figures."""

    def __init__(self, model: TwoViewModel, protocol: str = "sound", progress: bool = False, **given: Any) -> None:
        super().__init__(model, protocol, **given)
        self.progress = progress

    def explain(self, pair: Pair) -> Images:
        raise NotImplementedError

    def collect(self, pairs: Sequence[Pair], found: Sequence[Images]) -> "PairImages":
        images, traces, frames, details = zip(*found, strict=True)
        view1, view2 = torch.stack([pair.view1 for pair in pairs]), torch.stack([pair.view2 for pair in pairs])
        return PairImages(
            images=_stacked(images),
            traces=_stacked(traces),
            frames=_stacked(frames),
            score=torch.stack([pair.score for pair in pairs]),
            views=(self.model.pixels(view1), self.model.pixels(view2)),
            title=self.label,
            trace_label=self.trace_label,
            shown=self.shown,
            details=_stacked(details),
        )

    def steps(self, values: Sequence[T], description: str) -> Iterable[T]:
        """``values``, with a progress bar where one was asked for."""
        if not self.progress:
            return values
        # A pipe has no use for bars, and would get an empty line for each.
        return track(values, description, transient=True, disable=not Console().is_terminal)


@dataclass(eq=False)
class PairImages:
    """Images made for a batch of pairs, and how they came about.

    Attributes:
        images: ``(B, 3, H, W)`` pixels in [0, 1], by name; a grid where names are ``"row/column"``.
        traces: ``(B, T)`` of each image: what was optimised, step by step.
        frames: ``(B, K, 3, H, W)`` of each image: K snapshots on the way, evenly spaced, the last one the image itself.
        score: ``(B,)`` similarity of each pair.
        views: both views as ``(B, 3, H, W)`` pixels in [0, 1].
        title: name of the method.
        trace_label: what the traces hold.
        shown: the views that belong beside the images.
        details: ``(B,)`` numbers, by name.
    """

    images: Mapping[str, Tensor]
    traces: Mapping[str, Tensor]
    frames: Mapping[str, Tensor]
    score: Tensor
    views: tuple[Tensor, Tensor]
    title: str = ""
    trace_label: str = "Objective"
    shown: tuple[int, ...] = (1, 2)
    details: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, Tensor]:
        """Numbers ``(B,)`` for the record of each pair."""
        return {"score": self.score, **self.details}

    @property
    def arrays(self) -> dict[str, Tensor]:
        """What is kept beside the records, ``(B, ...)``: images, traces, and frames in 8 bits."""
        found = {f"image_{name}": image for name, image in self.images.items()}
        found |= {f"trace_{name}": trace for name, trace in self.traces.items()}
        return found | {f"frames_{name}": (255 * film).round().byte() for name, film in self.frames.items()}

    def to(self, device: torch.device | str) -> "PairImages":
        """The same with all tensors on ``device``."""

        def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device) for name, tensor in tensors.items()}

        return replace(
            self,
            images=moved(self.images),
            traces=moved(self.traces),
            frames=moved(self.frames),
            score=self.score.to(device),
            views=(self.views[0].to(device), self.views[1].to(device)),
            details=moved(self.details),
        )

    def plot(self, index: int = 0, path: str | Path | None = None) -> tuple[Axes, ...]:
        """Draw the views, the images and their traces of pair ``index`` on one page.

        Args:
            index: which pair of the batch.
            path: PNG to write.

        Returns:
            its axes (``axes[0].figure`` to show or save): the views, the images, and the traces, one for each column.

        Raises:
            UserError: there is no such pair.
        """
        self._check(index)
        figure = draw_images(
            {f"View {view}": _channels_last(self.views[view - 1][index]) for view in self.shown},
            {name: _channels_last(image[index]) for name, image in self.images.items()},
            {name: trace[index].cpu().numpy() for name, trace in self.traces.items()},
            similarity=float(self.score[index]),
            title=self.title,
            trace_label=self.trace_label,
            path=path,
        )
        return tuple(figure.axes)

    def film(self, name: str, index: int = 0) -> Any:
        """Snapshots of image ``name`` of pair ``index`` as a ``(K, H, W, 3)`` array, for ``plotting.write_gif``."""
        self._check(index)
        return self.frames[name][index].movedim(1, -1).cpu().numpy()

    def _check(self, index: int) -> None:
        if not -len(self.score) <= index < len(self.score):
            raise UserError(f"`index` must be one of {len(self.score)} pairs, got {index}")


def frames_at(steps: int, count: int = FRAMES) -> set[int]:
    """At most ``count`` of the step numbers ``1 ... steps``, evenly spaced, the last one among them.

    >>> sorted(frames_at(201, 3)), frames_at(2)
    ([67, 134, 201], {1, 2})
    """
    return {-(-steps * (place + 1) // count) if steps > count else min(place + 1, steps) for place in range(count)}


def _stacked(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in found]) for name in found[0]}


def _channels_last(image: Tensor) -> Any:
    return image.movedim(0, -1).cpu().numpy()
