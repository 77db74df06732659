"""Pairs of views as a Lightning data module; the same pair whatever the batch, the workers or the order."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import functional as F

from twinsight.data.sources import BrokenPhoto, Photos
from twinsight.data.views import NoViews, SharedRegion, ViewGeometry, ViewRecipe, shared_regions
from twinsight.engine import seed_of
from twinsight.errors import UserError
from twinsight.models.two_view import Normalization


@dataclass(frozen=True)
class SkippedPair:
    """A pair whose photo could not be read.

    Attributes:
        index, pair_id: its place and name in the data set.
        reason: what the decoder said.
    """

    index: int
    pair_id: str
    reason: str

    def refusal(self) -> UserError:
        """The error for a run that was told to skip nothing."""
        what = f"{self.pair_id}: {self.reason}".replace("\n", "\\n")  # names come from files, and this is one line
        return UserError(f"cannot read {what}; mend or remove it, or set data.on_error=skip to go on without")


@dataclass(eq=False)
class PairBatch:
    """B pairs of views, with all that belongs to each.

    Attributes:
        view1, view2: ``(B, C, H, W)`` in the model's input space.
        pair_id: name of each pair, unique in the data set.
        index: place of each pair in the data set.
        seeds: ``(B,)`` int64, from sha256(seed, pair id).
        geometry: what of their photos view 1 and view 2 show.
        regions: where each view shows what the other shows as well, in view pixels; None where nothing, or unknown.
        partner_view2: ``(B, C, H, W)`` second view of the next readable pair (index + 1 modulo N), for controls.
        partner_id: whose view that is.
        labels: what kind of pair each is, where the source knows (:meth:`Photos.label`); may be left empty.
        skipped: pairs that would have been in this batch but cannot be read.
    """

    view1: Tensor
    view2: Tensor
    pair_id: list[str]
    index: list[int]
    seeds: Tensor
    geometry: list[tuple[ViewGeometry, ViewGeometry]]
    regions: list[SharedRegion | None]
    partner_view2: Tensor
    partner_id: list[str]
    labels: list[str | None] = field(default_factory=list)
    skipped: list[SkippedPair] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pair_id)

    def to(self, device: torch.device) -> "PairBatch":
        """The batch with its tensors on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in ("view1", "view2", "seeds", "partner_view2")}
        return replace(self, **moved)

    def select(self, places: list[int]) -> "PairBatch":
        """The pairs at ``places`` of this batch."""
        chosen = {
            name: getattr(self, name)[torch.tensor(places, dtype=torch.long)]
            for name in ("view1", "view2", "seeds", "partner_view2")
        }
        chosen |= {
            name: [getattr(self, name)[place] for place in places]
            for name in ("pair_id", "index", "geometry", "regions", "partner_id", *(["labels"] if self.labels else []))
        }
        return replace(self, **chosen)


class PairDataset(Dataset[PairBatch | SkippedPair]):
    """Photos and a view recipe as pairs; an item is a batch of one, or why there is none.

    Args:
        photos: where photos come from.
        views: how two views are made of one.
        normalization: mean and std of the model's input space, None for pixels in [0, 1].
        seed: with the pair's id, decides everything random about it.
    """

    def __init__(self, photos: Photos, views: NoViews, normalization: Normalization | None = None, seed: int = 0):
        self.photos = photos
        self.views = views
        self.normalization = normalization
        self.seed = seed

    def __len__(self) -> int:
        return len(self.photos)

    def pair_seed(self, index: int) -> int:
        """Seed of a pair, from the run's seed and the pair's id alone."""
        return seed_of(self.seed, self.photos.ids[index])

    def recipes(self, index: int, photos: tuple[Image.Image, Image.Image]) -> tuple[ViewRecipe, ViewRecipe]:
        """How both views of a pair are rendered from its photos, those of ``photos.load_pair(index)``."""
        first, second = ((photo.height, photo.width) for photo in photos)
        return self.views.recipes(first, self.pair_seed(index), second)

    def __getitem__(self, index: int) -> PairBatch | SkippedPair:
        try:
            photos = self.photos.load_pair(index)
        except BrokenPhoto as broken:
            own = broken.photo_id == self.photos.ids[index]
            return SkippedPair(index, self.photos.ids[index], broken.reason if own else str(broken))
        recipes = self.recipes(index, photos)
        geometry = (recipes[0].geometry, recipes[1].geometry)
        view1, view2 = (self._render(recipe, photo) for recipe, photo in zip(recipes, photos, strict=True))
        partner, partner_photos = self._partner(index, photos)
        partner_view2 = view2
        if partner != index:
            partner_view2 = self._render(self.recipes(partner, partner_photos)[1], partner_photos[1])
        return PairBatch(
            view1=view1,
            view2=view2,
            pair_id=[self.photos.ids[index]],
            index=[index],
            seeds=torch.tensor([self.pair_seed(index)], dtype=torch.int64),
            geometry=[geometry],
            regions=[self._region(index, photos, geometry)],
            partner_view2=partner_view2,
            partner_id=[self.photos.ids[partner]],
            labels=[self.photos.label(index)],
        )

    def _region(
        self, index: int, photos: tuple[Image.Image, Image.Image], geometry: tuple[ViewGeometry, ViewGeometry]
    ) -> SharedRegion | None:
        if photos[0] is photos[1]:
            return shared_regions(*geometry, self.views.size)
        shared = self.photos.shared(index)
        return shared_regions(*geometry, self.views.size, shared) if shared else None

    def _partner(
        self, index: int, photos: tuple[Image.Image, Image.Image]
    ) -> tuple[int, tuple[Image.Image, Image.Image]]:
        for offset in range(1, len(self)):
            partner = (index + offset) % len(self)
            try:
                return partner, self.photos.load_pair(partner)
            except BrokenPhoto:
                continue  # counted where its own pair is asked for
        return index, photos

    def _render(self, recipe: ViewRecipe, photo: Image.Image) -> Tensor:
        pixels = recipe.render(photo, self.views.size, self.views.antialias)
        if self.normalization is not None:
            pixels = F.normalize(pixels, *map(list, self.normalization))
        return pixels.unsqueeze(0)


