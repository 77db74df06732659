"""Networks of other libraries as two-view models: torchvision, timm, Hugging Face, and any module by its path."""

import importlib
import inspect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torchvision.models
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from twinsight.errors import UserError, unknown
from twinsight.models.checkpoints import sha256
from twinsight.models.hooked import HookedModel
from twinsight.models.ssl_checkpoints import fill_network
from twinsight.models.two_view import IMAGENET_NORMALIZATION, Normalization, named_normalization
from twinsight.similarity import Similarity

Embedding = Literal["pooled", "logits"]

logger = logging.getLogger(__name__)


def from_module(
    network: nn.Module,
    feature_layer: str | None = None,
    head: str | nn.Module | None = None,
    output: str | int | None = None,
    prefix_tokens: int | None = None,
    both_views: bool = False,
    normalization: Normalization | str | None = None,
    similarity: str | Similarity = "cosine",
    input_size: int = 224,
) -> HookedModel:
    """A network of your own, read by hooks: it need not come apart.

    For configuration files what :meth:`TwoViewModel.from_module` is in Python; :class:`HookedModel` has the options.
    """
    return HookedModel(
        network.eval(),
        feature_layer,
        head,
        output,
        prefix_tokens,
        both_views,
        named_normalization(normalization),
        similarity,
        input_size,
    )


def torchvision_model(
    name: str = "resnet50",
    weights: str | Path | None = None,
    embedding: Embedding = "pooled",
    feature_layer: str | None = None,
    options: Mapping[str, Any] | None = None,
    normalization: Normalization | Literal["imagenet"] | None = "imagenet",
    input_size: int = 224,
    similarity: str | Similarity = "cosine",
) -> HookedModel:
    """Any classification network of torchvision, convolutional or transformer.

    Args:
        name: torchvision's name of it, one of ``torchvision.models.list_models(torchvision.models)``.
        weights: None draws them at random; ``"DEFAULT"`` or the name of one of torchvision's sets has torchvision
            download them; else a file, whatever its keys begin with (:func:`twinsight.models.fill_network`).
        embedding: ``"pooled"``, what the classifier is given; or ``"logits"``, what it answers.
        feature_layer: see :class:`HookedModel`.
        options: further arguments of the network.
        normalization: of the input space, ``"imagenet"``, numbers, or None for pixels in [0, 1].
        input_size: side of the views in pixels; transformers are built for it.
        similarity: score of two embeddings.

    Raises:
        UserError: unknown name, weights that are not there or do not fit, or as :class:`HookedModel`.

    >>> import torch
    >>> model = torchvision_model("resnet18", input_size=64)
    >>> model.feature_layer, model(torch.rand(1, 3, 64, 64)).shape
    ('layer4', torch.Size([1, 512]))
    """
    names = list_models(module=torchvision.models)
    if name not in names:
        raise unknown("torchvision network `model.name`", name, names)
    _one_of("embedding", embedding, ("pooled", "logits"))
    sized = {"image_size": input_size} if name.startswith("vit_") and input_size != 224 else {}
    network = get_model(name, weights=None, **sized, **(options or {}))
    digest = _fill(network, name, weights)
    if embedding == "pooled":
        classifiers = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
        if classifiers:
            network.set_submodule(classifiers[-1], nn.Identity())
    model = HookedModel(
        network.eval(),
        feature_layer,
        normalization=named_normalization(normalization),
        similarity=similarity,
        input_size=input_size,
    )
    model.checkpoint_sha256 = digest
    return model


def timm_model(
    name: str = "resnet50",
    weights: str | Path | None = None,
    feature_layer: str | None = None,
    options: Mapping[str, Any] | None = None,
    normalization: Normalization | Literal["imagenet"] | None = None,
    input_size: int | None = None,
    similarity: str | Similarity = "cosine",
) -> HookedModel:
    """Any network of timm: convolutional, vision transformers, DINO, DINOv2, the image towers of CLIP. Needs ``timm``.

    The embedding is what timm calls the pooled features, the class token of most transformers.

    Args:
        name: timm's name of it, such as ``vit_small_patch14_dinov2`` or ``vit_base_patch16_clip_224``.
        weights: None draws them at random; ``"DEFAULT"`` has timm download them; else a file.
        feature_layer: see :class:`HookedModel`.
        options: further arguments of ``timm.create_model``, such as ``{"global_pool": "avg"}``.
        normalization: None is the one that timm knows of; ``"imagenet"`` or numbers.
        input_size: side of the views in pixels; None is the network's own. Networks of a fixed size are built for it.
        similarity: score of two embeddings.

    Raises:
        UserError: timm is missing, unknown name, weights that are not there or do not fit, or as :class:`HookedModel`.

    >>> import torch
    >>> model = timm_model("vit_tiny_patch16_224", options={"depth": 2}, input_size=64)
    >>> model.feature_layer, model.prefix_rows, model(torch.rand(1, 3, 64, 64)).shape
    ('blocks.0', 1, torch.Size([1, 192]))
    """
    timm = _needed("timm", "timm")
    if not timm.is_model(name):
        raise unknown("timm network `model.name`", name, timm.list_models())
    known = timm.get_pretrained_cfg(name)
    side = known.input_size[-1] if input_size is None else input_size
    sized = {"img_size": side} if known.fixed_input_size else {}
    try:
        network = timm.create_model(name, pretrained=weights == "DEFAULT", num_classes=0, **sized, **(options or {}))
    except (TypeError, RuntimeError, ValueError, AssertionError, OSError) as error:
        raise UserError(f"timm cannot build `model.name={name}`: {' '.join(str(error).split())}") from error
    digest = None if weights in (None, "DEFAULT") else _fill_from(network, name, weights)
    model = HookedModel(
        network.eval(),
        feature_layer,
        prefix_tokens=getattr(network, "num_prefix_tokens", None),
        normalization=(known.mean, known.std) if normalization is None else named_normalization(normalization),
        similarity=similarity,
        input_size=side,
    )
    model.checkpoint_sha256 = digest
    return model


