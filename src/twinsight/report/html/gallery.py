"""The gallery's part of a report: maps and views, small in the page and large beside it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twinsight.metrics import ALL_METRICS
from twinsight.plotting import color_limits, shared_scale
from twinsight.report.arrays import Arrays
from twinsight.report.html.maps import at_view_size, eight_bits, geometry_of, packed, small_map, spread_map
from twinsight.report.html.photos import LARGE, SMALL, Views
from twinsight.report.html.sources import CellFolder
from twinsight.report.html.tables import rounded

MAPS = ("map1", "map2")


@dataclass
class Scene:
    """Cells that explain the same pairs of the same views: one gallery.

    Attributes:
        name: of the group, and of the seed where there are several.
        cells: by their place in the report.
        pairs: index and name of each explained pair, in order.
        skipped: name and reason of each pair that could not be explained.
        views: small JPEGs, by the place of the pair; empty where the photos are gone.
        missing: why there are no views.
    """

    name: str
    cells: dict[int, CellFolder]
    pairs: list[tuple[int, str]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    views: dict[int, tuple[str, str]] = field(default_factory=dict)
    missing: str | None = None

    @classmethod
    def of(cls, name: str, cells: dict[int, CellFolder]) -> "Scene":
        """Read the pairs of all cells, and render their views."""
        scene = cls(name, cells)
        explained: dict[int, str] = {}
        for cell in cells.values():
            for record in cell.run.records if cell.run else ():
                if record.get("skipped") is None:
                    explained[record["index"]] = record["pair_id"]
                else:
                    scene.skipped[record["pair_id"]] = record["skipped"]
        scene.pairs = sorted(explained.items())
        views = Views(next(iter(cells.values())))
        scene.missing = views.missing
        for place, (index, pair_id) in enumerate(scene.pairs):
            found = views.of(index, pair_id, SMALL)
            if found is not None:
                scene.views[place] = found
        if not scene.views and scene.missing is None:
            scene.missing = "the photos are others than those that were explained, or gone"
        return scene

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "cells": list(self.cells),
            "pairs": [list(pair) for pair in self.pairs],
            "missing": self.missing,
        }


@dataclass
class CellMaps:
    """Maps of one cell for the page.

    Attributes:
        facts: for each pair of the scene, its small maps' facts, view 1 and view 2; None where there is none.
        scales: for each pair, whether its maps are signed and the range they share; None where there is none.
        block: the pixels of all of them in that order, deflated, in base64.
        flaws: name of the pair, view and reason of each map with nothing to see.
        scores: metric values of each pair, by column.
    """

    facts: list[list[Any] | None]
    scales: list[list[Any] | None]
    block: str
    flaws: list[tuple[str, int, str]]
    scores: dict[str, list[float | None]]

    @classmethod
    def of(cls, cell: CellFolder, pairs: Sequence[tuple[int, str]]) -> "CellMaps":
        """Read and reduce the maps of a cell."""
        geometry = geometry_of(cell.explainer.get("geometry"))
        side = cell.identity.get("views", {}).get("size")
        arrays = Arrays(cell.folder)
        columns = [arrays.column(name) for name in MAPS]
        facts: list[list[Any] | None] = []
        scales: list[list[Any] | None] = []
        pixels: list[bytes] = []
        flaws = []
        for index, pair_id in pairs:
            maps = [column.get(index) for column in columns]
            spread = [None if each is None else spread_map(each, geometry) for each in maps]
            drawn = [None if each is None else at_view_size(each, side) for each in spread]
            signed, limits = shared_scale([each for each in drawn if each is not None])
            scales.append(None if limits is None else [int(signed), *map(rounded, limits)])
            small = [
                None if each is None or large is None else small_map(each, signed, color_limits(large, signed=signed))
                for each, large in zip(spread, drawn, strict=True)
            ]
            facts.append([None if each is None else each.facts() for each in small])
            pixels += [each.pixels.tobytes() for each in small if each is not None]
            flaws += [
                (pair_id, view, each.flaw)
                for view, each in enumerate(small, 1)
                if each is not None and each.flaw is not None
            ]
        return cls(facts, scales, packed(b"".join(pixels)), flaws, _scores(cell, pairs))


def large_files(scene: Scene, number: int) -> Iterable[tuple[str, str]]:
    """A script for each pair with its views and maps as large as they are, for the page to load when asked.

    Scripts, since a page that was opened from disk may load nothing else from there.
    """
    views = Views(next(iter(scene.cells.values())))
    columns = {
        key: (geometry_of(cell.explainer.get("geometry")), [Arrays(cell.folder).column(name) for name in MAPS])
        for key, cell in scene.cells.items()
    }
    for place, (index, pair_id) in enumerate(scene.pairs):
        maps: dict[int, list[Any]] = {}
        for key, (geometry, both) in columns.items():
            found: list[list[Any] | None] = []
            for column in both:
                if index not in column:
                    found.append(None)
                    continue
                pixels, low, high = eight_bits(spread_map(column[index], geometry))
                found.append([*pixels.shape, rounded(low), rounded(high), packed(pixels.tobytes())])
            maps[key] = found
        content = {"maps": maps, "views": views.of(index, pair_id, LARGE)}
        yield f"pair-{number}-{place}.js", f"twinsightLarge({number},{place},{json.dumps(content)})\n"


def _scores(cell: CellFolder, pairs: Sequence[tuple[int, str]]) -> dict[str, list[float | None]]:
    records = {record["index"]: record for record in (cell.run.records if cell.run else ())}
    columns = ["score", *(name for name in ALL_METRICS if any(name in record for record in records.values()))]
    return {
        name: [rounded(records[index].get(name), 4) if index in records else None for index, _ in pairs]
        for name in columns
    }
