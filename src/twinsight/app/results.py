"""What was found, as HTML: a card for each explainer with its heatmaps, scores and curves."""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from twinsight.app.work import SIDE, Explained, LeftOut
from twinsight.metrics import METRICS
from twinsight.plotting import COLUMN, OPACITY, draw_curves, fading_colormap, overlay, shared_scale
from twinsight.plotting.figure import DPI, PRINT_DPI
from twinsight.plotting.furniture import readable

_CURVES = {
    "si": "Simultaneous insertion",
    "sd": "Simultaneous deletion",
    "ci1": "Conditional insertion, view 1",
    "ci2": "Conditional insertion, view 2",
    "cd1": "Conditional deletion, view 1",
    "cd2": "Conditional deletion, view 2",
}


def results_html(found: Sequence[Explained | LeftOut]) -> str:
    """Both views and their similarity, then a card for each explainer, then what was left out and why."""
    explained = [one for one in found if isinstance(one, Explained)]
    cards = [card_html(one) for one in explained]
    left_out = [
        f"<p><b>{escape(one.name)}</b> was left out: {escape(one.why)}</p>" for one in found if isinstance(one, LeftOut)
    ]
    return f'<div class="results">{_pair_html(explained[0]) if explained else ""}{"".join(cards + left_out)}</div>'


def card_html(one: Explained) -> str:
    """One explainer: heatmaps side by side, the nine metrics and the curves where they were computed."""
    head = f'<h3>{escape(one.title)}</h3><span class="name">{escape(one.name)}</span>'
    parts = [f'<section class="card" data-explainer="{escape(one.name)}"><header>{head}</header>']
    parts.append(f'<div class="views">{"".join(_figures(one))}</div>{_scale(one)}')
    scored = [name for name in METRICS if name in one.columns or name in one.not_applicable]
    if any(name in one.columns for name in scored):
        cells = [_score(name, one) for name in scored]
        parts.append(f'<dl class="scores">{"".join(cells)}</dl>{_reasons(one)}')
    if one.curves:
        curves = {label: one.curves[name] for name, label in _CURVES.items() if name in one.curves}
        figure = draw_curves(curves, inches=COLUMN).figure  # with the legend below, for screens as narrow as a column
        assert isinstance(figure, Figure)  # drawn on its own
        alt = f"Insertion and deletion curves of {one.title}"
        parts.append(f'<details open><summary>Curves</summary><img class="chart" src="{_drawn(figure, PRINT_DPI)}" ')
        parts.append(f'alt="{escape(alt)}"></details>')
    return "".join([*parts, "</section>"])


def _pair_html(one: Explained) -> str:
    views = [_figure(_pixels(view), f"View {number}") for number, view in enumerate(one.views, start=1)]
    score = readable(one.columns["score"])
    similarity = f'<p class="similarity"><strong>{score}</strong> similarity</p>'
    return f'<section class="pair">{similarity}<div class="views">{"".join(views)}</div></section>'


def _figures(one: Explained) -> list[str]:
    if one.images:
        return [_figure(_pixels(image), name) for name, image in one.images.items()]
    maps = [each for each in one.drawn if each is not None]
    signed, limit = shared_scale(maps)
    found = []
    for number, (view, heatmap) in enumerate(zip(one.views, one.drawn, strict=True), start=1):
        if heatmap is None:
            found.append(_figure(_pixels(view), f"View {number}: this method makes one map, of view 1"))
            continue
        figure = Figure(figsize=(SIDE / DPI, SIDE / DPI), dpi=DPI)
        overlay(figure.add_axes((0, 0, 1, 1)), view, heatmap, signed=signed, limit=limit)
        found.append(_figure(_drawn(figure), f"View {number}", "heatmap"))
    return found


def _figure(source: str, caption: str, kind: str = "view") -> str:
    alt = f"{'Heatmap over view' if kind == 'heatmap' else 'Picture'}: {caption}"
    image = f'<img class="{kind}" src="{source}" alt="{escape(alt)}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _score(name: str, one: Explained) -> str:
    better = "higher is better" if METRICS[name].higher_is_better else "lower is better"
    arrow = "↑" if METRICS[name].higher_is_better else "↓"
    if name not in one.columns:
        return f'<div><dt>{name.upper()}</dt><dd class="none">–</dd></div>'
    head = f'<dt>{name.upper()} <span aria-label="{better}">{arrow}</span></dt>'
    return f'<div title="{better}">{head}<dd>{readable(one.columns[name])}</dd></div>'


def _reasons(one: Explained) -> str:
    """Why metrics are missing, each reason once."""
    names: dict[str, list[str]] = {}
    for name, why in one.not_applicable.items():
        names.setdefault(why, []).append(name.upper())
    return "".join(f'<p class="why">{" ".join(those)}: {escape(why)}</p>' for why, those in names.items())


def _scale(one: Explained) -> str:
    """Which colours mean how much, on the grey of a photo of middling brightness."""
    signed, limit = shared_scale([each for each in one.drawn if each is not None]) if one.drawn else (False, None)
    if limit is None:
        return ""
    colors = fading_colormap(signed, OPACITY)(np.linspace(0, 1, 256))
    bar = _pixels(np.tile(colors[:, :3] * colors[:, 3:] + 0.5 * (1 - colors[:, 3:]), (8, 1, 1)))
    low, high = ("0" if value == 0 else readable(value) for value in limit)
    ends = f'<span>{low}</span><img src="{bar}" alt="from least to most important"><span>{high}</span>'
    return f'<div class="scale"><span>Importance</span>{ends}</div>'


def _pixels(image: NDArray) -> str:
    return data_address(Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8)))


def _drawn(figure: Figure, dpi: int = DPI) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return data_address(Image.open(file).convert("RGB"))


def data_address(image: Image.Image) -> str:
    """A picture as an address that holds it."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=92)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
