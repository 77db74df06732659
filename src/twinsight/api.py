"""Explain a pair, and score the explanation, in one call: :func:`explain` and :func:`evaluate`."""

import dataclasses
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from twinsight.data import Picture, as_pixels
from twinsight.engine import PairBank
from twinsight.errors import UserError, unknown
from twinsight.explainers import EXPLAINERS, Explainer, PairExplanation
from twinsight.files import NO_ARRAYS, refuse_bomb
from twinsight.metrics import functional
from twinsight.models import TwoViewModel, available_models, device_of, evaluating, load_model
from twinsight.study.cell import asked_of_the_pair

Views = Picture | Sequence[Picture]
Maps = PairExplanation | str | Path | tuple[Any, Any]


def explain(
    model: TwoViewModel | str,
    view1: Views,
    view2: Views,
    explainer: str | type[Explainer] | Explainer = "interaction_cam",
    *,
    seeds: Tensor | None = None,
    bank: PairBank | None = None,
    partner_view2: Views | None = None,
    **options: Any,
) -> Any:
    """What made ``model`` find two views similar.

    Args:
        model: a two-view model, or the name of one that ships with the package. Of any network
            ``TwoViewModel.from_module(network, normalization=..., input_size=...)`` makes one.
        view1, view2: a picture each, or as many of each: paths, Pillow images, arrays ``(H, W, 3)``, tensors
            ``(3, H, W)``, in 8 bits or [0, 1]; or a tensor ``(B, 3, H, W)``. They are cut to their centre square,
            resized to the model's ``input_size`` and normalised as the model wants.
        explainer: its name (``twinsight info explainers``), its class, or one that was built on the model.
        seeds: ``(B,)`` int64; None derives them from the pixels of view 1.
        bank: embeddings to share with further calls, a :class:`twinsight.engine.PairBank` of the model.
        partner_view2: second views of other pairs, which some controls explain against.
        options: of the explainer; ``protocol="paper"`` among them.

    Returns:
        :class:`~twinsight.explainers.PairExplanation`, with ``map1``, ``map2``, ``score``, ``resized()``, ``plot()``;
        methods that make images return :class:`~twinsight.explainers.PairImages`.

    Raises:
        UserError: an unknown name or option, or what is no picture.

    >>> from twinsight.data import DemoPhotos
    >>> photo = DemoPhotos().load(0)
    >>> explanation = explain("demo_simclr", photo, photo.rotate(10), explainer="gradcam")
    >>> explanation.map1.shape, bool(explanation.score > 0.5)
    (torch.Size([1, 8, 8]), True)
    """
    model = _model(model)
    made = _explainer(model, explainer, options)
    partner = None if partner_view2 is None else as_views(model, partner_view2)
    return made(as_views(model, view1), as_views(model, view2), seeds=seeds, bank=bank, partner_view2=partner)


