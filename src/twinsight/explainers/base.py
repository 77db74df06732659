"""The contract of every explainer: two views in, two maps and the score out."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import pytorch_lightning as pl
import torch
from torch import Tensor

from twinsight.engine import EXACT, PairBank, baseline_image, check_views, generator, seeds_from_pixels
from twinsight.errors import UserError
from twinsight.explainers.drawing import plot, plot_on_photo
from twinsight.explainers.geometry import MapGeometry
from twinsight.models import TwoViewModel, evaluating, full_precision
from twinsight.naming import snake_case
from twinsight.protocol import resolve

EXPLAINERS: dict[str, type["Explainer"]] = {}
"""Every explainer class that has been imported, by its name."""


class Maps(NamedTuple):
    """What an explainer found for one pair; a plain ``(map1, map2)`` will do where there are no details.

    Attributes:
        map1: ``(h, w)`` for view 1, raw and signed.
        map2: ``(h, w)`` for view 2, None where the method makes one map.
        details: what else it found: scalars become columns of the record, larger tensors are kept beside the maps.
    """

    map1: Tensor
    map2: Tensor | None
    details: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Cost:
    """Passes of single images through the network that explaining one pair takes, the two views included.

    A backward pass counts where it reaches the input; the heads' alone do not.

    >>> print(Cost(884), Cost(2, 2), sep=", ")
    884 F, 2 F + 2 b
    """

    forwards: int
    backwards: int = 0

    def __str__(self) -> str:
        return f"{self.forwards} F" + (f" + {self.backwards} b" if self.backwards else "")


class Explainer(pl.LightningModule):
    """Base of all explainers. A subclass names its options and explains one pair; the rest is here.

    Batches are explained pair by pair, so that the result of a pair cannot depend on the batch it came in. The model's
    parameters are frozen and it is in evaluation mode while explaining; both are as they were afterwards.

    Args:
        model: the network to explain.
        protocol: ``"sound"`` or ``"paper"``: gives the value of every option left None.
        given: the options of the subclass; resolved they make up ``options``, which names the explanation in records.

    Raises:
        UserError: unknown protocol, or a model that is no TwoViewModel.

    >>> from twinsight.models import small_two_view
    >>> class Edges(Explainer):
    ...     def explain(self, pair):
    ...         return pair.view1.diff(dim=-1).abs().mean(dim=0), pair.view2.diff(dim=-1).abs().mean(dim=0)
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> Edges(small_two_view())(view1, view2).map1.shape
    torch.Size([1, 64, 63])
    """

    protocol_options: ClassVar[dict[str, dict[str, Any]]] = {}
    name: ClassVar[str] = "explainer"
    """In file names and tables; the class's name in snake case where a subclass gives none."""
    title: ClassVar[str] = "Explainer"
    """In figures; the class's name where a subclass gives none."""
    source: ClassVar[str] = "yours"
    """Where the method is defined."""
    family: ClassVar[str] = ""
    """What it is listed under; the name of its file where a subclass gives none."""
    maps: int = 2
    """How many maps it makes: 2, 1 (of view 1), or 0 (images instead). Decides which metrics apply."""
    not_for: Mapping[str, str] = MappingProxyType({})
    """Columns of metrics that make no sense for it though its maps would do, and why."""

    needs_partner: ClassVar[bool] = False
    """Whether it explains against a view of another photo, ``partner_view2``."""

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = snake_case(cls.__name__)
        if "title" not in cls.__dict__:
            cls.title = snake_case(cls.__name__).replace("_", " ").capitalize()
        if "family" not in cls.__dict__:
            cls.family = cls.__module__.rsplit(".", 1)[-1]
        if not (abstract or cls.__name__.startswith("_")):
            EXPLAINERS[cls.name] = cls

    def __init__(self, model: TwoViewModel, protocol: str = "sound", **given: Any) -> None:
        super().__init__()
        if not isinstance(model, TwoViewModel):
            raise UserError(f"`model` must be a TwoViewModel, got {type(model).__name__}")
        self.model = model
        self.protocol = protocol
        self.options: dict[str, Any] = resolve(protocol, self.protocol_options, given)

    def identity(self) -> dict[str, Any]:
        """What decides its maps, beside the model: for hashes and records."""
        kind = type(self)
        target = f"{kind.__module__}.{kind.__qualname__}"
        return {"name": self.name, "target": target, "protocol": self.protocol, "options": self.options}

    @property
    def variant(self) -> str:
        """What tells this one from others of its class in a table, as the paper's tables write it; mostly empty."""
        return ""

    @property
    def label(self) -> str:
        """Title with the variant, for figures and tables."""
        return f"{self.title} ({self.variant})" if self.variant else self.title

    def cost(self, image_size: tuple[int, int]) -> Cost:
        """What explaining one pair of images of (height, width) pixels takes, nothing being shared.

        The table of explainers, plans of studies and the app's progress bar are made from it.
        """
        raise NotImplementedError

    def declared_cost(self, image_size: tuple[int, int]) -> Cost | None:
        """:meth:`cost`, or None for a method that declares none."""
        try:
            return self.cost(image_size)
        except NotImplementedError:
            return None

    def forward(
        self,
        view1: Tensor,
        view2: Tensor,
        seeds: Tensor | None = None,
        bank: PairBank | None = None,
        partner_view2: Tensor | None = None,
    ) -> Any:
        """Explain a batch of pairs.

        Args:
            view1: ``(B, C, H, W)`` first views in the model's input space.
            view2: ``(B, C, H, W)`` second views.
            seeds: ``(B,)`` int64, one per pair; None derives them from the pixels of view 1.
            bank: embeddings to share with other explainers and metrics; None uses a bank of its own.
            partner_view2: ``(B, C, H, W)`` second views of other pairs, which some controls explain against.

        Returns:
            a :class:`PairExplanation`; methods that make images return theirs.

        Raises:
            UserError: shapes do not fit, or the bank belongs to another model.
            NonFiniteEmbedding: the model answers NaN or infinity.
        """
        check_views(self.model, view1, view2, seeds)
        if bank is not None and bank.model is not self.model:
            raise UserError("`bank` was made for another model")
        bank = PairBank(self.model) if bank is None else bank
        # Trainers and callers may be in inference mode, whose tensors cannot take part in gradients.
        # Passes outside the bank, as of heads alone, are exact; the bank's are as its own precision says.
        exact = EXACT.products(view1.device)
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.model), exact:
            view1, view2 = (view.clone() if view.is_inference() else view.detach() for view in (view1, view2))
            view1, view2 = view1.contiguous(), view2.contiguous()  # networks round by the layout of what they are given
            if partner_view2 is not None:
                check_views(self.model, view1, partner_view2, None)
                partner_view2 = partner_view2.clone().contiguous()
            seeds = seeds_from_pixels(view1) if seeds is None else seeds
            partners = [None] * len(view1) if partner_view2 is None else partner_view2
            pairs = [Pair(a, b, int(s), bank, p) for a, b, s, p in zip(view1, view2, seeds, partners, strict=True)]
            return self.collect(pairs, [self.explain(pair) for pair in pairs])

    def on(self, model: TwoViewModel) -> Self:
        """The same explainer, options and all, on another model of the same architecture.

        What it wraps moves along; other networks that it holds are shared, not copied.

        >>> from twinsight.explainers import GradCAM, Inverted
        >>> from twinsight.models import small_two_view
        >>> other = small_two_view()
        >>> moved = Inverted(small_two_view(), of="gradcam").on(other)
        >>> moved.model is moved.of.model is other, isinstance(moved.of, GradCAM)
        (True, True)
        """
        moved = dict(model.named_modules())
        inside = {id(old): moved[name] for name, old in self.model.named_modules() if name in moved}
        others = {id(old): old for old in self.modules() if isinstance(old, TwoViewModel) and old is not self.model}
        # Python has no copy of a read-only mapping, and needs none.
        values = (value for part in self.modules() for value in vars(part).values())
        fixed = {id(value): value for value in values if isinstance(value, MappingProxyType)}
        return deepcopy(self, {**fixed, **others, **inside})

    def explain(self, pair: "Pair") -> Any:
        """:class:`Maps` of one pair, or a plain ``(map1, map2)``.

        Runs without gradients; wrap what needs them in ``torch.enable_grad()``.
        """
        raise NotImplementedError

    def collect(self, pairs: Sequence["Pair"], found: Sequence[Any]) -> Any:
        """One answer for the batch of what :meth:`explain` found for each pair."""
        map1, map2, details = zip(*(Maps(*one) for one in found), strict=True)
        view1, view2 = torch.stack([pair.view1 for pair in pairs]), torch.stack([pair.view2 for pair in pairs])
        return PairExplanation(
            map1=full_precision(torch.stack(map1)),
            map2=None if map2[0] is None else full_precision(torch.stack(map2)),
            score=torch.stack([pair.score for pair in pairs]),
            geometry=self.geometry((view1.shape[-2], view1.shape[-1])),
            views=(self.model.pixels(view1), self.model.pixels(view2)),
            title=self.label,
            details={name: torch.stack([each[name] for each in details]) for name in details[0]},
        )

    def geometry(self, image_size: tuple[int, int]) -> MapGeometry:
        """How the cells of this explainer's maps lie on an image of (height, width) pixels."""
        return MapGeometry()

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """``Trainer.predict`` on a ``PairDataModule`` returns explanations."""
        return self(batch.view1, batch.view2, batch.seeds, partner_view2=batch.partner_view2)


