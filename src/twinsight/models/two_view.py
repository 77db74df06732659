"""The model that is explained: two views in, two embeddings and a similarity out."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from twinsight.errors import UserError, unknown
from twinsight.models.modes import evaluating
from twinsight.similarity import Similarity, get_similarity

if TYPE_CHECKING:
    from twinsight.models.hooked import HookedModel

Normalization = tuple[tuple[float, ...], tuple[float, ...]]

CIFAR10_NORMALIZATION = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET_NORMALIZATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FOLDED_COPY = "_fast"
"""Attribute of a model under which an engine keeps the folded copy of it."""
NORMALIZATIONS = {"cifar10": CIFAR10_NORMALIZATION, "imagenet": IMAGENET_NORMALIZATION}


class _CheckedWhenBuilt(type):
    """Runs ``check()`` after the outermost ``__init__``, so that subclasses are checked as they will be used."""

    def __call__(cls, *args, **kwargs):
        model = super().__call__(*args, **kwargs)
        model.check()
        return model


class TwoViewModel(nn.Module, metaclass=_CheckedWhenBuilt):
    """A self-supervised network, cut where explanations need it: trunk, pooling, head, similarity.

    In the notation of the paper: encoder trunk ``F`` gives the feature map ``A``, pooling gives ``p``, the head ``g``
    gives the embedding ``z = g(p)``, and ``s(z1, z2)`` is the similarity that is explained.

    ``view`` is ignored here: both views go through the same network. Models whose two views take different paths
    (a predictor on one side, a student and a teacher) override :meth:`features` or :meth:`embed` and set
    ``symmetric = False``, so that nothing computed for one view is reused for the other.

    Args:
        trunk: ``(B, C, H, W)`` images to ``(B, D, h, w)`` feature maps.
        head: ``(B, D)`` pooled features to ``(B, d)`` embeddings. The identity suits backbone-only checkpoints.
        pool: ``"avg"``, ``"max"``, or a module from ``(B, D, h, w)`` to ``(B, D)``.
        normalization: ``(mean, std)`` per channel of the space the trunk eats, None where it eats pixels in [0, 1].
            Explainers eat what the model eats.
        similarity: name in ``twinsight.similarity.SIMILARITIES``, or a callable ``(B, d), (B, d) -> (B,)``.
        input_size: side in pixels of the square views the model was made for; the defaults of windows and strides
            are fractions of it.

    Raises:
        UserError: the parts do not fit (shape of features or embeddings), or forward is not embed of features.

    >>> model = TwoViewModel(nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 4), input_size=32)
    >>> z = model(torch.rand(2, 3, 32, 32))
    >>> z.shape, model.similarity(z, z).shape
    (torch.Size([2, 4]), torch.Size([2]))
    """

    symmetric = True
    architecture: dict[str, Any] | None = None
    """Name and options of the builder in ``twinsight.models``, where there was one."""
    checkpoint_sha256: str | None = None
    """Digest of the file the weights came from."""
    figures: Mapping[str, Any] = MappingProxyType({})
    """How the weights were trained, and their k-NN accuracy."""
    load_report: Any = None
    """Which tensors of a checkpoint were used and which were left, where that was found out."""

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module | None = None,
        pool: str | nn.Module = "avg",
        normalization: Normalization | None = None,
        similarity: str | Similarity = "cosine",
        input_size: int = 224,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.pool = _pooling(pool)
        self.head = nn.Identity() if head is None else head
        self.normalization = checked_normalization(normalization)
        self.input_size = checked_input_size(input_size)
        self._score = get_similarity(similarity)

    def features(self, x: Tensor, view: int = 1) -> Tensor:
        """``(B, C, H, W)`` images to ``(B, D, h, w)`` feature maps; ``view`` is 1 or 2."""
        return self.trunk(x)

    def embed(self, features: Tensor, view: int = 1) -> Tensor:
        """``(B, D, h, w)`` feature maps to ``(B, d)`` embeddings."""
        return self.head(self.pool(features))

    def forward(self, x: Tensor, view: int = 1) -> Tensor:
        """``(B, C, H, W)`` images to ``(B, d)`` embeddings."""
        return self.embed(self.features(x, view), view)

    def __getstate__(self) -> dict[str, Any]:
        # Neither copies nor files take it along.
        return {name: value for name, value in vars(self).items() if name != FOLDED_COPY}

    @property
    def score_digest(self) -> str | None:
        """Digest of the numbers that the score itself holds, a bank of negatives for one; None where it holds none."""
        return getattr(self._score, "digest", None)

    def similarity(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Score ``(B,)`` of embeddings of view 1 against embeddings of view 2."""
        return self._score(full_precision(z1), full_precision(z2))

    def pixels(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` images of the input space as pixels in [0, 1]."""
        if self.normalization is None:
            return x.clamp(0, 1)
        mean, std = (x.new_tensor(part).view(-1, 1, 1) for part in self.normalization)
        return (x * std + mean).clamp(0, 1)

    @classmethod
    def from_module(
        cls,
        network: nn.Module,
        feature_layer: str | None = None,
        head: str | nn.Module | None = None,
        **options: Any,
    ) -> "HookedModel":
        """Any network as a two-view model, by hooks: :class:`twinsight.models.HookedModel` has the options.

        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> model = TwoViewModel.from_module(network, input_size=8)
        >>> model.feature_layer, model.features(torch.rand(1, 3, 8, 8)).shape, model(torch.rand(1, 3, 8, 8)).shape
        ('1', torch.Size([1, 4, 6, 6]), torch.Size([1, 4]))
        """
        from twinsight.models.hooked import HookedModel  # which builds on this class

        return HookedModel(network, feature_layer, head, **options)

    @property
    def prefix_rows(self) -> int:
        """Rows on top of a feature map that lie nowhere on the image: class tokens and registers of transformers."""
        return 0

    def on_image(self, features: Tensor) -> Tensor:
        """``(..., h, w)`` feature maps, or what was computed from them, without ``prefix_rows``."""
        return features

    def as_map(self, output: Tensor, where: str) -> Tensor:
        """The output of any layer as a feature map ``(B, D, h, w)``, ``prefix_rows`` included.

        Raises:
            UserError: it is none; ``where`` is what the message calls it.
        """
        if output.ndim == 4:
            return output
        raise UserError(f"{where} must give feature maps (B, D, h, w), got {tuple(output.shape)}")

    def as_output(self, features: Tensor, like: Tensor) -> Tensor:
        """What :meth:`as_map` made, back in the layout of the output ``like``."""
        return features

    def probe(self) -> Tensor:
        """An image ``(1, 3, side, side)`` to ask the network with, on its device and of its type."""
        parameter = next(self.parameters(), torch.empty(0))
        side = self.input_size
        return torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(0)).to(parameter)

    @property
    def mean_pooled(self) -> bool:
        """True where the gradient of the score is constant over space, because features are averaged first."""
        return isinstance(self.pool, AveragePool) and type(self).embed is TwoViewModel.embed

    def check(self) -> None:
        """Encode one image and hold the answer against the contract; called once when the model is built."""
        image = self.probe()
        with evaluating(self), torch.inference_mode():
            for view in (1, 2):
                features = _answer("trunk", self.features, image, view)
                if features.ndim != 4:
                    raise UserError(f"`trunk` must return feature maps (B, D, h, w), got {tuple(features.shape)}")
                embedding = _answer("head", self.embed, features, view)
                if embedding.ndim != 2 or len(embedding) != 1:
                    raise UserError(f"`head` must return embeddings (B, d), got {tuple(embedding.shape)} for B = 1")
                if not agree(self(image, view), embedding):
                    raise UserError(self._complaint(view))
                if self.symmetric:
                    break

    def _complaint(self, view: int) -> str:
        return f"forward(x, view={view}) differs from embed(features(x)): make them the same path"


def ways_of(model: TwoViewModel) -> tuple[int, ...]:
    """A view for each way through the network."""
    return (1,) if model.symmetric else (1, 2)


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of ``model`` are; the CPU for one without.

    A function, since networks of others have a ``device`` of their own.

    >>> device_of(nn.Linear(2, 2)), device_of(nn.Identity())
    (device(type='cpu'), device(type='cpu'))
    """
    return next(model.parameters(), torch.empty(0)).device


def full_precision(values: Tensor) -> Tensor:
    """``values`` in float32 where a network under autocast left them in half precision, whose ties are no ties.

    >>> full_precision(torch.zeros(1, dtype=torch.bfloat16)).dtype, full_precision(torch.zeros(1).double()).dtype
    (torch.float32, torch.float64)
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two embeddings are the same but for rounding in their type."""
    if found.shape != expected.shape:
        return False
    close = (1e-2, 1e-2) if found.dtype in (torch.float16, torch.bfloat16) else (1e-4, 1e-5)
    return torch.allclose(found, expected, *close, equal_nan=True)


class AveragePool(nn.Module):
    """Mean over the two spatial axes."""

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=(-2, -1))


class MaxPool(nn.Module):
    """Maximum over the two spatial axes."""

    def forward(self, features: Tensor) -> Tensor:
        return features.amax(dim=(-2, -1))


def _answer(part: str, call: Callable[[Tensor, int], Tensor], x: Tensor, view: int) -> Tensor:
    try:
        answer = call(x, view)
    except RuntimeError as error:  # PyTorch's for shapes that do not fit
        after = "images" if part == "trunk" else "pooled feature maps"
        raise UserError(f"`{part}` does not fit {after} {tuple(x.shape)}: {error}") from error
    if not isinstance(answer, Tensor):
        raise UserError(f"`{part}` must return a tensor, got {type(answer).__name__}")
    return answer


def _pooling(pool: str | nn.Module) -> nn.Module:
    if isinstance(pool, nn.Module):
        return pool
    kinds = {"avg": AveragePool, "max": MaxPool}
    if pool not in kinds:
        raise UserError(f"`pool` must be 'avg', 'max' or a module, got {pool!r}")
    return kinds[pool]()


def checked_input_size(input_size: int) -> int:
    """A side in pixels, refused where it is none."""
    if input_size < 1:
        raise UserError(f"`input_size` must be positive, got {input_size}")
    return input_size


def named_normalization(normalization: Normalization | str | None) -> Normalization | None:
    """Mean and std by name, ``"imagenet"`` or ``"cifar10"``; numbers and None stay what they are.

    >>> named_normalization("cifar10")[0]
    (0.4914, 0.4822, 0.4465)
    """
    if not isinstance(normalization, str):
        return normalization
    if normalization not in NORMALIZATIONS:
        raise unknown("`normalization`", normalization, NORMALIZATIONS)
    return NORMALIZATIONS[normalization]


def checked_normalization(normalization: Normalization | None) -> Normalization | None:
    """Mean and std as tuples of floats, refused where they are none."""
    if normalization is None:
        return None
    mean, std = (tuple(float(value) for value in part) for part in normalization)
    if len(mean) != len(std) or min(std) <= 0:
        raise UserError(f"`normalization` must be (mean, std) of equal length with std > 0, got {normalization!r}")
    return mean, std