def evaluate(
    model: TwoViewModel | str,
    view1: Views,
    view2: Views,
    explainer: str | type[Explainer] | Explainer = "interaction_cam",
    *,
    metrics: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("insertion_deletion", "average_drop"),
    maps: Maps | None = None,
    protocol: str = "sound",
    seeds: Tensor | None = None,
    bank: PairBank | None = None,
    partner_view2: Views | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """How good an explanation of the similarity of two views is, by the metrics of the tables.

    Args:
        model, view1, view2, explainer, seeds, bank, partner_view2, options: as for :func:`explain`.
        metrics: names of :mod:`twinsight.metrics.functional`, or their options by name:
            ``{"insertion_deletion": {"points": 32}}``.
        maps: explanations that exist, from here or elsewhere, instead of explaining: what :func:`explain` returned; an
            ``.npz`` file with ``map1`` and, where there is one, ``map2``; or the two themselves, arrays or tensors
            ``(B, h, w)`` or ``(h, w)``, of any resolution, the second may be None. ``explainer`` is then not asked.
        protocol: of the explainer and the metrics.

    Returns:
        the columns of the tables by name, ``(B,)`` each: ``score``, ``si``, ``sd``, ``ci``, ...

    Raises:
        UserError: as :func:`explain`; an unknown metric, or one that needs an explainer where maps are given; maps that
            do not fit the views.

    >>> from twinsight.data import DemoPhotos
    >>> photo = DemoPhotos().load(0)
    >>> found = evaluate("demo_simclr", photo, photo.rotate(10), metrics={"insertion_deletion": {"points": 8}})
    >>> found["ci"].shape, list(found)[:3]
    (torch.Size([1]), ['score', 'si', 'sd'])
    """
    model = _model(model)
    x1, x2 = as_views(model, view1), as_views(model, view2)
    partner = None if partner_view2 is None else as_views(model, partner_view2)
    bank = PairBank(model) if bank is None else bank
    if maps is None:
        made = _explainer(model, explainer, {"protocol": protocol, **options})
        explanation = made(x1, x2, seeds=seeds, bank=bank, partner_view2=partner)
    else:
        made, explanation = None, given_maps(maps, model, x1, x2, bank)
    if not isinstance(explanation, PairExplanation):
        raise UserError(f"metrics score maps, and {explainer} makes images")
    size = (x1.shape[-2], x1.shape[-1])
    map1, map2 = explanation.resized(size)
    known = {
        "model": model,
        "explainer": made,
        "view1": x1,
        "view2": x2,
        "map1": map1,
        "map2": map2,
        "size": size,
        "explanation": explanation,
        "partner_view2": partner,
        "seeds": seeds,
        "bank": bank,
    }
    chosen = metrics if isinstance(metrics, Mapping) else {name: {} for name in metrics}
    columns = {"score": explanation.score}
    for name, given in chosen.items():
        metric = _metric(name)
        asked = asked_of_the_pair(partial(metric, **given))
        optional = ("explainer", "partner_view2", "regions", "geometry")
        absent = [each for each in asked if each in optional and known.get(each) is None]
        if absent:
            raise UserError(f"metric {name} needs `{absent[0]}`, which was not given")
        common = {"protocol": protocol} if "protocol" in getattr(metric, "protocol_options", {}) else {}
        columns |= _columns(name, metric(**{key: known[key] for key in asked}, **common, **given))
    return columns


def as_views(model: TwoViewModel, pictures: Views) -> Tensor:
    """Pictures as ``(B, 3, side, side)`` views in the input space of ``model``, on its device.

    >>> as_views(load_model("demo_simclr"), torch.rand(2, 3, 80, 100)).shape
    torch.Size([2, 3, 64, 64])
    """
    many = isinstance(pictures, list | tuple) or getattr(pictures, "ndim", 0) == 4
    if many and not len(pictures):  # type: ignore[arg-type]
        raise UserError("no pictures were given")
    device, side, normalization = device_of(model), model.input_size, model.normalization
    views = []
    given: Any = pictures if many else [pictures]
    for picture in given:
        pixels = as_pixels(picture).to(device)
        if pixels.shape[-2:] != (side, side):
            square = F.center_crop(pixels, [min(pixels.shape[-2:])] * 2)
            pixels = F.resize(square, [side, side], antialias=True).clamp(0, 1)
        views.append(pixels if normalization is None else F.normalize(pixels, *map(list, normalization)))
    return torch.stack(views)


_MAP_BYTES = 1 << 28
"""What a file of maps may hold for each pair."""


def given_maps(maps: Maps, model: TwoViewModel, view1: Tensor, view2: Tensor, bank: PairBank) -> PairExplanation:
    """Maps from anywhere as an explanation of these views.

    Raises:
        UserError: a file without them, or maps that are not ``(B, h, w)``.
    """
    if isinstance(maps, PairExplanation):
        return maps
    if isinstance(maps, str | Path):
        path = Path(maps).expanduser()
        try:
            refuse_bomb(path, _MAP_BYTES * len(view1))
            found = _arrays_of(path)
        except NO_ARRAYS as error:
            raise UserError(f"`maps={path}` cannot be read: {error}") from None
        if "map1" not in found:
            raise UserError(f"`maps={path}` needs map1 (and map2, where there is one), it has {', '.join(found)}")
        maps = (found["map1"], found.get("map2"))
    first, second = maps
    map1, map2 = _map("map1", first, view1), None if second is None else _map("map2", second, view1)
    with torch.inference_mode(False), torch.no_grad(), evaluating(model):
        pairs = [(bank.embedding(a, 1), bank.embedding(b, 2)) for a, b in zip(view1, view2, strict=True)]
        score = torch.stack([model.similarity(z1[None], z2[None])[0] for z1, z2 in pairs])
    return PairExplanation(map1, map2, score, views=(model.pixels(view1), model.pixels(view2)), title="Given maps")


def _arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file, all of which must be what was written."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            # Reading an array may stop before its checksum; and a shortened directory leaves arrays out in silence.
            entries = int.from_bytes(path.read_bytes()[-12:-10], "little")
            if file.testzip() is not None or (not file.comment and len(file.infolist()) != entries):
                raise ValueError("the file is damaged")
    opened = np.load(path, allow_pickle=False)
    if isinstance(opened, np.ndarray):
        raise ValueError("it is one array without a name: numpy.savez(FILE, map1=..., map2=...) writes what is needed")
    with opened:
        return dict(opened)


def quantus_explain_func(
    view2: Tensor, explainer: str | type[Explainer] = "interaction_cam", **options: Any
) -> Callable[..., np.ndarray]:
    """An explainer of ours as the ``explain_func`` of Quantus, which knows single images alone.

    The images of Quantus are first views, its targets say which of ``view2`` each is paired with: give
    ``y_batch=numpy.arange(N)``, and the model itself as the model.

    Args:
        view2: ``(N, 3, H, W)`` second views in the model's input space.
        explainer, options: as for :func:`explain`.

    Returns:
        a function of ``(model, inputs, targets, **kwargs)`` that gives maps ``(B, 1, H, W)`` of the first views.

    >>> model = load_model("demo_simclr")
    >>> x1, x2 = (as_views(model, torch.rand(2, 3, 64, 64)) for _ in range(2))
    >>> quantus_explain_func(x2, "gradcam")(model, x1.numpy(), np.arange(2)).shape
    (2, 1, 64, 64)
    """

    def explain_func(model: Any, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
        if not isinstance(model, TwoViewModel):
            raise UserError(f"`model` must be a TwoViewModel, got {type(model).__name__}")
        device = device_of(model)
        view1 = torch.as_tensor(inputs, dtype=torch.float32, device=device)
        places = torch.as_tensor(targets, dtype=torch.long).flatten()
        explanation = _explainer(model, explainer, options)(view1, view2.to(device)[places.to(device)])
        return explanation.resized(view1.shape[-2:])[0].unsqueeze(1).cpu().numpy()

    return explain_func


def _model(model: Any) -> TwoViewModel:
    if isinstance(model, str):
        if model not in available_models():
            raise unknown("model", model, available_models())
        return load_model(model)
    if isinstance(model, TwoViewModel):
        return model
    if isinstance(model, nn.Module):
        raise UserError(
            f"`model` must be a TwoViewModel, got {type(model).__name__}: TwoViewModel.from_module(network, "
            "normalization=..., input_size=...) makes one of any network"
        )
    raise UserError(f"`model` must be a TwoViewModel or the name of one, got {type(model).__name__}")


def _explainer(model: TwoViewModel, explainer: Any, options: Mapping[str, Any]) -> Explainer:
    if isinstance(explainer, Explainer):
        given = {key: value for key, value in options.items() if key != "protocol"}
        if given or explainer.model is not model:
            raise UserError("an explainer that is built keeps its model and options: give its name or class instead")
        return explainer
    if isinstance(explainer, str):
        if explainer not in EXPLAINERS:
            raise unknown("explainer", explainer, EXPLAINERS)
        explainer = EXPLAINERS[explainer]
    try:
        return explainer(model, **options)
    except TypeError as error:
        raise UserError(f"{explainer.name}: {error}") from None


def _metric(name: str) -> Callable[..., Any]:
    metrics = {key: each for key, each in vars(functional).items() if hasattr(each, "columns")}
    if name not in metrics:
        raise unknown("metric", name, metrics)
    return metrics[name]


def _columns(name: str, result: Any) -> dict[str, Tensor]:
    if isinstance(result, Tensor):
        return {name: result}
    fields = ((field.name, getattr(result, field.name)) for field in dataclasses.fields(result))
    return {key: value for key, value in fields if isinstance(value, Tensor)}


def _map(name: str, given: Any, views: Tensor) -> Tensor:
    try:
        found = torch.as_tensor(given, dtype=torch.float32, device=views.device)
    except (TypeError, ValueError) as error:  # texts, objects, bytes of a file that are no array
        raise UserError(f"`{name}` must be ({len(views)}, h, w), a map for each pair: {error}") from None
    found = found.unsqueeze(0) if found.ndim == 2 else found
    found = found.squeeze(1) if found.ndim == 4 and found.shape[1] == 1 else found
    if found.ndim != 3 or len(found) != len(views):
        raise UserError(f"`{name}` must be ({len(views)}, h, w), a map for each pair, got {tuple(found.shape)}")
    return found
