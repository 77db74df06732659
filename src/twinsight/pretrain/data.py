"""Photos for pretraining: two augmented views to learn from, plain ones to be judged by."""

from collections.abc import Iterator, Sized

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from torchvision.transforms.v2 import functional as F

from twinsight.data import BrokenPhoto, NoViews, Photos
from twinsight.engine import seed_of
from twinsight.errors import UserError
from twinsight.models.two_view import Normalization


class PretrainDataModule(pl.LightningDataModule):
    """Training batches ``(view1, view2, label)`` and, for the nearest-neighbour probe, plain ``(photo, label)``.

    The augmentation of a photo depends on (seed, epoch, photo) alone: not on workers, order or resume.

    Args:
        train: photos to learn from, which are also the probe's references.
        test: the probe's queries; both need labels for a probe.
        views: recipe of the two views.
        normalization: mean and std of the model's input space, or None.
        batch_size: pairs per step and process.
        num_workers: processes that render views.
        seed: of augmentations and order.
    """

    def __init__(
        self,
        train: Photos,
        test: Photos,
        views: NoViews,
        normalization: Normalization | None = None,
        batch_size: int = 256,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 2:
            raise UserError(f"`task.batch_size` must be at least 2, got {batch_size}")
        if len(train) < batch_size:
            raise UserError(f"`task.batch_size={batch_size}` exceeds the {len(train)} training photos")
        if train.labels is None or test.labels is None:
            raise UserError("the nearest-neighbour probe needs labelled photos: use class folders")
        if train.classes != test.classes:
            lone = sorted({*(train.classes or ())} ^ {*(test.classes or ())})
            raise UserError(f"training and test photos must have the same class folders, but not both have {lone}")
        self.train = train
        self.test = test
        self.views = views
        self.normalization = normalization
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    def train_dataloader(self) -> DataLoader:
        dataset = AugmentedPairs(self.train, self.views, self.seed)
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = EpochSampler(dataset, self.seed, rank, world)
        if len(sampler) < self.batch_size:
            raise UserError(
                f"`task.batch_size={self.batch_size}` exceeds the {len(sampler)} training photos of each process: "
                "lower it, or trainer.devices"
            )
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            drop_last=True,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> list[DataLoader]:
        """Loader 0 gives the references, loader 1 the queries."""
        # The probe looks at whole photos: the evaluation crop would cut an eighth of a 32-pixel picture.
        plain = NoViews(self.views.size, crop_fraction=1.0, antialias=self.views.antialias)
        return [
            DataLoader(PlainPhotos(photos, plain), batch_size=500, num_workers=self.num_workers)
            for photos in (self.train, self.test)
        ]

    def test_sample(self, limit: int) -> DataLoader:
        """At most ``limit`` test photos, evenly spaced, so that a set sorted by class shows every class."""
        photos = PlainPhotos(self.test, NoViews(self.views.size, 1.0, self.views.antialias))
        count = min(limit, len(photos))
        chosen = [place * len(photos) // count for place in range(count)]
        return DataLoader(Subset(photos, chosen), batch_size=500)

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        *images, labels = batch
        return [self._network_input(image) for image in images] + [labels]

    def _network_input(self, pixels: Tensor) -> Tensor:
        pixels = pixels.float() / 255
        return pixels if self.normalization is None else F.normalize(pixels, *map(list, self.normalization))


class AugmentedPairs(Dataset):
    """Two views of a photo as bytes, with its label; items are asked for by ``(epoch, index)``."""

    def __init__(self, photos: Photos, views: NoViews, seed: int) -> None:
        self.photos = photos
        self.views = views
        self.seed = seed

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        epoch, index = key
        photo = _load(self.photos, index)
        recipes = self.views.recipes((photo.height, photo.width), seed_of(self.seed, epoch, self.photos.ids[index]))
        view1, view2 = (_bytes(recipe.render(photo, self.views.size, self.views.antialias)) for recipe in recipes)
        return view1, view2, self.photos.labels[index] if self.photos.labels else -1


class PlainPhotos(Dataset):
    """The centre view of a photo as bytes, with its label."""

    def __init__(self, photos: Photos, views: NoViews) -> None:
        self.photos = photos
        self.views = views

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        photo = _load(self.photos, index)
        recipe = self.views.centre((photo.height, photo.width))
        view = recipe.render(photo, self.views.size, self.views.antialias)
        return _bytes(view), self.photos.labels[index] if self.photos.labels else -1


class EpochSampler(Sampler[tuple[int, int]]):
    """A permutation per epoch, its share for one rank (equal shares: what is left over waits for the next epoch).

    >>> sampler = EpochSampler(range(6), seed=0)
    >>> sorted(index for _, index in sampler)
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(self, data: Sized, seed: int, rank: int = 0, world: int = 1) -> None:
        self.data = data
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.data) // self.world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", self.epoch))
        order = torch.randperm(len(self.data), generator=generator).tolist()
        for index in order[self.rank :: self.world][: len(self)]:
            yield self.epoch, index


def _load(photos: Photos, index: int) -> Image.Image:
    try:
        return photos.load(index)
    except BrokenPhoto as broken:
        raise UserError(f"cannot read {broken}; mend or remove it, since pretraining leaves no photo out") from None


def _bytes(pixels: Tensor) -> Tensor:
    return (pixels * 255).round().to(torch.uint8)