def huggingface_model(
    path: str | Path,
    feature_layer: str | None = None,
    normalization: Normalization | Literal["imagenet"] | None = None,
    input_size: int | None = None,
    similarity: str | Similarity = "cosine",
) -> HookedModel:
    """A vision network of Hugging Face's ``transformers``, from a folder that ``save_pretrained`` wrote.

    Needs ``transformers``. Nothing is downloaded, and no code of the folder is run. The embedding is what the network
    calls image embeddings (CLIP, SigLIP), else its pooled output, else the class token.

    Args:
        path: the folder: ``config.json``, weights, and ``preprocessor_config.json`` where there is one.
        feature_layer: see :class:`HookedModel`; paths begin with ``model.``.
        normalization: None is that of ``preprocessor_config.json``, ImageNet's without.
        input_size: side of the views in pixels; None is what the configuration says, 224 without.
        similarity: score of two embeddings.

    Raises:
        UserError: ``transformers`` is missing; no such folder, or none that it can read; or as :class:`HookedModel`.
    """
    transformers = _needed("transformers", "huggingface")
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(f"`model.path={folder}` holds no config.json: give a folder that save_pretrained wrote")
    try:
        network = transformers.AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise UserError(f"`model.path={folder}` cannot be read: {' '.join(str(error).split())}") from error
    vision = getattr(network.config, "vision_config", network.config)
    read_size = getattr(vision, "image_size", None)
    side = input_size or (read_size if isinstance(read_size, int) else 224)
    model = HookedModel(
        _ImageTower(network, resized=side != read_size).eval(),
        feature_layer,
        normalization=_preprocessing(folder) if normalization is None else named_normalization(normalization),
        similarity=similarity,
        input_size=side,
    )
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    model.checkpoint_sha256 = sha256(files[0]) if len(files) == 1 else None
    return model


class _ImageTower(nn.Module):
    """What a network of ``transformers`` makes of an image, as one vector."""

    def __init__(self, model: Any, resized: bool) -> None:
        super().__init__()
        self.model = model
        positions = resized and "interpolate_pos_encoding" in _accepted(model)
        self._options = {"interpolate_pos_encoding": True} if positions else {}

    def forward(self, pixels: Tensor) -> Tensor:
        tower = getattr(self.model, "get_image_features", self.model)
        answer = tower(pixel_values=pixels, **self._options)
        for name in ("image_embeds", "pooler_output"):
            found = getattr(answer, name, None)
            if found is not None:
                return found
        if isinstance(answer, Tensor):
            return answer
        hidden = answer.last_hidden_state
        return hidden.mean(dim=(-2, -1)) if hidden.ndim == 4 else hidden[:, 0]


def _accepted(model: Any) -> set[str]:
    return set(inspect.signature(getattr(model, "get_image_features", model.forward)).parameters)


def _preprocessing(folder: Path) -> Normalization:
    path = folder / "preprocessor_config.json"
    try:
        told = json.loads(path.read_text())
        return tuple(told["image_mean"]), tuple(told["image_std"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError):
        logger.warning("%s has no usable preprocessor_config.json: images are normalised as ImageNet's", folder)
        return IMAGENET_NORMALIZATION


def _fill(network: nn.Module, name: str, weights: str | Path | None) -> str | None:
    """Load torchvision's weights, or a file; the digest of a file."""
    if weights is None:
        return None
    published = get_model_weights(name).__members__
    if weights not in published:
        if not Path(weights).expanduser().exists():
            raise UserError(
                f"`model.weights={weights}`: no such file. Torchvision's weights of {name}: {', '.join(published)}"
            )
        return _fill_from(network, name, weights)
    network.load_state_dict(downloaded(name, str(weights), "model.weights"))
    return None


def downloaded(name: str, weights: str, option: str) -> dict[str, Tensor]:
    """Torchvision's weights, from its cache or the network; ``option`` is what a file would be given by.

    Raises:
        UserError: they are not in the cache and cannot be downloaded.
    """
    try:
        return get_model_weights(name)[weights].get_state_dict(check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network; a file that is not the one torchvision published
        reason = f"the weights {weights} of {name} cannot be downloaded ({error})"
        raise UserError(f"{reason}: give a file, `{option}=FILE`") from None


def _fill_from(network: nn.Module, name: str, weights: str | Path) -> str:
    path = Path(weights).expanduser()
    logger.info("%s", fill_network(network, path, name))
    return sha256(path)


def _one_of(argument: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise unknown(f"`{argument}`", value, valid)


def _needed(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"this needs the package `{package}`: pip install 'twinsight[{extra}]'") from None
