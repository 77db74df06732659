"""What is timed: each method and metric as this package, the rival and peers do it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.measure import Passes, Work
from benchmarks.rival import Rival
from twinsight.engine import Execution, PairBank
from twinsight.engine.execution import EXACT
from twinsight.explainers import (
    AveragedTransforms,
    ConditionalOcclusion,
    ContextAgnosticOcclusion,
    Explainer,
    GradCAM,
    InputXGradient,
    InteractionCAM,
    PairwiseOcclusion,
    SmoothGrad,
)
from twinsight.metrics.functional import average_drop, insertion_deletion
from twinsight.models import TwoViewModel

WINDOW, STRIDE, SIDE, POINTS = 64, 8, 224, 224
LAMBDAS = [n / 10 for n in range(9, 0, -1)]
OURS, RIVAL = "twinsight", "literal"
DENSE, CONES, ADAPTIVE = "twinsight, whole passes", "twinsight, by cones", "twinsight, adaptive"
TOLERANCE = 2e-3


@dataclass
class Setting:
    """A network and a pair.

    Attributes:
        model: parameters that want gradients, evaluation mode; both sides use it.
        views, maps: ``(1, 3, 224, 224)`` and ``(1, 224, 224)`` each.
        bank: of this package's side; emptied before each run, so that only the folded network stays.
        quick: smaller slices.
    """

    model: TwoViewModel
    views: tuple[Tensor, Tensor]
    maps: tuple[Tensor, Tensor]
    bank: PairBank
    quick: bool = False

    @property
    def stride(self) -> int:
        """Of the windows in slices: 36 of 441 a view, 16 when quick, more where that is less than a chunk.

        A part of a chunk takes a GPU nearly as long as all of it.
        """
        fewest = min(self.bank.chunk_size, len(boxes(STRIDE)))
        return next(step for step in (53 if self.quick else 32, 20, 14, STRIDE) if len(boxes(step)) >= fewest)

    @property
    def points(self) -> int:
        """Of curves in slices; at least a chunk and one more."""
        return min(POINTS, max(17 if self.quick else 33, self.bank.chunk_size + 1))

    @property
    def rival(self) -> Rival:
        return Rival(self.model)

    def counted(self, work: Callable[[PairBank], object]) -> Callable[[], Passes]:
        """``work`` with an empty bank, and the passes it took."""

        def run() -> Passes:
            self.bank.clear()
            before = Passes(self.bank.forwards, self.bank.backwards)
            work(self.bank)
            return Passes(self.bank.forwards, self.bank.backwards) + before * -1

        return run

    def explained(self, *explainers: Explainer, views_known: bool = False) -> Callable[[], Passes]:
        """All of ``explainers`` on the pair, sharing a bank.

        Args:
            views_known: the bank begins with the embeddings of both views, as where another method came before; for
                those who take nothing from there but the score that comes with the maps.
        """
        known = [(view[0], self.bank.embedding(view[0])) for view in self.views] if views_known else []

        def work(bank: PairBank) -> None:
            for view, embedding in known:
                bank.offer(view, 1, embedding)
            for explainer in explainers:
                explainer(*self.views, bank=bank)

        return self.counted(work)

    def once(self, ends: int = 0) -> Callable[[], Passes]:
        """Embeddings of both views, and of ``ends`` images where curves begin or end: one at a time, once."""
        further = [self.views[0] * (n / 8) for n in range(ends)]
        return self.counted(lambda bank: [bank.embedding(each[0]) for each in (*self.views, *further)])

    def literally(self, work: Callable[[Rival], object]) -> Callable[[], Passes]:
        """``work`` of the rival, and the passes it took."""

        def run() -> Passes:
            rival = self.rival
            work(rival)
            return rival.passes()

        return run


@dataclass
class Compared:
    """One row: two hands that did the same work.

    Attributes:
        name: of the row.
        aim: ratio to reach on two cores; None where none was set.
        whole: whether all of our passes are computed. Cones and approximations leave work out, so that passes say
            nothing about how fast the rest is done.
        ours, other: who did it.
    """

    name: str
    aim: float | None = None
    whole: bool = True
    ours: str = OURS
    other: str = RIVAL


@dataclass
class Item:
    """The same work by several hands, in turn.

    Attributes:
        works: by hand.
        rows: what is read off them.
    """

    works: dict[str, Work]
    rows: list[Compared]


def boxes(stride: int) -> list[tuple[int, int, int, int]]:
    """Windows of one view on a grid."""
    offsets = range(0, SIDE - WINDOW + 1, stride)
    return [(top, left, WINDOW, WINDOW) for top in offsets for left in offsets]


def items(setting: Setting) -> list[Item]:
    """Every row for one network."""
    return [
        _conditional_occlusion(setting),
        _both_occlusions(setting),
        _pairwise_occlusion(setting),
        _cams(setting),
        _input_x_gradient(setting),
        *(_smoothgrad(setting, guided) for guided in (False, True)),
        *(_averaged_transforms(setting, guided) for guided in (False, True)),
        insertion_and_deletion(setting, aim=5.0, adaptive=True),
        _average_drop(setting),
    ]


def chunked(setting: Setting, done: int, whole: int, groups: int) -> tuple[float, float]:
    """Images computed for ``groups`` times ``done`` and ``whole`` versions, chunks being filled up."""
    return groups * setting.bank.filled_up(done), groups * setting.bank.filled_up(whole)


def by_windows(setting: Setting, *kinds: Callable[..., Explainer], incremental: bool | None = None) -> Work:
    """Occlusion by a slice of the windows."""
    whole, groups = len(boxes(STRIDE)), 2 * len(kinds)
    bank = PairBank(
        setting.model, setting.bank.chunk_size, execution=replace(setting.bank.execution, incremental=incremental)
    )
    chosen = replace(setting, bank=bank)
    explained = chosen.explained(
        *(kind(setting.model, window=WINDOW, stride=setting.stride, protocol="paper") for kind in kinds)
    )
    padded = chunked(setting, len(boxes(setting.stride)), whole, groups)
    # Cones are cut from feature maps of what is outside the windows, one more image a view and kind.
    outside = groups if by_cones(setting, incremental) else 0
    return Work(explained, Passes(2 + groups * whole), padded, chosen.once(outside))


def by_cones(setting: Setting, incremental: bool | None = None) -> bool:
    """Whether occlusion goes by cones, which pay for this network, window and device where it is a CPU."""
    execution = setting.bank.execution
    wanted = setting.views[0].device.type == "cpu" if incremental is None else incremental
    return wanted and execution.precision != "bf16" and not execution.compile


def _conditional_occlusion(setting: Setting) -> Item:
    some = boxes(setting.stride)[: 16 if setting.quick else 32]
    works = {
        OURS: by_windows(setting, ConditionalOcclusion),
        RIVAL: Work(setting.literally(lambda rival: rival.occlusion(*setting.views, some)), Passes(884)),
    }
    name, default = "Conditional occlusion", by_cones(setting)
    cones, dense = (OURS, DENSE) if default else (CONES, OURS)
    rows = [
        Compared(name, aim=1.9, whole=not default),
        Compared(f"{name}, engine.incremental=false", aim=1.9, ours=dense),
    ]
    if by_cones(setting, True):  # what is not the default here is measured as well
        works[DENSE if default else CONES] = by_windows(setting, ConditionalOcclusion, incremental=not default)
        rows.append(Compared(f"{name}, engine.incremental=true", aim=1.4, whole=False, ours=cones, other=dense))
    return Item(works, rows)


def occlusion_by_cones(setting: Setting, aim: float) -> Item:
    """Beside whole passes alone, for a network of which nothing else is timed."""
    works = {
        CONES: by_windows(setting, ConditionalOcclusion, incremental=True),
        DENSE: by_windows(setting, ConditionalOcclusion, incremental=False),
    }
    name = "Conditional occlusion, engine.incremental=true"
    return Item(works, [Compared(name, aim=aim, whole=False, ours=CONES, other=DENSE)])


def _both_occlusions(setting: Setting) -> Item:
    def literal(rival: Rival) -> None:
        some = (boxes(setting.stride)[: 8 if setting.quick else 32],)
        rival.occlusion(*setting.views, *some)
        rival.context_agnostic_occlusion(*setting.views, *some)

    works = {
        OURS: by_windows(setting, ConditionalOcclusion, ContextAgnosticOcclusion),
        RIVAL: Work(setting.literally(literal), Passes(884 + 1766)),
    }
    row = Compared("Conditional and context-agnostic occlusion", aim=2.6, whole=not by_cones(setting))
    return Item(works, [row])


def _pairwise_occlusion(setting: Setting) -> Item:
    some = min(100, max(16, setting.bank.chunk_size))
    ours = setting.explained(
        PairwiseOcclusion(setting.model, num_samples=some, protocol="sound", baseline="input_zero")
    )
    works = {
        OURS: Work(ours, Passes(202), chunked(setting, some, 100, 2), setting.once()),
        RIVAL: Work(
            setting.literally(lambda rival: rival.pairwise_occlusion(*setting.views, boxes(24)[:8])), Passes(202)
        ),
    }
    return Item(works, [Compared("Pairwise occlusion, 100 draws (ours: 10 000 scores)")])


def _cams(setting: Setting) -> Item:
    cams = [InteractionCAM(setting.model, reduction=kind, protocol="paper") for kind in ("mean", "max", "attention")]
    works = {
        OURS: Work(setting.explained(GradCAM(setting.model, protocol="paper"), *cams), Passes(2)),
        RIVAL: Work(setting.literally(lambda rival: rival.cams(*setting.views)), Passes(14, 8)),
    }
    return Item(works, [Compared("Grad-CAM and three Interaction-CAMs")])


def _input_x_gradient(setting: Setting) -> Item:
    works = {
        OURS: Work(setting.explained(InputXGradient(setting.model)), Passes(2, 2)),
        RIVAL: Work(setting.literally(lambda rival: rival.input_x_gradient(*setting.views)), Passes(2, 2)),
    }
    return Item(works, [Compared("Input x gradient")])


def _smoothgrad(setting: Setting, guided: bool) -> Item:
    samples, some = (5, 2) if setting.quick else (16, 4)
    explainer = SmoothGrad(setting.model, samples=samples, guided="modules" if guided else "none")
    works = {
        OURS: Work(setting.explained(explainer, views_known=True), Passes(100, 100)),
        RIVAL: Work(
            setting.literally(lambda rival: rival.smoothgrad(*setting.views, some)),
            Passes(100, 100),
        ),
    }
    return Item(works, [Compared(f"SmoothGrad, 50 samples{', guided' * guided}", aim=None if guided else 2.4)])


def _averaged_transforms(setting: Setting, guided: bool) -> Item:
    explainer = AveragedTransforms(setting.model, guided="modules" if guided else "none", protocol="paper")
    some = LAMBDAS[: 1 if setting.quick else 3]
    works = {
        OURS: Work(setting.explained(explainer, views_known=True), Passes(10, 18 if guided else 10)),
        RIVAL: Work(
            setting.literally(lambda rival: rival.averaged_transforms(*setting.views, some)),
            Passes(18, 18),
        ),
    }
    return Item(works, [Compared(f"Averaged transforms{', guided' * guided}", aim=None if guided else 4.5)])


def insertion_and_deletion(setting: Setting, aim: float, adaptive: bool = False) -> Item:
    """SI, SD, CI and CD, both directions.

    Adaptive curves are computed whole, not a slice: which points they take depends on all of them.
    """
    some = 2 if setting.quick else 5

    def curves(points: int, tolerance: float | None) -> Callable[[], Passes]:
        return setting.counted(
            lambda bank: insertion_deletion(
                setting.model,
                *setting.views,
                *setting.maps,
                points=points,
                protocol="paper",
                tolerance=tolerance,
                bank=bank,
            )
        )

    works = {
        OURS: Work(
            curves(setting.points, None),
            Passes(4 * (POINTS - 1) + 5),
            chunked(setting, setting.points - 1, POINTS - 1, 4),
            setting.once(ends=3),
        ),
        RIVAL: Work(
            setting.literally(lambda rival: rival.insertion_deletion(*setting.views, *setting.maps, some)),
            Passes(12 * (POINTS + 1)),
        ),
    }
    rows = [Compared("SI, SD, CI, CD, both directions", aim)]
    if adaptive:
        works[ADAPTIVE] = Work(curves(POINTS, TOLERANCE), None)
        rows.append(Compared(f"SI, SD, CI, CD, approximate: tolerance {TOLERANCE}", whole=False, ours=ADAPTIVE))
    return Item(works, rows)


def _average_drop(setting: Setting) -> Item:
    ours = setting.counted(
        lambda bank: average_drop(setting.model, *setting.views, *setting.maps, protocol="paper", bank=bank)
    )
    works = {
        OURS: Work(ours, Passes(4)),
        RIVAL: Work(setting.literally(lambda rival: rival.average_drop(*setting.views, *setting.maps)), Passes(12)),
    }
    return Item(works, [Compared("SAD, SIC, CAD, CIC")])


def setting_for(
    model: TwoViewModel,
    views: tuple[Tensor, Tensor],
    chunk_size: int,
    quick: bool = False,
    execution: Execution = EXACT,
) -> Setting:
    """``model`` on ``views``, with the maps of Grad-CAM at image size."""
    maps = GradCAM(model)(*views).resized((SIDE, SIDE))
    assert maps[1] is not None
    ties = torch.rand((2, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).to(maps[0]) * 1e-6
    bank = PairBank(model, chunk_size, execution=execution)
    return Setting(model, views, (maps[0] + ties[0], maps[1] + ties[1]), bank, quick)
