"""Pictures of finished cells, made from records and the photos: one per pair, and one per pair for a whole set."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import ImageOps
from rich.console import Console
from rich.progress import track

from twinsight.data import PairDataset
from twinsight.explainers import ImageExplainer
from twinsight.metrics import METRICS
from twinsight.plotting import PAGE, ExplainedPair, Place, draw_grid, draw_images, draw_pair, draw_pairs, write_gif
from twinsight.study.cell import Cell
from twinsight.study.planner import Plan
from twinsight.study.records import read, unpacked_array
from twinsight.study.sets import set_folder, with_maps
from twinsight.study.study import StudyCell

Row = dict[str, Any]
TOGETHER = 4
"""How many pairs one figure of a set shows."""


def draw_cell(cell: Cell, planned: Plan, rows: Sequence[Row], config: DictConfig) -> None:
    """One picture per pair at the photo's own resolution, and an animation of images that were made step by step.

    Pictures that exist are kept.
    """
    missing = [row for row in rows if not picture(cell, row).exists()]
    if not missing:
        return  # before the maps of the whole cell are read for nothing
    pairs = _pairs(planned, config)
    arrays = arrays_of(cell)
    for row in _progress(missing, "Drawing pictures"):
        views = views_as_drawn(pairs, row["index"], config.pictures.side)
        if isinstance(cell.explainer, ImageExplainer):
            _draw_made_images(cell, row, arrays[row["index"]], views)
        else:
            photos, places = _photos(pairs, row, config.pictures.side)
            _draw_maps(cell, row, arrays[row["index"]], views, photos, places, planned.views.size)


def draw_set(cells: Sequence[Cell], planned: Plan, config: DictConfig) -> Path | None:
    """One picture per pair with the maps of all cells side by side; the folder of the pictures.

    The first pairs together are ``figures/pairs.png``, and ``figures/pairs.pdf`` for print. None where fewer than two
    cells have maps.
    """
    folder, cells = set_folder(cells), with_maps(cells)
    if folder is None:
        return None
    explained = [row for row in read(cells[0].folder) if row["skipped"] is None][: config.pictures.limit]
    together = folder / "figures" / "pairs.pdf"
    missing = [row for row in explained if not (folder / _file_name(row, ".png")).exists()]
    if explained and not together.exists():
        missing = [*missing, *(row for row in explained[:TOGETHER] if row not in missing)]
    if not missing:
        return folder if explained else None
    pairs = _pairs(planned, config)
    arrays = [arrays_of(cell) for cell in cells]
    first = []
    for row in _progress(missing, "Drawing all side by side"):
        view1, view2 = views_as_drawn(pairs, row["index"], config.pictures.side)
        found = [_maps(cell, one[row["index"]], planned.views.size) for cell, one in zip(cells, arrays, strict=True)]
        maps = {_caption(cell, cells): pair for cell, pair in zip(cells, found, strict=True)}
        if row in explained[:TOGETHER]:
            first.append(ExplainedPair(view1, view2, maps, row["score"], row["pair_id"]))
        if not (folder / _file_name(row, ".png")).exists():
            draw_grid(
                view1,
                view2,
                maps,
                similarity=row["score"],
                title=f"{len(cells)} explanations of one pair",
                subtitle=_subtitle(cells[0], row),
                path=folder / _file_name(row, ".png"),
            )
    if not together.exists():
        draw_pairs(first, path=together.with_suffix(".png"))
        draw_pairs(first, path=together, inches=PAGE)
    return folder


def picture(cell: Cell | StudyCell, row: Row) -> Path:
    """Where the picture of a pair is, or will be."""
    return cell.folder / "pictures" / _file_name(row, ".png")


def animations(cell: Cell | StudyCell, row: Row) -> dict[str, Path]:
    """The animations of a pair that have been written, by the name of the image."""
    stem = _file_name(row, "-")
    return {path.stem.removeprefix(stem): path for path in sorted((cell.folder / "animations").glob(f"{stem}*.gif"))}


def arrays_of(cell: Cell | StudyCell) -> dict[int, Row]:
    """Maps, curves and images of every pair, by its index."""
    return {row["index"]: row for row in read(cell.folder, "arrays")}


def _progress(rows: Sequence[Row], description: str) -> Iterable[Row]:
    # A pipe has no use for bars, and would get an empty line for each.
    return track(rows, description, transient=True, disable=not Console().is_terminal)


def _pairs(planned: Plan, config: DictConfig) -> PairDataset:
    return PairDataset(planned.photos, planned.views, planned.model.normalization, config.seed)


def views_as_drawn(pairs: PairDataset, index: int, side: int) -> list[NDArray]:
    """Both views ``(H, W, 3)`` of a pair as the photos have them, not as the model sees them, none above ``side``."""
    photos = pairs.photos.load_pair(index)
    return [
        recipe.render(photo, min(side, max(*recipe.geometry.box[2:], pairs.views.size)), pairs.views.antialias)
        .movedim(0, -1)
        .numpy()
        for recipe, photo in zip(pairs.recipes(index, photos), photos, strict=True)
    ]


def _photos(pairs: PairDataset, row: Row, side: int) -> tuple[tuple[NDArray, NDArray], tuple[Place, Place]]:
    """The whole photos behind both views, none larger than ``side``, and where the views lie on them."""
    photos = pairs.photos.load_pair(row["index"])
    first, second = pairs.recipes(row["index"], photos)
    drawn = [np.asarray(ImageOps.contain(photo, (side, side)), dtype=np.float64) / 255 for photo in photos]
    places = [Place(each.geometry.box, each.geometry.flipped, each.geometry.photo_size) for each in (first, second)]
    return (drawn[0], drawn[1]), (places[0], places[1])


def _maps(cell: Cell, arrays: Row, side: int) -> tuple[NDArray, NDArray | None]:
    geometry, size = cell.explainer.geometry((side, side)), (side, side)
    map1, map2 = (
        None if heatmap is None else geometry.resize(torch.from_numpy(heatmap).unsqueeze(0), size)[0].numpy()
        for heatmap in (unpacked_array(arrays, "map1"), unpacked_array(arrays, "map2"))
    )
    assert map1 is not None
    return map1, map2


def _draw_maps(
    cell: Cell,
    row: Row,
    arrays: Row,
    views: list[NDArray],
    photos: tuple[NDArray, NDArray],
    places: tuple[Place, Place],
    side: int,
) -> None:
    map1, map2 = _maps(cell, arrays, side)
    view1, view2 = views
    draw_pair(
        view1,
        view2,
        map1,
        map2,
        similarity=row["score"],
        title=cell.explainer.label,
        subtitle=_subtitle(cell, row),
        scores={name.upper(): row[name] for name in METRICS if row.get(name) is not None},
        path=picture(cell, row),
        photos=photos,
        places=places,
    )


def _draw_made_images(cell: Cell, row: Row, arrays: Row, views: list[NDArray]) -> None:
    assert isinstance(cell.explainer, ImageExplainer)
    images, traces, films = (_named(arrays, prefix) for prefix in ("image_", "trace_", "frames_"))
    for name, film in films.items():
        write_gif(
            film.transpose(0, 2, 3, 1) / 255, cell.folder / "animations" / _file_name(row, f"-{_plain(name)}.gif")
        )
    # Last: its presence says that all is drawn.
    draw_images(
        {f"View {view}": views[view - 1] for view in cell.explainer.shown},
        {name: image.transpose(1, 2, 0) for name, image in images.items()},
        traces,
        similarity=row["score"],
        title=cell.explainer.label,
        subtitle=_subtitle(cell, row),
        trace_label=cell.explainer.trace_label,
        path=picture(cell, row),
    )


def _named(arrays: Row, prefix: str) -> dict[str, NDArray]:
    found = {}
    for column in arrays:
        if column.startswith(prefix) and f"{column}_shape" in arrays:
            values = unpacked_array(arrays, column)
            assert values is not None
            found[column.removeprefix(prefix)] = values
    return found


def _caption(cell: Cell, cells: Sequence[Cell]) -> str:
    """The shortest of title, title with variant and name in the set that no other cell has."""
    for naming in (lambda one: one.explainer.title, lambda one: one.explainer.label):
        if sum(naming(other) == naming(cell) for other in cells) == 1:
            return naming(cell)
    return cell.label


def _subtitle(cell: Cell, row: Row) -> str:
    return f"{row['pair_id']}, {cell.identity['model']['name']}"


def _file_name(row: Row, ending: str) -> str:
    return f"{row['index']:05d}-{_plain(Path(row['pair_id']).stem)[:60]}{ending}"


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)