def collate(samples: list[PairBatch | SkippedPair]) -> PairBatch:
    """One batch of several samples; those that were skipped are listed in it."""
    pairs = [sample for sample in samples if isinstance(sample, PairBatch)]
    skipped = [sample for sample in samples if isinstance(sample, SkippedPair)]

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(pair, name) for pair in pairs]) if pairs else torch.empty(0)

    def listed(name: str) -> list:
        return [value for pair in pairs for value in getattr(pair, name)]

    return PairBatch(
        view1=joined("view1"),
        view2=joined("view2"),
        pair_id=listed("pair_id"),
        index=listed("index"),
        seeds=joined("seeds").to(torch.int64),
        geometry=listed("geometry"),
        regions=listed("regions"),
        partner_view2=joined("partner_view2"),
        partner_id=listed("partner_id"),
        labels=listed("labels"),
        skipped=skipped,
    )


class ShardSampler(Sampler[int]):
    """The indices ``rank, rank + world, ...`` that are not done: no padding, no repeats, possibly none.

    Of a shard ``(i, K)``, those of the indices ``i, i + K, ...``.

    >>> list(ShardSampler(5, rank=1, world=2)), list(ShardSampler(5, done={0, 3}))
    ([1, 3], [1, 2, 4])
    >>> list(ShardSampler(8, rank=1, world=2, shard=(0, 2)))
    [2, 6]
    """

    def __init__(
        self,
        total: int,
        rank: int = 0,
        world: int = 1,
        done: Collection[int] = (),
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self._own = range(shard[0], total, shard[1])[rank::world]
        self._done = frozenset(done)

    def __len__(self) -> int:
        return len(self._own) - sum(index in self._own for index in self._done)

    def __iter__(self) -> Iterator[int]:
        return (index for index in self._own if index not in self._done)


class PairDataModule(pl.LightningDataModule):
    """Batches of pairs for ``Trainer.predict``; use it with ``Trainer(use_distributed_sampler=False)``.

    Args:
        photos: where photos come from.
        views: how two views are made of one.
        normalization: of the model that will see the views, ``model.normalization``.
        batch_size: pairs per batch; changes no result.
        num_workers: processes that read photos; changes no result.
        seed: of the views and of everything explainers draw.
        done: indices of pairs to leave out, because their records exist.
        shard: ``(i, K)`` gives the pairs ``i, i + K, ...`` alone.

    Raises:
        UserError: a batch size or number of workers out of range; with ``photos.on_error == "raise"``, a photo that
            cannot be read, when it is reached.

    >>> from twinsight.data import DemoPhotos, SimCLRViews
    >>> batch = next(iter(PairDataModule(DemoPhotos(limit=2), SimCLRViews(64), batch_size=2).predict_dataloader()))
    >>> batch.view1.shape, len(batch.pair_id)
    (torch.Size([2, 3, 64, 64]), 2)
    """

    def __init__(
        self,
        photos: Photos,
        views: NoViews,
        normalization: Normalization | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        done: Collection[int] = (),
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise UserError(
                f"`loader.batch_size` must be at least 1 and `loader.num_workers` at least 0, "
                f"got {batch_size} and {num_workers}"
            )
        self.pairs = PairDataset(photos, views, normalization, seed)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.done = done
        self.shard = shard
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer pairs left than processes

    def predict_dataloader(self) -> DataLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DataLoader(
            self.pairs,
            batch_size=self.batch_size,
            sampler=ShardSampler(len(self.pairs), rank, world, self.done, self.shard),
            num_workers=self.num_workers,
            collate_fn=collate,
        )

    def transfer_batch_to_device(self, batch: PairBatch, device: torch.device, dataloader_idx: int) -> PairBatch:
        # Here and not in the worker, whose exceptions arrive wrapped in a traceback.
        if batch.skipped and self.pairs.photos.on_error == "raise":
            raise batch.skipped[0].refusal()
        return batch.to(device)
