"""Torchvision's ResNets as two-view models: untrained for pretraining, or with the weights of a classifier."""

import logging
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torchvision.models import get_model_weights

from twinsight.errors import UserError
from twinsight.models.checkpoints import Shapes, backbone_layouts, fitting_layout, read_tensors, sha256, shapes
from twinsight.models.networks import downloaded
from twinsight.models.published import models_that_fit
from twinsight.models.resnet import RESNETS, resnet_trunk
from twinsight.models.small_resnet import projection_head
from twinsight.models.two_view import Normalization, TwoViewModel, named_normalization
from twinsight.similarity import Similarity

_CLASSIFIER = ("fc.",)

logger = logging.getLogger(__name__)


def torchvision_resnet(
    name: str = "resnet18",
    checkpoint: str | Path | None = None,
    small_stem: bool = False,
    hidden: int | None = None,
    embedding: int | None = 128,
    normalization: Literal["imagenet", "cifar10"] | Normalization | None = "imagenet",
    input_size: int = 224,
    similarity: str | Similarity = "cosine",
) -> TwoViewModel:
    """A ResNet of torchvision with SimCLR's projection head.

    Args:
        name: torchvision's name of it: ``resnet{18,34,50,101,152}``, ``wide_resnet{50,101}_2``, ``resnext...``.
        checkpoint: weights of the trunk. None draws them at random; ``"DEFAULT"``, or the name of one of torchvision's
            sets such as ``"IMAGENET1K_V2"``, has torchvision download them; else a file with torchvision's keys, at
            its top or under ``state_dict`` or ``model``. A classifier in it is left out.
        small_stem: for images of about 32 pixels, see :func:`twinsight.models.resnet.resnet_trunk`.
        hidden: width of the projection head; None is the trunk's (Chen et al. 2020, section 4.2).
        embedding: width of the embedding, 128 as in the paper. None leaves the head out: the embedding is then the
            pooled feature map. The head is always untrained, so explain classifiers' weights with None.
        normalization: mean and std of the input space, ``"imagenet"``, ``"cifar10"``, numbers, or None for pixels in
            [0, 1].
        input_size: side of the views in pixels.
        similarity: score of two embeddings, see :func:`twinsight.similarity.get_similarity`.

    Raises:
        UserError: unknown name; a file that is missing, truncated, holds other objects than weights, or weights that
            do not fit; weights that cannot be downloaded. The message says which network the file fits.

    >>> model = torchvision_resnet("resnet18", small_stem=True, embedding=64, input_size=32)
    >>> model.features(torch.rand(2, 3, 32, 32)).shape, model(torch.rand(2, 3, 32, 32)).shape
    (torch.Size([2, 512, 4, 4]), torch.Size([2, 64]))
    """
    trunk = resnet_trunk(name, small_stem)
    digest = None if checkpoint is None else _fill(trunk, name, small_stem, checkpoint)
    width = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)][-1].num_features
    model = TwoViewModel(
        trunk=trunk,
        head=None if embedding is None else projection_head(width, width if hidden is None else hidden, embedding),
        normalization=named_normalization(normalization),
        similarity=similarity,
        input_size=input_size,
    )
    model.architecture = {
        "name": "torchvision_resnet",
        "options": {
            "name": name,
            "small_stem": small_stem,
            "hidden": hidden,
            "embedding": embedding,
            "normalization": model.normalization,
        },
    }
    if embedding is None:
        model.checkpoint_sha256 = digest
    elif checkpoint is not None:
        logger.warning(
            "%s fills the trunk alone: the projection head of model %s is untrained, embedding=null leaves it out",
            *(checkpoint, name),
        )
    return model


def _fill(trunk: nn.Module, name: str, small_stem: bool, checkpoint: str | Path) -> str | None:
    """Load weights into ``trunk``; the digest of the file, None for torchvision's own."""
    published = get_model_weights(name).__members__
    if checkpoint in published:
        if small_stem:
            raise UserError(f"`checkpoint={checkpoint}` needs `small_stem=false`: torchvision has no others of {name}")
        state = downloaded(name, str(checkpoint), "checkpoint")
        trunk.load_state_dict({key: value for key, value in state.items() if not key.startswith(_CLASSIFIER)})
        return None
    path = Path(checkpoint).expanduser()
    if not path.exists():
        raise UserError(f"`checkpoint={path}`: no such file. Torchvision's weights of {name}: {', '.join(published)}")
    tensors = read_tensors(path)
    layout, difference = fitting_layout(
        backbone_layouts(_CLASSIFIER), {"trunk": shapes(trunk.state_dict())}, shapes(tensors)
    )
    if layout is None:
        wanted = f"{name}{' with small_stem' if small_stem else ''}"
        raise UserError(f"`checkpoint={path}` does not fit {wanted}: {difference}. {_remedy(shapes(tensors))}")
    layout.fill({"trunk": trunk}, tensors)
    return sha256(path)


def _remedy(found: Shapes) -> str:
    if any(key.startswith("trunk.") for key in found):
        return "Files that `task=pretrain` wrote fit model pretrained"
    fitting = [
        f"torchvision_resnet with name={name}" + (" and small_stem=true" if small_stem else "")
        for name in RESNETS
        for small_stem in (False, True)
        if fitting_layout(backbone_layouts(_CLASSIFIER), _trunk_shapes(name, small_stem), found)[0]
    ]
    fitting = fitting or models_that_fit(found)
    return f"The file fits model {' or '.join(fitting)}" if fitting else "It fits no other model that is known here"


@cache
def _trunk_shapes(name: str, small_stem: bool) -> dict[str, Shapes]:
    with torch.device("meta"):
        return {"trunk": shapes(resnet_trunk(name, small_stem).state_dict())}
