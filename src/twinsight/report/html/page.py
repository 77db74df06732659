"""Everything a report says, put into one HTML file."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from twinsight.files import write_atomically
from twinsight.metrics import ALL_METRICS
from twinsight.report.curves import Curve
from twinsight.report.figures import agreement_matrix, write_figures, write_sweep
from twinsight.report.html.gallery import CellMaps, Scene, large_files
from twinsight.report.html.maps import colours
from twinsight.report.html.sources import CellFolder, Collection
from twinsight.report.html.tables import Group, differences, ends, grouped, options_of, rounded, settings_of
from twinsight.report.results import COSTS
from twinsight.report.tables import head

_LIBRARIES = ("vendor/d3.min.js", "vendor/plot.min.js")
_SCRIPTS = ("tools.js", "table.js", "charts.js", "gallery.js", "page.js")


@dataclass
class Report:
    """A report's content, to be written as often as one likes.

    Attributes:
        name: of the study.
        data: what the page's script reads.
        blocks: larger parts, by the id under which the script finds them.
        groups, scenes: what the files beside the page are made of.
    """

    name: str
    data: dict[str, Any]
    blocks: dict[str, str]
    groups: list[Group]
    scenes: list[Scene]
    sweep: list[dict[str, Any]] = field(default_factory=list)

    def write(self, path: Path, large: bool = True, figures: bool = True) -> list[Path]:
        """Write the page, and a folder ``<name>_files`` beside it.

        Args:
            path: of the page.
            large: whether maps and views at full size are written, for the gallery to load when asked.
            figures: whether the charts are written as PNG and PDF.

        Returns:
            the page, and the folder beside it where there is one.
        """
        folder = path.with_name(f"{path.stem}_files")
        data = {**self.data, "files": folder.name if large else None, "figures": []}
        if figures:
            data["figures"] = self._write_figures(folder / "figures", folder.parent)
        if large:
            for number, scene in enumerate(self.scenes):
                for name, content in large_files(scene, number):
                    write_atomically(folder / "maps" / name, partial(_write_text, content))
        write_atomically(path, partial(_write_text, self._html(data)))
        return [path, *([folder] if folder.exists() else [])]

    def _write_figures(self, folder: Path, base: Path) -> list[list[str]]:
        written: list[tuple[str, Path]] = []
        for number, group in enumerate(self.groups):
            place = folder / str(number) if len(self.groups) > 1 else folder
            if group.results.metrics:
                found = write_figures(group.results, group.table, group.curves, place)
                of = f", {group.name}" if len(self.groups) > 1 else ""
                written += [(f"{_readable(path.stem)}{of}", path) for path in found]
        if len(self.sweep) > 1 and len(self.sweep[0]) > 2:
            metrics = [name for name in ALL_METRICS if name in self.sweep[0]]
            written += [("Sweep", path) for path in write_sweep(self.sweep, metrics, folder)]
        return [[name, path.relative_to(base).as_posix()] for name, path in written]

    def _html(self, data: dict[str, Any]) -> str:
        page = _asset("report.html")
        blocks = "\n".join(f'<script type="text/plain" id="{key}">{text}</script>' for key, text in self.blocks.items())
        parts = {
            "{{title}}": escape(f"{self.name} · twinsight report"),
            "{{style}}": _asset("report.css"),
            "{{data}}": _in_script(json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)),
            "{{blocks}}": blocks,
            "{{libraries}}": "\n".join(f"<script>{_asset(name)}</script>" for name in _LIBRARIES),
            "{{scripts}}": "\n".join(f"<script>{_asset(name)}</script>" for name in _SCRIPTS),
        }
        for mark, text in parts.items():
            page = page.replace(mark, text, 1)
        return page


def build_report(collection: Collection) -> Report:
    """Read the cells and work out tables, curves, maps and views."""
    cells = collection.cells
    groups = grouped(cells)
    places = {id(cell): place for place, cell in enumerate(cells)}
    varying = differences(cells)
    scenes, scene_of = _scenes(groups, places)
    maps = {place: CellMaps.of(cells[place], scenes[scene].pairs) for place, scene in scene_of.items()}
    blocks = {f"maps-{place}": found.block for place, found in maps.items()}
    for number, scene in enumerate(scenes):
        blocks |= {f"views-{number}-{place}": "|".join(both) for place, both in scene.views.items()}
    rows = [_row(group, number, label, places) for number, group in enumerate(groups) for label in group.rows]
    metrics = [name for name in ALL_METRICS if any(name in group.results.metrics for group in groups)]
    sweep = [_sweep_line(row, cells, varying, metrics) for row in rows if not row["control"]]
    data = {
        "name": collection.name,
        "about": _about(collection),
        "metrics": [
            {
                "name": name,
                "head": head(name),
                "high": bool(ALL_METRICS[name].higher_is_better),
                "about": _about_metric(name),
            }
            for name in metrics
        ],
        "varying": varying,
        "groups": [_group(group) for group in groups],
        "rows": rows,
        "cells": [_cell(cell, varying, scene_of.get(place), maps.get(place)) for place, cell in enumerate(cells)],
        "scenes": [scene.facts() for scene in scenes],
        "skippedPairs": [
            [scene.name, pair_id, reason] for scene in scenes for pair_id, reason in sorted(scene.skipped.items())
        ],
        "colours": colours(),
    }
    return Report(collection.name, data, blocks, groups, scenes, sweep)


def _scenes(groups: Sequence[Group], places: dict[int, int]) -> tuple[list[Scene], dict[int, int]]:
    scenes: list[Scene] = []
    scene_of: dict[int, int] = {}
    for group in groups:
        seeds = dict.fromkeys(str(cell.identity.get("seed")) for cells in group.rows.values() for cell in cells)
        for seed in seeds:
            members = {
                places[id(cell)]: cell
                for cells in group.rows.values()
                for cell in cells
                if str(cell.identity.get("seed")) == seed and cell.explainer["maps"]
            }
            if members:
                scene_of |= dict.fromkeys(members, len(scenes))
                scenes.append(Scene.of(group.name if len(seeds) == 1 else f"{group.name}, seed {seed}", members))
    return scenes, scene_of


def _group(group: Group) -> dict[str, Any]:
    results = group.results
    return {
        "name": group.name,
        "pairs": group.table.pairs,
        "seeds": len(results.rows[0].runs),
        "level": results.level,
        "metrics": list(results.metrics),
        "tau": [[rounded(value, 3) for value in line] for line in agreement_matrix(results).tolist()]
        if len(results.explainers) > 2
        else None,
        "explainers": len(results.explainers),
    }


def _row(group: Group, number: int, label: str, places: dict[int, int]) -> dict[str, Any]:
    table = group.table
    row = next(each for each in table.rows if each.label == label)
    facts = table.facts[label]
    values = {}
    for metric in table.metrics:
        cell = table.cells[label, metric]
        values[metric] = {
            "is": ends(cell.value),
            "missing": cell.value.missing,
            "best": cell.best,
            "gain": ends(cell.gain),
            "against": cell.against and table.names[cell.against],
            "why": cell.why_not,
        }
    return {
        "group": number,
        "order": [each.label for each in table.rows].index(label),
        "label": label,
        "title": table.names[label],
        "family": row.family,
        "control": row.is_control,
        "controls": row.controls and table.names[row.controls],
        "cells": [places[id(cell)] for cell in group.rows[label]],
        "values": values,
        "pairs": facts.pairs,
        "skipped": facts.skipped,
        "degenerate": facts.degenerate,
        "nonpositive": facts.nonpositive,
        "costs": {name: rounded(facts.costs[name], 4) for name in COSTS if name in facts.costs},
        "curves": {name: _points(curve) for name, curve in group.curves[label].items()},
    }


def _points(curve: Curve) -> list[list[float | None]]:
    parts = (curve.fractions, curve.mean, curve.low, curve.high)
    return [[rounded(value, 4) for value in part.tolist()] for part in parts]


def _cell(cell: CellFolder, varying: Sequence[str], scene: int | None, maps: CellMaps | None) -> dict[str, Any]:
    settings = settings_of(cell)
    timings = cell.run.timings if cell.run else ()
    seconds = math.fsum((each.get("explain_seconds") or 0) + (each.get("metrics_seconds") or 0) for each in timings)
    status = cell.status
    return {
        "name": cell.name,
        "label": cell.label,
        "title": cell.explainer["title"],
        "state": status["state"],
        "error": status.get("error") or status.get("reason"),
        "done": status.get("done"),
        "axes": [_text(settings.get(key)) for key in varying],
        "options": options_of(cell),
        "identity": yaml.safe_dump(cell.identity, sort_keys=False) if cell.identity else "",
        "notApplicable": cell.summary.get("not_applicable") or {},
        "seconds": rounded(seconds, 4),
        "hosts": sorted({f"{each['host']} ({each['device']})" for each in timings if each.get("host")}),
        "scene": scene,
        "images": cell.explainer["maps"] == 0 and cell.status["state"] == "done",
        "maps": maps and maps.facts,
        "scales": maps.scales if maps else [],
        "flaws": maps.flaws if maps else [],
        "scores": maps.scores if maps else {},
    }


def _about(collection: Collection) -> dict[str, Any]:
    cells, about = collection.cells, collection.about
    timings = [each for cell in cells if cell.run for each in cell.run.timings]
    versions: dict[str, Any] = {}
    for cell in cells:
        versions |= cell.status.get("versions") or {}
    return {
        "created": about.get("created"),
        "written": datetime.now().astimezone().isoformat(timespec="minutes"),
        "commands": [" ".join(command) for command in about.get("commands") or []],
        "commit": about.get("commit"),
        "versions": {**versions, **(about.get("versions") or {})},
        "hardware": sorted({f"{each['host']}, {each['device']}" for each in timings if each.get("host")}),
        "seconds": rounded(
            math.fsum((each.get("explain_seconds") or 0) + (each.get("metrics_seconds") or 0) for each in timings)
        ),
        "forwards": rounded(math.fsum(each.get("forwards") or 0 for each in timings), 7),
    }


def _sweep_line(
    row: dict[str, Any], cells: Sequence[CellFolder], varying: Sequence[str], metrics: Sequence[str]
) -> dict[str, Any]:
    settings = settings_of(cells[row["cells"][0]])
    options: dict[str, Any] = {key: settings.get(key) for key in varying}
    line = {key: value if isinstance(value, int | float) else _text(value) for key, value in options.items()}
    scores = {name: (row["values"].get(name, {}).get("is") or [None])[0] for name in metrics}
    return {"explainer": row["title"], **line, **scores}


def _about_metric(name: str) -> str:
    """The first sentence of the metric's documentation."""
    return " ".join((ALL_METRICS[name].__doc__ or "").split("\n\n")[0].split())


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _readable(stem: str) -> str:
    return stem.replace("_", " ").capitalize()


def _asset(name: str) -> str:
    return resources.files("twinsight.report.html").joinpath("assets", *name.split("/")).read_text(encoding="utf-8")


def _in_script(text: str) -> str:
    """JSON that no HTML parser takes for markup."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
