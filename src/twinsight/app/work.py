"""Explaining a pair for the page: composed, planned and scored as a run does it, and stopped between passes."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from twinsight.app.photos import stage
from twinsight.app.settings import Settings
from twinsight.config import conf_folder, register_schema, validate
from twinsight.data import PairBatch, PairDataset, SkippedPair
from twinsight.engine import PairBank
from twinsight.errors import UserError
from twinsight.explainers import Explainer
from twinsight.metrics import forwards_per_pair
from twinsight.models import available_models, evaluating
from twinsight.study.cell import Cell
from twinsight.study.engine import execution_of
from twinsight.study.evaluation import score_cell
from twinsight.study.pictures import views_as_drawn
from twinsight.study.planner import Models, Planner

SIDE = 384
"""Longest side of a drawn view in pixels."""

_GUESS = 500
"""Images per explainer, where none of a set says what it costs."""

Tell = Callable[[float, str], None]


class Cancelled(Exception):
    """Whoever asked does not want to know any more."""


@dataclass(eq=False)
class Explained:
    """What one explainer found for the pair.

    Attributes:
        name, title: of the explainer, in configurations and in figures.
        views: both views ``(H, W, 3)`` as the photos have them, in [0, 1].
        maps: ``(h, w)`` of view 1 and view 2 at the method's own resolution; the second may be None.
        drawn: the same at the size of the model's views.
        images: ``(H, W, 3)`` in [0, 1] that methods make instead of maps, by name.
        columns: score, and metrics where they were asked for, by name.
        curves: of insertion and deletion, by name.
        not_applicable: metrics that make no sense for it, and why.
    """

    name: str
    title: str
    views: tuple[NDArray, NDArray]
    maps: list[NDArray | None] = field(default_factory=list)
    drawn: list[NDArray | None] = field(default_factory=list)
    images: dict[str, NDArray] = field(default_factory=dict)
    columns: dict[str, float] = field(default_factory=dict)
    curves: dict[str, NDArray] = field(default_factory=dict)
    not_applicable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A member of the set that makes no sense for the model or the pair."""

    name: str
    why: str


class Workshop:
    """Where pairs are explained, one at a time: explainers hook into networks that all users share.

    Args:
        models: words of each model on offer, by its name.
        device: of the networks.

    Attributes:
        passes: images that went through networks so far.
    """

    def __init__(self, models: Mapping[str, str], device: torch.device | str = "cpu") -> None:
        self.models = dict(models)
        self.device = torch.device(device)
        self.passes = 0
        self._built: Models = {}
        self._lock = threading.Lock()
        register_schema()
        # Whole views go through alone and perturbed ones in chunks: reduced-precision kernels would tell them apart.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    def explain(
        self, settings: Settings, photos: Sequence[Path], scored: bool, stop: threading.Event, tell: Tell
    ) -> Iterator[Explained | LeftOut]:
        """Explain the pair that one photo or two make; what each explainer found, as it is found.

        Args:
            settings: what was chosen.
            photos: one file, or two.
            scored: compute the nine metrics as well.
            stop: set it to end the work before the next pass.
            tell: called with the share of the work that is done, and what is being done.

        Raises:
            UserError: files, names or options that do not fit.
            Cancelled: ``stop`` was set.
        """
        if settings.model not in self.models:
            raise UserError(f"unknown model {settings.model!r}: choose one of {', '.join(self.models)}")
        with self._turn(stop), TemporaryDirectory(prefix="twinsight-pair-") as folder:
            config = self._composed(settings, stage(photos, Path(folder)), scored)
            planned = Planner(models=self._built).plan(config)
            planned.model.to(self.device)
            pairs = PairDataset(planned.photos, planned.views, planned.model.normalization, config.seed)
            batch = pairs[0]
            if isinstance(batch, SkippedPair):
                raise UserError(f"the photo cannot be read: {batch.reason}")
            batch = batch.to(self.device)
            view1, view2 = views_as_drawn(pairs, 0, SIDE)
            size = (planned.views.size, planned.views.size)
            watch = _Watch(self, stop, tell, [_passes(cell, size) for cell in planned.cells])
            bank = PairBank(
                planned.model, config.engine.chunk_size, execution=execution_of(config), before_pass=watch.before_pass
            )
            for cell in planned.cells:
                watch.begin(cell.explainer.label)
                yield _explained(cell, batch, bank, size, (view1, view2))
            yield from (LeftOut(name, why) for name, why in planned.left_out.items())

    @contextmanager
    def _turn(self, stop: threading.Event) -> Iterator[None]:
        while not self._lock.acquire(timeout=0.1):
            if stop.is_set():
                raise Cancelled
        try:
            if stop.is_set():
                raise Cancelled
            yield
        finally:
            self._lock.release()

    def _composed(self, settings: Settings, data: Sequence[str], scored: bool) -> DictConfig:
        words = settings.words(data, scored)
        place = words.index(f"model={settings.model}")
        words[place : place + 1] = self.models[settings.model].split()
        with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3", job_name="app"):
            config = hydra.compose("config", words)
        for node in (config.explainer, *(config.explainers.options.values() if config.explainers else ())):
            if "progress" in node:
                node.progress = False  # bars are on the page
        validate(config)
        return config


