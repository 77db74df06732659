"""Embeddings that explainers and metrics share, and the one loop that encodes perturbed images."""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from twinsight.engine.execution import CHUNK_SIZE, EXACT, Execution, FastNetwork, fast_copy
from twinsight.engine.incremental import windows_of
from twinsight.engine.memory import keeping_freed_memory
from twinsight.engine.perturbations import Perturbation
from twinsight.engine.seeds import content_digest
from twinsight.errors import UserError
from twinsight.models import State, TwoViewModel, device_of, full_precision, keeping_nan, shifted

log = logging.getLogger(__name__)

T = TypeVar("T")


class NonFiniteEmbedding(UserError):
    """The network answered NaN or infinity for an unperturbed view."""


class PairBank:
    """Every view, and every perturbed version of a view, is encoded once per distinct content.

    Whole views go through the network one at a time, perturbed versions in chunks of fixed size (the last one halved as
    often as it still holds the rest, and filled up by repeating its last image); all through a folded copy of it
    (:func:`twinsight.models.folded`) where that is safe, in one memory layout: rounding then depends on the pair and
    the chunk size, never on the batch.

    Args:
        model: the network; its parameters must be frozen by the caller where that matters.
        chunk_size: perturbed images per forward pass. Halved for good when the device runs out of memory.
        capacity: bytes of embeddings and feature maps kept; the oldest are dropped first.
        execution: precision of the passes, and whether perturbed versions go through a compiled network.
        before_pass: called with the number of images before passes through the network; what it raises ends the work
            there. For progress, and for whoever may change their mind.

    Attributes:
        forwards, backwards: images encoded, and gradients taken back to images, so far, without padding.

    >>> from twinsight.models import small_two_view
    >>> bank = PairBank(small_two_view().eval())
    >>> image = torch.rand(3, 64, 64)
    >>> bank.embedding(image).shape, torch.equal(bank.embedding(image, view=2), bank.embedding(image)), bank.forwards
    (torch.Size([64]), True, 1)
    """

    def __init__(
        self,
        model: TwoViewModel,
        chunk_size: int = CHUNK_SIZE,
        capacity: int = 2**28,
        execution: Execution = EXACT,
        before_pass: Callable[[int], None] = lambda images: None,
    ) -> None:
        if chunk_size < 1:
            raise UserError(f"`chunk_size` must be at least 1, got {chunk_size}")
        self.model = model
        self.chunk_size = chunk_size
        self.capacity = capacity
        self.execution = execution
        self.before_pass = before_pass
        self.forwards = 0
        self.backwards = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._bytes = 0
        self._channels_last = True
        self._many: tuple[object, FastNetwork | None] = (None, None)
        self._looked = False

    def features(self, image: Tensor, view: int = 1) -> Tensor:
        """Feature map ``(D, h, w)`` of a ``(C, H, W)`` image."""
        key = ("features", content_digest(image), self._side(view))
        if key not in self._kept:
            _finite(image, f"view {view}")
            with _plain_tensors(), keeping_nan():
                self.before_pass(1)
                self.forwards += 1
                self._keep(key, self._features(self._for_whole(image), image.unsqueeze(0), view).squeeze(0))
        return self._get(key)

    def embedding(self, image: Tensor, view: int = 1) -> Tensor:
        """Embedding ``(d,)`` of a ``(C, H, W)`` image.

        Raises:
            NonFiniteEmbedding: it holds NaN or infinity.
        """
        key = ("embedding", content_digest(image), self._side(view))
        if key not in self._kept:
            with _plain_tensors(), keeping_nan():
                # A copy: a network that works in place must not overwrite what is kept.
                features = self.features(image, view).unsqueeze(0).clone()
                embedding = self.execution.run(self._for_whole(image).embed, features, view).squeeze(0)
            self._keep(key, _finite(embedding, f"view {view}"))
        return self._get(key)

    def perturbed(self, perturbation: Perturbation, view: int = 1) -> Tensor:
        """Embeddings ``(N, d)`` of the N versions of an image."""
        key = (perturbation.key, content_digest(perturbation.image), self._side(view))
        if key not in self._kept:
            with _plain_tensors():
                self._keep(key, _finite(self._encode(perturbation, view), f"a perturbed version of view {view}"))
        return self._get(key)

    def encode(self, images: Tensor, view: int = 1, own: bool = False, shift: Tensor | None = None) -> Tensor:
        """Embeddings ``(n, d)`` of ``(n, C, H, W)`` images in one pass, with a graph where the caller builds one.

        Nothing is kept and nothing split: for what needs gradients, inside :meth:`in_chunks` where there are many.

        Args:
            own: go through the network's own modules, where hooks or modes are to see them. That rounds otherwise.
            shift: ``(1, C, H, W)``, added to each image. The gradient at it is the sum of those at the images, and
                takes less time than they do where the network is folded for a CPU.
        """
        if own:
            return self._encoded(self.model, images if shift is None else shifted(images, shift), view)
        network = self._fast(images[0])

        def call(x: Tensor, view: int) -> Tensor:  # shifts last: the network has to see just that
            return network(x if shift is None else shifted(x, shift), view)

        self.before_pass(len(images))
        self.forwards += len(images)
        return full_precision(self._laid_out(call, images, view))

    def encode_whole(self, image: Tensor, view: int = 1) -> Tensor:
        """Embedding ``(1, d)`` of a whole view ``(1, C, H, W)`` as :meth:`embedding` has it, but with a graph."""
        with keeping_nan():
            return self._encoded(self._for_whole(image[0]), image, view)

    def gradients(
        self, score: Tensor, images: Sequence[Tensor], count: int | None = None, keep_graph: bool = False
    ) -> tuple[Tensor, ...]:
        """Gradients of the scalar ``score`` with respect to each of ``images``.

        Args:
            count: image passes backwards that this takes; None is the number of images in ``images``.
            keep_graph: leave the graph for another pass.
        """
        count = sum(map(len, images)) if count is None else count
        self.before_pass(count)
        self.backwards += count
        with self.execution.products(score.device):
            found = torch.autograd.grad(score, images, retain_graph=keep_graph)
        return tuple(gradient.contiguous() for gradient in found)

    def offer(self, image: Tensor, view: int, embedding: Tensor) -> None:
        """Keep the embedding ``(d,)`` that a caller computed of a whole view anyway, unless there is one.

        Raises:
            NonFiniteEmbedding: it holds NaN or infinity.
        """
        key = ("embedding", content_digest(image), self._side(view))
        if key not in self._kept:
            _finite(image, f"view {view}")
            self._keep(key, _finite(embedding, f"view {view}"))

    def in_chunks(self, count: int, work: Callable[[int, int], T], graphs: bool = False) -> list[T]:
        """``work(start, stop)`` for each chunk of ``range(count)``; all again in halved chunks when memory runs out.

        Args:
            graphs: ``work`` builds graphs. They keep every feature map, so that on CPUs chunks a third as large are
                faster, for what they take from caches and not from memory, and need a third of it.
        """
        while True:
            passes = self.forwards, self.backwards
            bounds = [*range(0, count, self.chunk_size), count]
            kept: AbstractContextManager[None] = nullcontext()
            if graphs and self._on_cpu():
                parts = math.ceil(count / max(1, self.chunk_size // 3))
                bounds = [count * part // max(1, parts) for part in range(parts + 1)]  # alike: one of one image is slow
            elif self._on_cpu() and count > self.chunk_size:
                kept = keeping_freed_memory()
            try:
                with kept:
                    return [work(start, stop) for start, stop in pairwise(bounds)]
            except torch.OutOfMemoryError:
                if self.chunk_size == 1:
                    raise
                self.forwards, self.backwards = passes  # what did not fit is not counted twice
                self.chunk_size //= 2
                log.warning("out of device memory: chunks of %d perturbed images from here on", self.chunk_size)

    def rows_in_chunks(self, count: int, work: Callable[[Tensor], Tensor]) -> Tensor:
        """``(count, ...)``, at least one, of which ``work(indices)`` gives the rows at ``(n,)`` indices of a chunk.

        Chunks are filled up by repeating their last index (:meth:`filled_up`); what that gives is left out.

        They go to one place, set aside with the first chunk: kept one by one they would cut up the memory that chunks
        free and use again.
        """
        found: Tensor | None = None

        def keep(start: int, stop: int) -> None:
            nonlocal found
            self.before_pass(stop - start)
            rows = work(torch.arange(start, start + self.filled_up(stop - start)).clamp(max=stop - 1))[: stop - start]
            if found is None:
                found = rows.new_empty(count, *rows.shape[1:])
            found[start:stop] = rows.view(stop - start, *found.shape[1:])  # one for each: none is spread over others

        self.in_chunks(count, keep)
        self.forwards += count
        assert found is not None
        return found

    def filled_up(self, count: int) -> int:
        """Images that go through the network for ``count`` versions: whole chunks, and one halved as often as it may.

        Few sizes, since rounding depends on them and kernels are laid out for each; one, where they are compiled.
        """
        chunks, rest = divmod(count, self.chunk_size)
        size = self.chunk_size
        while 0 < rest <= size // 2 and not self.execution.compile:
            size //= 2
        return chunks * self.chunk_size + (size if rest else 0)

    @contextmanager
    def aside(self, model: TwoViewModel | None = None) -> Iterator["PairBank"]:
        """An empty bank for content that nobody will ask for again, or for another ``model``.

        What it counts is counted here afterwards, and a chunk that it had to halve stays halved.
        """
        network = self.model if model is None else model
        other = PairBank(network, self.chunk_size, self.capacity, self.execution, self.before_pass)
        if other.model is self.model:
            other._channels_last, other._many, other._looked = self._channels_last, self._many, self._looked
        try:
            yield other
        finally:
            self.forwards += other.forwards
            self.backwards += other.backwards
            self.chunk_size = other.chunk_size
            if other.model is self.model:
                self._channels_last, self._many = other._channels_last, other._many

    def clear(self) -> None:
        """Forget everything; counters stay."""
        self._kept.clear()
        self._bytes = 0

    def _encode(self, perturbation: Perturbation, view: int) -> Tensor:
        if len(perturbation) == 0:
            return self._no_embeddings(perturbation, view)
        boxes = None if self.execution.incremental is False else windows_of(perturbation)
        cones: tuple[FastNetwork | None, Callable[[Tensor, Tensor], Tensor] | None] = (None, None)

        def embeddings(indices: Tensor) -> Tensor:
            nonlocal cones
            versions = perturbation.versions(indices.to(perturbation.image.device))
            network = self._for_many(versions[0])
            if boxes is not None and cones[0] is not network:
                with EXACT.products(perturbation.image.device):  # what is tried there is compared to 1e-5
                    cones = (network, network.by_cones(perturbation.outside, boxes))
            by_cones = cones[1]
            if boxes is None or by_cones is None:
                return self._laid_out(network, versions, view)
            windows = boxes[indices]
            return self.execution.run(lambda x, view: network.network.embed(by_cones(x, windows), view), versions, view)

        if self._on_cpu():
            self._for_many(perturbation.image)  # here, so that nothing it needs for a moment is kept between chunks
        return self.rows_in_chunks(len(perturbation), embeddings)

    def _encoded(self, network: TwoViewModel, images: Tensor, view: int) -> Tensor:
        self.before_pass(len(images))
        self.forwards += len(images)
        features = self._features(network, images, view)
        return full_precision(self.execution.run(network.embed, features, view))

    def _features(self, network: TwoViewModel, images: Tensor, view: int) -> Tensor:
        # Contiguous, as what is kept has to be: a mean over space rounds by their layout.
        return self._laid_out(network.features, images, view).contiguous()

    def _fast(self, image: Tensor) -> TwoViewModel:
        """What images like ``image`` go through unless somebody is to see them on their way."""
        looked, self._looked = self._looked, True
        return fast_copy(self.model, self._chunk_like(image), self.execution, closely=not looked)

    def _for_whole(self, image: Tensor) -> TwoViewModel:
        """What whole views go through; feature maps made in a way of its own are the network's own."""
        plain = type(self.model).features is TwoViewModel.features
        return self._fast(image) if plain else self.model

    def _for_many(self, image: Tensor) -> FastNetwork:
        """What chunks of images like ``image`` go through; made again where the network has changed."""
        network, like = self._fast(image), self._chunk_like(image)
        mixed = torch.is_autocast_enabled(image.device.type)
        state = State(self.model) if network is self.model else None
        key = (like.shape, image.dtype, image.device, mixed, network, state)
        if self._many[0] != key:
            self._many = (None, None)  # makes room first
            self._many = (key, FastNetwork(self.model, network, like, self.execution))
        fast = self._many[1]
        assert fast is not None
        return fast

    def _chunk_like(self, image: Tensor) -> Tensor:
        return image.detach().expand(self.chunk_size, *image.shape)

    def _laid_out(self, call: Callable[[Tensor, int], Tensor], images: Tensor, view: int) -> Tensor:
        """``call`` on a copy of images (a network may work in place) in channels-last layout, where it takes that."""
        if self._channels_last:
            try:
                return self.execution.run(call, images.clone(memory_format=torch.channels_last), view)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # as of a network that calls view() on feature maps
                log.debug("channels-last: %s", error)
        found = self.execution.run(call, images.clone(memory_format=torch.contiguous_format), view)
        self._channels_last = False  # once that went well: what fails either way is not the layout's doing
        return found

    def _no_embeddings(self, perturbation: Perturbation, view: int) -> Tensor:
        whole = self.embedding(perturbation.image, view)
        return whole.new_empty(0, len(whole))

    def _on_cpu(self) -> bool:
        return device_of(self.model).type == "cpu"

    def _side(self, view: int) -> int:
        return 1 if self.model.symmetric else view

    def _keep(self, key: Hashable, value: Tensor) -> None:
        value = full_precision(value)
        self._kept[key] = value
        self._bytes += value.nbytes
        # The newest always stays, however large: the caller is about to read it.
        while self._bytes > self.capacity and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes

    def _get(self, key: Hashable) -> Tensor:
        self._kept.move_to_end(key)
        return self._kept[key]


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """No gradients, and no inference mode either: its tensors could not take part in anyone's gradients later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _finite(values: Tensor, of: str) -> Tensor:
    """An image or its embedding; the former because a network may make numbers of NaN."""
    if not torch.isfinite(values).all():
        raise NonFiniteEmbedding(
            f"the embedding of {of} holds NaN or infinity: check the weights (`model.checkpoint`), "
            "`trainer.precision`, and that images are in the model's input range"
        )
    return values
