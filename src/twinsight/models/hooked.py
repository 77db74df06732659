"""Any network as a two-view model, read and continued at one of its layers by hooks."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from twinsight.errors import NotApplicable, UserError, unknown
from twinsight.models.layouts import MapLayout, layout_of
from twinsight.models.modes import evaluating
from twinsight.models.passes import Trace, decisive, entered, given_to, read, resumed, traced
from twinsight.models.two_view import (
    AveragePool,
    Normalization,
    TwoViewModel,
    agree,
    checked_input_size,
    checked_normalization,
)
from twinsight.similarity import Similarity, get_similarity

Output = str | int | Callable[[Any], Tensor]


class HookedModel(TwoViewModel):
    """A network that need not come apart: features are what one of its layers answers, the embedding what follows.

    :meth:`features` runs the network up to ``feature_layer``; :meth:`embed` runs it with that layer's answer replaced,
    and nothing before it computed; :meth:`forward` runs it whole. The network is not changed: no module is replaced,
    and hooks live for one pass. What follows the layer must depend on the images through that layer alone, which the
    self-check finds out.

    Tokens ``(B, N, D)`` of transformers become feature maps: class and register tokens, which have no place in the
    image, fill rows on top of it, ``prefix_rows`` of them, so that :meth:`embed` has all it needs. :meth:`on_image`
    leaves them out.

    Args:
        network: images ``(B, 3, H, W)`` to embeddings, whatever happens inside: layers in place, channels last, half
            precision (images are given in the network's type), frozen.
        feature_layer: path of the module whose output is explained (``network.get_submodule``), such as ``"layer4"``.
            None takes the last layer of more than one position that decides the embedding; for transformers that read
            their class token, that is the last block but one.
        head: where the embedding is: path of the module whose output it is, such as ``"fc"`` (``(B, d, 1, 1)`` is
            flattened); a module of your own for pooled feature maps ``(B, D)``, ``nn.Identity()`` for those
            themselves; None is what the network answers.
        output: which part of the network's answer the embedding is, where that is no tensor: key, attribute or place,
            or a function of the answer.
        prefix_tokens: tokens without a place in the image; None counts those beyond a square number.
        both_views: the network takes two images at once and runs its encoder on each: it is given the view twice, and
            view 1 and 2 are what the first and second run of ``feature_layer`` and ``head`` answer (without ``head``,
            the first and second of what the network answers).
        normalization, similarity, input_size: as for :class:`TwoViewModel`.

    Raises:
        UserError: an unknown layer; one that runs not exactly once, gives no feature map, or does not decide the
            embedding alone; a network that does not take such images, or gives no embeddings. The message names the
            layer, what was expected and what there was.

    >>> from torchvision.models import resnet18
    >>> model = TwoViewModel.from_module(resnet18(), feature_layer="layer4", head="fc", input_size=64)
    >>> images = torch.rand(2, 3, 64, 64)
    >>> model.features(images).shape, model(images).shape
    (torch.Size([2, 512, 2, 2]), torch.Size([2, 1000]))
    """

    def __init__(
        self,
        network: nn.Module,
        feature_layer: str | None = None,
        head: str | nn.Module | None = None,
        output: Output | None = None,
        prefix_tokens: int | None = None,
        both_views: bool = False,
        normalization: Normalization | None = None,
        similarity: str | Similarity = "cosine",
        input_size: int = 224,
    ) -> None:
        nn.Module.__init__(self)
        if not isinstance(network, nn.Module):
            raise UserError(f"`network` must be a torch.nn.Module, got {type(network).__name__}")
        self.network = network
        self.pool = AveragePool()
        self.head = head if isinstance(head, nn.Module) else nn.Identity()
        self.normalization = checked_normalization(normalization)
        self.input_size = checked_input_size(input_size)
        self.symmetric = not both_views
        self._score = get_similarity(similarity)
        self._pooled = isinstance(head, nn.Module)
        self._head = head if isinstance(head, str) else None
        self._output = output
        for argument, path in (("feature_layer", feature_layer), ("head", self._head)):
            if path is not None and path not in dict(network.named_modules()):
                raise unknown(f"`{argument}`", path, (name for name, _ in network.named_modules() if name))
        self._trace = self._traced()
        if self._head is not None:
            self._trace.shape(self._head, 2 if both_views else 1, "head")
        if feature_layer is None:
            self.feature_layer, self.layout = self._last_that_decides(prefix_tokens)
        else:
            shape = self._trace.shape(feature_layer, 2 if both_views else 1, "feature_layer")
            self.feature_layer = feature_layer
            self.layout = layout_of(shape, prefix_tokens, f"`feature_layer={feature_layer}`")

    @property
    def prefix_rows(self) -> int:
        return self.layout.prefix_rows

    @property
    def mean_pooled(self) -> bool:
        return self._pooled and not self.prefix_rows

    def features(self, x: Tensor, view: int = 1) -> Tensor:
        return self.layout.to_map(read(self.network, self._arguments(x), self.feature_layer, self._run(view)))

    def embed(self, features: Tensor, view: int = 1) -> Tensor:
        if self._pooled:
            return self.head(self.pool(self.on_image(features)))
        blank = self._arguments(features.new_zeros(len(features), 3, self.input_size, self.input_size))
        # Whoever keeps features keeps them in full precision.
        output = self.layout.from_map(features).to(self._trace.dtype(self.feature_layer))
        return self._resumed(blank, self.feature_layer, output, view)

    def forward(self, x: Tensor, view: int = 1) -> Tensor:
        if self._pooled:
            return self.embed(self.features(x, view), view)
        return self._whole(self._arguments(x), view)

    def stages(self) -> list[str]:
        """Paths of what a pass goes through on its way to the feature layer, outermost modules that give maps alone.

        Where it is all in one, the modules inside the feature layer; none where the network takes both views.
        """
        if not self.symmetric:
            return []
        outer = [
            path for path in (*self._trace.before(self.feature_layer), self.feature_layer) if self._gives_map(path)
        ]
        inner = (path for path in self._trace.outputs if path.rpartition(".")[0] == self.feature_layer)
        return outer if len(outer) > 2 else [path for path in inner if self._gives_map(path)]

    def _gives_map(self, path: str) -> bool:
        try:
            return bool(layout_of(self._trace.shape(path, 1, path), None, path))
        except UserError:
            return False

    def first_block(self) -> str:
        """Path of the first of a transformer's blocks, which tokens enter with their positions.

        Raises:
            NotApplicable: there are no blocks in a row that take tokens, all of one shape.
        """
        if self.layout.kind == "tokens" and self.symmetric and not self._pooled:
            for name, module in self.network.named_modules():
                answers = [
                    self._trace.outputs.get(f"{name}.{child}".lstrip(".")) for child, _ in module.named_children()
                ]
                if isinstance(module, nn.Sequential | nn.ModuleList) and len(answers) > 1 and _alike(answers):
                    return f"{name}.0"
        raise NotApplicable("this needs a vision transformer, with blocks that take all tokens, read by from_module")

    def tokens(self, x: Tensor) -> Tensor:
        """``(B, N, D)`` tokens of images, as they enter the first block: the image's after those without a place."""
        return given_to(self.network, self._arguments(x), self.first_block())

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """``(B, d)`` embeddings of tokens ``(B, M, D)`` that enter the first block, of all or fewer than there are."""
        blank = self._arguments(tokens.new_zeros(len(tokens), 3, self.input_size, self.input_size))
        return self._embedding(entered(self.network, blank, self._trace, self.first_block(), tokens, self._head), 1)

    def on_image(self, features: Tensor) -> Tensor:
        return features[..., self.prefix_rows :, :]

    def as_map(self, output: Tensor, where: str) -> Tensor:
        return self._layout_like(output, where).to_map(output)

    def as_output(self, features: Tensor, like: Tensor) -> Tensor:
        return self._layout_like(like, "it").from_map(features)

    def _layout_like(self, output: Tensor, where: str) -> MapLayout:
        tokens = self.layout.prefix_tokens if self.layout.kind == "tokens" else None
        return layout_of(output.shape, tokens, where)

    def _arguments(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the network is given: images in its own type, twice where it takes both views."""
        parameter = next(self.network.parameters(), None)
        if parameter is not None and parameter.is_floating_point() and not torch.is_autocast_enabled(x.device.type):
            x = x.to(parameter.dtype)
        return (x,) if self.symmetric else (x, x.clone())

    def _traced(self) -> Trace:
        arguments = self._arguments(self.probe())
        try:
            with evaluating(self.network), torch.inference_mode():
                return traced(self.network, arguments)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # as networks refuse a shape
            given = " and ".join(str(tuple(each.shape)) for each in arguments)
            raise UserError(
                f"{type(self.network).__name__} does not take images {given}: {error} (see `input_size`, `both_views`)"
            ) from error

    def _run(self, view: int) -> int:
        """Which run of a layer is about ``view``."""
        return 0 if self.symmetric else view - 1

    def _whole(self, arguments: tuple[Tensor, ...], view: int = 1) -> Tensor:
        if self._head is None:
            return self._embedding(self.network(*arguments), view)
        return self._embedding(read(self.network, arguments, self._head, self._run(view)), view)

    def _resumed(self, blank: tuple[Tensor, ...], layer: str, output: Tensor, view: int = 1) -> Tensor:
        run = self._run(view)
        return self._embedding(resumed(self.network, blank, self._trace, layer, output, run, self._head), view)

    def _embedding(self, answer: Any, view: int) -> Tensor:
        given = answer
        if self._head is None:
            if callable(self._output):
                answer = self._output(answer)
            elif self._output is not None:
                answer = _part(answer, self._output)
            elif not self.symmetric and isinstance(answer, list | tuple):
                answer = answer[view - 1]
        where = f"`head={self._head}`" if self._head is not None else f"the answer of {type(self.network).__name__}"
        if not isinstance(answer, Tensor):
            raise UserError(
                f"{where} must be embeddings (B, d), got {_kind(given)}: name the part of it as `output`, or the layer "
                "whose output the embedding is as `head`"
            )
        if answer.ndim == 4 and answer.shape[-2:] == (1, 1):
            answer = answer.flatten(1)
        if answer.ndim != 2:
            raise UserError(
                f"{where} must be embeddings (B, d), got {tuple(answer.shape)}: name another layer as `head`, or give "
                "a module for pooled feature maps"
            )
        return answer

    def _last_that_decides(self, prefix_tokens: int | None) -> tuple[str, MapLayout]:
        """The last layer of several positions on whose output alone the embedding depends."""
        if not self.symmetric:
            raise UserError("`both_views` needs `feature_layer`: name the layer of the encoder that is explained")
        arguments = self._arguments(self.probe())
        blank = tuple(torch.zeros_like(each) for each in arguments)
        with evaluating(self.network):
            candidates = self._candidates(arguments)
            with torch.inference_mode():
                expected = None if self._pooled else self._whole(arguments)
                for layer, gradient in candidates:
                    try:
                        layout = layout_of(self._trace.shape(layer, 1, layer), prefix_tokens, layer)
                    except UserError:
                        continue
                    if expected is None:
                        return layer, layout
                    if not layout.to_map(gradient)[..., layout.prefix_rows :, :].any():
                        continue  # of tokens only those that have no place
                    try:
                        answer = self._resumed(blank, layer, read(self.network, arguments, layer))
                    except RuntimeError:  # it does not go on without what was not computed
                        continue
                    if agree(answer, expected):
                        return layer, layout
        raise UserError(
            f"no layer of {type(self.network).__name__} gives feature maps (B, C, H, W) or tokens (B, N, C) that "
            "decide the embedding alone: name one as `feature_layer`, or give a module for pooled maps as `head`"
        )

    def _candidates(self, arguments: tuple[Tensor, ...]) -> list[tuple[str, Tensor]]:
        if not self._pooled:
            return decisive(self.network, arguments, self._trace, self._whole)
        answers = self._trace.outputs.items()
        return [(path, found) for path, found in reversed(answers) if found is not None and self._trace.runs[path] == 1]

    def _complaint(self, view: int) -> str:
        return (
            f"the embedding does not depend on `feature_layer={self.feature_layer}` alone, but on what was computed "
            "before it as well (a skip connection, a class token): name a later layer, or a whole block, or none at all"
        )


def _alike(answers: list[Tensor | None]) -> bool:
    shapes = {None if each is None else tuple(each.shape) for each in answers}
    return len(shapes) == 1 and None not in shapes and len(next(iter(shapes)) or ()) == 3


def _part(answer: Any, output: str | int) -> Any:
    try:
        if isinstance(output, int):
            return answer[output]
        return answer[output] if isinstance(answer, Mapping) else getattr(answer, output)
    except (KeyError, IndexError, AttributeError, TypeError):
        raise UserError(f"`output={output}` is no part of the network's answer, {_kind(answer)}") from None


def _kind(answer: Any) -> str:
    if isinstance(answer, Mapping):
        return f"{type(answer).__name__} of {', '.join(map(str, answer))}"
    if isinstance(answer, list | tuple):
        return f"{type(answer).__name__} of {len(answer)}"
    return type(answer).__name__