@dataclass(eq=False)
class Pair:
    """One pair, with everything about it that explainers share, computed at most once.

    Attributes:
        view1, view2: ``(C, H, W)`` in the model's input space, normalised as it wants; ``model.pixels`` goes back.
        seed: of this pair; take randomness from :meth:`generator`.
        bank: where embeddings come from.
        partner_view2: second view of another pair, where the caller gave one.
    """

    view1: Tensor
    view2: Tensor
    seed: int
    bank: PairBank
    partner_view2: Tensor | None = None

    @cached_property
    def z1(self) -> Tensor:
        """Embedding ``(d,)`` of view 1."""
        return self.bank.embedding(self.view1, 1)

    @cached_property
    def z2(self) -> Tensor:
        """Embedding ``(d,)`` of view 2."""
        return self.bank.embedding(self.view2, 2)

    @cached_property
    def score(self) -> Tensor:
        """Scalar similarity ``s0`` of the pair."""
        return self.bank.model.similarity(self.z1.unsqueeze(0), self.z2.unsqueeze(0)).squeeze(0)

    def features(self, view: int) -> Tensor:
        """Feature map ``(D, h, w)`` of view 1 or 2."""
        return self.bank.features(self.view(view), view)

    def view(self, view: int) -> Tensor:
        """View 1 or 2."""
        return self.view1 if view == 1 else self.view2

    def with_graph(self, view: int, own: bool = False) -> tuple[Tensor, Tensor]:
        """View 1 or 2 as a leaf ``(1, C, H, W)``, and its embedding ``(1, d)`` with the graph between them.

        One forward, which serves the bank as the view's embedding as well, unless it goes through the network's
        ``own`` modules, for hooks and modes to see.
        """
        with torch.enable_grad():
            leaf = self.view(view).unsqueeze(0).clone().requires_grad_()
            if own:
                return leaf, self.bank.encode(leaf, view, own=True)
            embedding = self.bank.encode_whole(leaf, view)
        self.bank.offer(self.view(view), view, embedding.detach()[0])
        return leaf, embedding

    def baseline(self, name: Any, view: int) -> Tensor:
        """The image that erased pixels of view 1 or 2 come from."""
        image = self.view(view)
        return baseline_image(name, image, self.bank.model.normalization, self.seed)

    def generator(self, *purpose: object) -> torch.Generator:
        """CPU generator of this pair for one purpose."""
        return generator(self.seed, *purpose)


