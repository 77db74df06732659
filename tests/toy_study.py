"""A study on disk as one would be after a run, with made-up numbers: for reports, which read files alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from twinsight.study.records import RecordWriter, compact, packed_array

METRICS = ("si", "sd", "ci", "cd", "sad", "sic", "cad", "cic")
CURVES = ("si", "sd", "ci1", "ci2", "cd1", "cd2")
STRETCH = {"kind": "stretch", "image_size": None, "window": None, "tops": [], "lefts": []}
DEMO_PHOTOS = {"_target_": "twinsight.data.DemoPhotos", "limit": None}


def explainer(label: str, title: str = "", side: int = 8, **facts: Any) -> dict[str, Any]:
    """What a cell says of its explainer; ``side`` is that of its maps, which ``noise=True`` makes incompressible."""
    plain = {"family": "cam", "is_control": False, "is_matched": False, "maps": 2, "of": None}
    return {"label": label, "title": title or label, "side": side, **plain, **facts}


EXPLAINERS = (
    explainer("gradcam", "Grad-CAM"),
    explainer("smoothgrad", "SmoothGrad", side=64, family="gradient"),
    explainer("pixel_invariance", "Pixel invariance", family="invariance", maps=1),
    explainer("matched_random", "Matched random (Grad-CAM)", side=64, is_control=True, is_matched=True, of="gradcam"),
    explainer("random", "Random", side=64, family="controls", is_control=True),
)


def write_study(
    root: Path,
    name: str = "toy",
    explainers: Sequence[Mapping[str, Any]] = EXPLAINERS,
    models: Sequence[str] = ("demo_simclr",),
    seeds: Sequence[int] = (0,),
    pair_ids: Sequence[str] = ("astronaut.jpg", "bull_moose.jpg", "chelsea_cat.jpg"),
    data: Mapping[str, Any] = DEMO_PHOTOS,
    indices: Sequence[int] = (1, 2, 3),
    points: int = 9,
    states: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write ``root/name`` and the cells of every model, explainer and seed; the folder of the study.

    ``states`` gives what ``status.json`` says of cells that are not done, by the label of their explainer: they get no
    records.
    """
    lines = []
    for model in models:
        for seed in seeds:
            for facts in explainers:
                axes = {"model": model, "explainer": facts["label"], "seed": seed}
                axes = {key: value for key, value in axes.items() if key != "seed" or len(seeds) > 1}
                cell = f"demo_photos-{model}-{facts['label']}-{seed:010d}"
                status = (states or {}).get(facts["label"])
                folder = root / "cells" / cell
                folder.mkdir(parents=True)
                _write_settings(folder, facts, model, seed, data)
                if status is None:
                    _write_results(folder, facts, seed, dict(zip(indices, pair_ids, strict=True)), points)
                    status = {"state": "done", "versions": {"twinsight": "0.1.0", "torch": "2.9.0"}}
                (folder / "status.json").write_text(json.dumps(status))
                table = {key: facts[key] for key in ("title", "family", "is_control", "is_matched")}
                line = {"cell": cell, "label": facts["label"], "axes": axes, "maps": facts["maps"], "table": table}
                lines.append({**line, "pairs": len(pair_ids), "reason": None})
    study = root / name
    study.mkdir(parents=True)
    (study / "plan.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    about = {"name": name, "created": "2026-01-02T03:04:05+0000", "commit": "0123abc", "versions": {"python": "3.11"}}
    (study / "study.json").write_text(json.dumps({**about, "commands": [["model=demo_simclr", "explainer=gradcam"]]}))
    return study


def corner_map(side: int, corner: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """1 in the quarter of ``corner`` (row, column), a faint slope elsewhere."""
    rows, columns = np.mgrid[0:side, 0:side] * 2 // side
    slope = np.linspace(0, 0.1, side * side).reshape(side, side)
    return torch.from_numpy(np.where((rows == corner[0]) & (columns == corner[1]), 1.0, slope)).float()


def _identity(facts: Mapping[str, Any]) -> dict[str, Any]:
    options = {"of": {"name": facts["of"], "protocol": "sound", "options": {}}} if facts["of"] else {}
    return {"name": facts["label"], "protocol": "sound", "options": options}


def _write_settings(folder: Path, facts: Mapping[str, Any], model: str, seed: int, data: Mapping[str, Any]) -> None:
    views = {"_target_": "twinsight.data.SimCLRViews", "size": 64}
    identity = {
        "model": {"name": model, "weights": model},
        "data": {"name": "demo_photos", "photos": 3},
        "views": views,
        "seed": seed,
        "metrics": {},
        "explainer": _identity(facts),
    }
    config = {"data": dict(data), "views": views, "seed": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump({"identity": identity, "config": config}, sort_keys=False))


def _write_results(folder: Path, facts: Mapping[str, Any], seed: int, pairs: Mapping[int, str], points: int) -> None:
    draw = np.random.default_rng(sum(folder.name.encode()) + seed)
    writer = RecordWriter(folder)
    level = 0.3 if facts["is_control"] else 0.5 + 0.3 * draw.random()
    for number, (index, pair_id) in enumerate(pairs.items()):
        scores: dict[str, Any] = {name: float(np.clip(level + 0.1 * draw.normal(), 0, 1)) for name in METRICS}
        scores |= {"sic": float(draw.random() > 0.5), "cic": float(draw.random() > 0.5)}
        maps: list[torch.Tensor | None] = [corner_map(facts["side"]), corner_map(facts["side"], (1, 1))]
        if facts.get("noise"):
            maps = [torch.from_numpy(draw.random((facts["side"],) * 2)).float() for _ in range(2)]
        if facts["maps"] == 1:
            maps[1] = None
            scores |= dict.fromkeys(("si", "sd", "sad", "sic"))
        flat = facts["label"] == "smoothgrad" and number == 1
        if flat:
            maps[0] = torch.zeros(facts["side"], facts["side"])
        curve = torch.linspace(level, 0.9, points)
        arrays = {"map1": maps[0], "map2": maps[1], **{f"curve_{name}": curve for name in CURVES}}
        packed: dict[str, Any] = {}
        for name, values in arrays.items():
            packed |= packed_array(name, values)
        record = {"index": index, "pair_id": pair_id, "score": 0.8, **scores, "degenerate1": flat, "skipped": None}
        timing = {"explain_seconds": 0.5 + draw.random(), "metrics_seconds": 1.0, "forwards": 100.0, "backwards": 0.0}
        writer.add(
            record,
            {"index": index, **packed},
            {"index": index, **timing, "host": "bench", "device": "cpu"},
        )
    skipped = {"index": 99, "pair_id": "broken.jpg", "skipped": "truncated file"}
    writer.add(skipped, {"index": 99}, {"index": 99})
    writer.flush()
    compact(folder, {})
    shown = {key: facts[key] for key in ("label", "title", "family", "is_control", "is_matched", "maps")}
    left_out = {"si": "both views need a map, the method makes one"} if facts["maps"] == 1 else {}
    summary = {"pairs": len(pairs), "not_applicable": left_out, "explainer": {**shown, "geometry": STRETCH}}
    (folder / "metrics.json").write_text(json.dumps(summary))