class _Watch:
    """Counts passes, tells how far the work is, and ends it when nobody wants it any more.

    Args:
        costs: images that each cell sends through the network; None where its explainer does not say.
    """

    def __init__(self, workshop: Workshop, stop: threading.Event, tell: Tell, costs: Sequence[int | None]) -> None:
        self._workshop, self._stop, self._tell, self._costs = workshop, stop, tell, costs
        known = [max(1, cost) for cost in costs if cost is not None]
        self._guess = sum(known) / len(known) if known else _GUESS
        self._weights = [self._guess if cost is None else max(1, cost) for cost in costs]
        self._doing, self._cell, self._done = "", -1, 0

    def begin(self, doing: str) -> None:
        """The next cell; those before it are done, whatever they were said to cost."""
        self._doing, self._cell, self._done = doing, self._cell + 1, 0

    def before_pass(self, images: int) -> None:
        if self._stop.is_set():
            raise Cancelled
        weight = self._weights[self._cell]
        if self._costs[self._cell] is None:
            part = self._done / (self._done + self._guess)  # ever slower, and never whole before the work is
        else:
            part = min(1.0, self._done / weight)
        self._tell((sum(self._weights[: self._cell]) + part * weight) / sum(self._weights), self._doing)
        self._done += images
        self._workshop.passes += images


def _passes(cell: Cell, size: tuple[int, int]) -> int | None:
    cost = cell.explainer.declared_cost(size)
    if cost is None:
        return None
    further = forwards_per_pair(cell.metrics.values(), size, cell.explainer.maps, cost.forwards + cost.backwards)
    return cost.forwards + cost.backwards + further


def _explained(
    cell: Cell, batch: PairBatch, bank: PairBank, size: tuple[int, int], views: tuple[NDArray, NDArray]
) -> Explained:
    explainer: Explainer = cell.explainer
    explainer.to(batch.view1.device)
    with evaluating(bank.model), torch.no_grad():
        found = explainer(batch.view1, batch.view2, seeds=batch.seeds, bank=bank, partner_view2=batch.partner_view2)
        columns, arrays = score_cell(cell, batch, found, bank)
    numbers = {name: float(values[0]) for name, values in {**found.columns, **columns}.items()}
    curves = {name.removeprefix("curve_"): _array(one) for name, one in arrays.items() if name.startswith("curve_")}
    result = Explained(cell.label, explainer.label, views, columns=numbers, curves=curves)
    result.not_applicable.update(cell.not_applicable)
    if explainer.maps == 0:
        result.images.update({name: _array(image).transpose(1, 2, 0) for name, image in found.images.items()})
    else:
        result.maps = [None if one is None else _array(one) for one in (found.map1, found.map2)]
        result.drawn = [None if one is None else _array(one) for one in found.resized(size)]
    return result


def _array(values: Any) -> NDArray:
    return np.asarray(values[0].float().cpu())


def default_models(further: Sequence[str] = ()) -> dict[str, str]:
    """Words of the models that ship with the package, and of ``further`` ones as ``NAME key=value ...``.

    >>> default_models(["pretrained model.checkpoint=FILE"])["pretrained"]
    'model=pretrained model.checkpoint=FILE'
    """
    models = {name: f"model={name}" for name in available_models()}
    return models | {words.split()[0]: f"model={words}" for words in further}