@dataclass(eq=False)
class PairExplanation:
    """Two maps and the score they explain; raw and signed, larger is more important.

    Attributes:
        map1: ``(B, h, w)`` for view 1 at the method's own resolution.
        map2: ``(B, h, w)`` for view 2, None where the method makes one map.
        score: ``(B,)`` similarity of each pair.
        geometry: how the cells lie on the image.
        views: both views as ``(B, C, H, W)`` pixels in [0, 1], for drawing.
        title: name of the method.
        details: what else the method found: ``(B,)`` numbers or ``(B, ...)`` arrays, by name.
    """

    map1: Tensor
    map2: Tensor | None
    score: Tensor
    geometry: MapGeometry = field(default_factory=MapGeometry)
    views: tuple[Tensor, Tensor] | None = None
    title: str = ""
    details: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, Tensor]:
        """Numbers ``(B,)`` for the record of each pair."""
        return {"score": self.score, **{name: value for name, value in self.details.items() if value.ndim == 1}}

    @property
    def arrays(self) -> dict[str, Tensor | None]:
        """What is kept beside the records, ``(B, ...)``; None for the map of view 2 where there is none."""
        larger = {name: value for name, value in self.details.items() if value.ndim > 1}
        return {"map1": self.map1, "map2": self.map2, **larger}

    def to(self, device: torch.device | str) -> "PairExplanation":
        """The explanation with its tensors on ``device``."""
        return replace(
            self,
            map1=self.map1.to(device),
            map2=None if self.map2 is None else self.map2.to(device),
            score=self.score.to(device),
            views=None if self.views is None else (self.views[0].to(device), self.views[1].to(device)),
            details={name: value.to(device) for name, value in self.details.items()},
        )

    def resized(self, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Both maps at ``size`` (H, W): bilinear, align_corners=False, honouring the geometry."""
        map2 = None if self.map2 is None else self.geometry.resize(self.map2, size)
        return self.geometry.resize(self.map1, size), map2

    def plot(self, index: int = 0, axes: tuple[Any, Any] | None = None, inches: float | None = None) -> tuple[Any, Any]:
        """Draw the maps of pair ``index`` over its views, on one scale; a notebook shows them at once.

        Args:
            index: which pair of the batch.
            axes: two matplotlib axes to draw on; None makes a figure with a colour bar.
            inches: width of that figure, such as ``plotting.COLUMN``; None is 7.

        Returns:
            the two axes (``axes[0].figure`` to show; ``plotting.write_figure`` writes it as PNG or PDF).

        Raises:
            UserError: the explanation does not hold its views.
        """
        return plot(self, index, axes, inches)

    def plot_on_photo(
        self,
        photo: Any,
        geometry: Any,
        index: int = 0,
        axes: tuple[Any, Any] | None = None,
        inches: float | None = None,
    ) -> tuple[Any, Any]:
        """Draw the maps of pair ``index`` on the photo that its views were cut from, turned back if mirrored.

        Args:
            photo: the whole photo, a Pillow image or ``(H, W, 3)`` floats in [0, 1]; two of them where view 1 and
                view 2 are of different photos.
            geometry: where view 1 and view 2 lie on it: ``batch.geometry[index]`` of the data module.
            index, axes, inches: as for :meth:`plot`.

        Returns:
            the two axes.
        """
        return plot_on_photo(self, photo, geometry, index, axes, inches)
