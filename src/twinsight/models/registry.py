"""Models by name, and our own weight files: safetensors that carry their architecture and figures."""

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from twinsight.errors import UserError, unknown
from twinsight.files import write_atomically
from twinsight.models.checkpoints import read_tensors, sha256, shapes
from twinsight.models.published import PUBLISHED, check_options, load_published, models_that_fit, published_name
from twinsight.models.small_resnet import SmallResNet, projection_head
from twinsight.models.torchvision_resnet import torchvision_resnet
from twinsight.models.two_view import CIFAR10_NORMALIZATION, TwoViewModel
from twinsight.similarity import Similarity

_METADATA_KEY = "twinsight"


def small_two_view(
    widths: tuple[int, ...] = (32, 64, 128),
    blocks: int = 2,
    hidden: int = 128,
    embedding: int | None = 64,
    input_size: int = 64,
    similarity: str | Similarity = "cosine",
) -> TwoViewModel:
    """The architecture of the demo weights, untrained: a small residual trunk and SimCLR's projection head.

    ``embedding=None`` leaves the head out: the embedding is then the pooled feature map, as in the supervised twin.

    >>> small_two_view().eval()(torch.rand(1, 3, 64, 64)).shape
    torch.Size([1, 64])
    """
    if not widths or min(*widths, hidden, 1 if embedding is None else embedding) < 1 or blocks < 0:
        raise UserError(
            "`widths`, `hidden` and `embedding` must be positive and `blocks` 0 or more, "
            f"got {list(widths)}, {hidden}, {embedding} and {blocks}"
        )
    model = TwoViewModel(
        trunk=SmallResNet(tuple(widths), blocks),
        head=None if embedding is None else projection_head(widths[-1], hidden, embedding),
        normalization=CIFAR10_NORMALIZATION,
        similarity=similarity,
        input_size=input_size,
    )
    model.architecture = {
        "name": "small_two_view",
        "options": {"widths": list(widths), "blocks": blocks, "hidden": hidden, "embedding": embedding},
    }
    return model


ARCHITECTURES: dict[str, Callable[..., TwoViewModel]] = {
    "small_two_view": small_two_view,
    "torchvision_resnet": torchvision_resnet,
}
BUNDLED = {name: f"{name}.safetensors" for name in ("demo_simclr", "demo_barlow_twins", "demo_supervised")}
PRETRAINED = "pretrained"


def load_model(
    name: str,
    checkpoint: str | Path | None = None,
    similarity: str | Similarity = "cosine",
    input_size: int | None = None,
    protocol: str = "sound",
    predictor: str | None = None,
) -> TwoViewModel:
    """Build the model called ``name`` with trained weights, in evaluation mode.

    Args:
        name: ``"pretrained"``, a network of your own; one of :func:`available_models`, whose weights ship with the
            package; or of :func:`published_models`: ``simclrv2_r{50,101,152}_{1,2,3}x``, the same with selective
            kernels (``..._sk1``), ``barlow_twins``, ``simsiam``.
        checkpoint: of ``"pretrained"``, the file that ``task=pretrain`` or :func:`save_model` wrote, of any
            architecture; bundled models take one to load instead. Of published models the published file, which is not
            downloaded; one that holds the backbone alone gives a model whose head is the identity.
        similarity: score of two embeddings, see :func:`twinsight.similarity.get_similarity`.
        input_size: side of the views in pixels; None takes what the checkpoint says, 224 for published models.
        protocol: where an option has a published and a sound value, ``"paper"`` or ``"sound"``: so far ``predictor``.
        predictor: of SimSiam, the views it is applied to: ``"view1"`` (sound, as trained) or ``"both"`` (paper).

    Returns:
        the model, with ``checkpoint_sha256`` (identity of its weights) and ``figures`` (how it was trained, k-NN
        accuracy; empty for published models) as attributes. Published models eat ImageNet-normalised pixels, but for
        SimCLRv2, which eats pixels in [0, 1] as they are.

    Raises:
        UserError: unknown name or option; no checkpoint where one is needed; a file that is missing, truncated, holds
            other objects than weights, or weights of another layout. The message says which layout was expected, which
            was found, and which model the file fits.

    >>> load_model("demo_simclr").input_size
    64
    >>> load_model("barlow_twins")
    Traceback (most recent call last):
    ...
    twinsight.errors.UserError: `checkpoint` of model 'barlow_twins' is missing and nothing is downloaded: give the \
full checkpoint of training, checkpoint.pth, {"model": ...}, as `checkpoint=FILE`
    """
    published = published_name(name)
    if published is not None:
        return load_published(published, checkpoint, similarity, input_size, protocol, predictor)
    if name not in BUNDLED and name != PRETRAINED:
        raise unknown("model", name, [*BUNDLED, PRETRAINED, *PUBLISHED])
    check_options(name, protocol, predictor)
    if checkpoint:
        path = Path(checkpoint).expanduser()
    elif name in BUNDLED:
        path = Path(str(files("twinsight") / "weights" / BUNDLED[name]))
    else:
        raise UserError(
            f"`checkpoint` of model '{name}' is missing: "
            "give a .safetensors file that `task=pretrain` wrote, as `checkpoint=FILE`"
        )
    state, metadata = _read(path)
    architecture = metadata["architecture"]
    if architecture["name"] not in ARCHITECTURES:
        raise unknown(f"architecture in `checkpoint={path}`", architecture["name"], ARCHITECTURES)
    if input_size is None:
        input_size = metadata["input_size"]
    try:
        model = ARCHITECTURES[architecture["name"]](
            **architecture["options"], similarity=similarity, input_size=input_size
        )
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"`checkpoint={path}` does not hold the weights it describes: {error}") from None
    model.checkpoint_sha256 = sha256(path)
    model.figures = metadata.get("figures", {})
    return model.eval()


