"""What is looked at while a network learns: its views, its embedding, its explanations, its weights of each epoch."""

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from twinsight.data import NoViews, PairBatch, PairDataModule, Photos
from twinsight.errors import UserError
from twinsight.explainers import Explainer
from twinsight.models import TwoViewModel, evaluating, save_model
from twinsight.plotting import draw_embedding, draw_pair
from twinsight.pretrain.data import PretrainDataModule
from twinsight.pretrain.method import PretrainMethod
from twinsight.tracking import log_pictures


class EveryEpochs(pl.Callback):
    """Calls :meth:`act` on rank 0 after every ``every``-th epoch, and after the last.

    Args:
        every: epochs between calls.
        folder: where it writes.

    Raises:
        UserError: ``every`` is not positive.
    """

    def __init__(self, every: int, folder: str | Path) -> None:
        if every < 1:
            raise UserError(f"epochs between callbacks must be at least 1, got {every}")
        self.every = every
        self.folder = Path(folder)

    def act(self, trainer: pl.Trainer, method: PretrainMethod, epoch: int) -> None:
        """``epoch`` epochs are done."""
        raise NotImplementedError

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if trainer.is_global_zero and (epoch % self.every == 0 or epoch == trainer.max_epochs):
            assert isinstance(pl_module, PretrainMethod)
            self.act(trainer, pl_module, epoch)


class SaveWeights(EveryEpochs):
    """Writes ``epoch-<n>.safetensors``, a file for ``model.checkpoint``: explanations can be swept over epochs."""

    def act(self, trainer: pl.Trainer, method: PretrainMethod, epoch: int) -> None:
        save_model(method.model, self.folder / f"epoch-{epoch:04d}.safetensors", {"epochs": epoch})


class ExplainPairs(EveryEpochs):
    """Explains the same pairs as the network learns: heatmaps drift from texture to object.

    Writes ``epoch-<n>/<photo>.png`` and, for each photo, ``<photo>.gif`` over the epochs so far.

    Args:
        explainer: of the network that is trained.
        photos: what to explain, a handful.
        views: how pairs are made of them, at the size the network will explain.
        seed: of the pairs.
        every, folder: as for :class:`EveryEpochs`.
    """

    def __init__(
        self, explainer: Explainer, photos: Photos, views: NoViews, every: int, folder: str | Path, seed: int = 0
    ) -> None:
        super().__init__(every, folder)
        self.explainer = explainer
        module = PairDataModule(photos, views, explainer.model.normalization, batch_size=len(photos), seed=seed)
        self.batch: PairBatch = next(iter(module.predict_dataloader()))

    def act(self, trainer: pl.Trainer, method: PretrainMethod, epoch: int) -> None:
        batch = self.batch.to(method.device)
        explanation = self.explainer(batch.view1, batch.view2, seeds=batch.seeds)
        map1, map2 = explanation.resized((batch.view1.shape[-2], batch.view1.shape[-1]))
        pictures = []
        for place, pair_id in enumerate(batch.pair_id):
            stem = Path(pair_id).stem
            path = self.folder / f"epoch-{epoch:04d}" / f"{stem}.png"
            draw_pair(
                _channels_last(method.model.pixels(batch.view1[place])),
                _channels_last(method.model.pixels(batch.view2[place])),
                map1[place].cpu().numpy(),
                None if map2 is None else map2[place].cpu().numpy(),
                similarity=float(explanation.score[place]),
                title=f"{self.explainer.title}, epoch {epoch}",
                subtitle=pair_id,
                path=path,
            )
            self._animate(stem)
            pictures.append(path)
        _log_images(trainer, "explanations", pictures)

    def _animate(self, stem: str) -> None:
        frames = [Image.open(path).convert("P") for path in sorted(self.folder.glob(f"epoch-*/{stem}.png"))]
        first, *others = frames
        first.save(self.folder / f"{stem}.gif", save_all=True, append_images=others, duration=600, loop=0)


class ShowLearning(EveryEpochs):
    """Draws the views that are learnt from (once) and the embedding of test photos in two dimensions.

    Writes ``views.png`` and ``epoch-<n>.png``; the plane is that of the two largest principal components.

    Args:
        photos: at most this many test photos.
        every, folder: as for :class:`EveryEpochs`.
    """

    def __init__(self, every: int, folder: str | Path, photos: int = 1000) -> None:
        super().__init__(every, folder)
        self.photos = photos

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: list[Tensor], batch_idx: int
    ) -> None:
        path = self.folder / "views.png"
        if trainer.is_global_zero and not path.exists():
            assert isinstance(pl_module, PretrainMethod)
            rows = [torch.cat(list(pl_module.model.pixels(view[:12])), dim=-1) for view in batch[:2]]
            _save(torch.cat(rows, dim=-2), path)
            _log_images(trainer, "views", [path])

    def act(self, trainer: pl.Trainer, method: PretrainMethod, epoch: int) -> None:
        from sklearn.decomposition import PCA  # two seconds, needed by those who train alone

        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, PretrainDataModule)
        features, labels = embeddings(method.model, data, self.photos, method.device)
        path = self.folder / f"epoch-{epoch:04d}.png"
        draw_embedding(
            PCA(2, random_state=0).fit_transform(features), labels, title=f"Trunk features, epoch {epoch}", path=path
        )
        _log_images(trainer, "embedding", [path])


@torch.no_grad()
def embeddings(
    model: TwoViewModel, data: PretrainDataModule, limit: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled trunk features ``(N, D)`` of unit length, and labels ``(N,)``, of at most ``limit`` test photos."""
    features, labels = [], []
    with evaluating(model):
        for batch in data.test_sample(limit):
            photos, classes = data.on_after_batch_transfer([part.to(device) for part in batch], 0)
            # Unit length, since the probe compares by cosine.
            features.append(F.normalize(model.pool(model.features(photos)).float(), dim=1).cpu())
            labels.append(classes.cpu())
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


def _channels_last(pixels: Tensor) -> np.ndarray:
    return pixels.movedim(0, -1).cpu().numpy()


def _save(pixels: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((_channels_last(pixels) * 255).round().astype(np.uint8))
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)


def _log_images(trainer: pl.Trainer, key: str, paths: list[Path]) -> None:
    for logger in trainer.loggers:
        log_pictures(logger, key, paths, trainer.global_step)