def available_models() -> list[str]:
    """Names of models whose weights ship with the package: :func:`load_model` needs no checkpoint for them.

    >>> available_models()
    ['demo_barlow_twins', 'demo_simclr', 'demo_supervised']
    """
    return sorted(BUNDLED)


def saved_input_size(checkpoint: str | Path | None, default: int = 64) -> int:
    """Side in pixels of the views that a file of :func:`save_model` was made for, without reading its weights.

    ``default`` where there is no such file: :func:`load_model` says what is wrong with it.

    >>> saved_input_size(files("twinsight") / "weights" / "demo_simclr.safetensors"), saved_input_size(None, default=32)
    (64, 32)
    """
    try:
        return _metadata(Path(checkpoint).expanduser())["input_size"] if checkpoint else default
    except UserError:
        return default


def rounded(model: nn.Module, dtype: torch.dtype) -> None:
    """Round weights and buffers, in place, to what ``dtype`` can hold; they keep their own type.

    >>> layer = nn.Linear(1, 1)
    >>> rounded(layer, torch.float16)
    >>> bool((layer.weight.half().float() == layer.weight).all()), layer.weight.dtype
    (True, torch.float32)
    """
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.to(dtype))


def save_model(
    model: TwoViewModel, path: str | Path, figures: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write weights, architecture and ``figures`` to one safetensors file that :func:`load_model` reads.

    The file appears whole or not at all. ``dtype`` is what weights are stored as; networks compute in float32.

    Raises:
        UserError: the model was not built by one of ``ARCHITECTURES``, so that no file could describe it.
    """
    architecture = getattr(model, "architecture", None)
    if architecture is None:
        raise UserError(f"only models built by {' or '.join(ARCHITECTURES)} can be saved with their architecture")
    metadata = {"architecture": architecture, "input_size": model.input_size, "figures": dict(figures)}
    state = {key: _stored(value, dtype) for key, value in model.state_dict().items()}

    def write(partial: Path) -> None:
        save_file(state, partial, metadata={_METADATA_KEY: json.dumps(metadata, sort_keys=True)})
        partial.chmod(0o644)  # safetensors gives files to their owner alone

    write_atomically(Path(path), write)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights: of the file they were loaded from, else of the tensors themselves.

    >>> weights_digest(nn.Linear(2, 2, bias=False)) == weights_digest(nn.Linear(2, 2, bias=False))
    False
    """
    known = getattr(model, "checkpoint_sha256", None)
    if known is not None:
        return known
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        raw = value.detach().cpu().contiguous()
        digest.update(f"{key} {raw.dtype} {tuple(raw.shape)}\n".encode())
        digest.update(raw.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _stored(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    value = value.detach().cpu().contiguous()
    return value.to(dtype) if value.is_floating_point() else value


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    metadata = _metadata(path)
    with safe_open(path, framework="pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, metadata  # noqa: SIM118 (not a mapping)


def _metadata(path: Path) -> dict[str, Any]:
    """Architecture, input size and figures of a weight file; refuses every other file."""
    if not path.is_file():
        raise UserError(f"`checkpoint={path}`: no such file")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = json.loads((opened.metadata() or {})[_METADATA_KEY])
            _ = metadata["input_size"], metadata["architecture"]["name"], metadata["architecture"]["options"]
            return metadata
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(
            f"`checkpoint={path}` is not a twinsight weight file ({error}): "
            f"give a .safetensors file that `task=pretrain` wrote{_or_another_model(path)}"
        ) from None


def _or_another_model(path: Path) -> str:
    try:
        fitting = models_that_fit(shapes(read_tensors(path)))
    except UserError:  # its complaint would hide the one about the format that is expected here
        return ""
    return f". The file fits model {' or '.join(fitting)}" if fitting else ""
