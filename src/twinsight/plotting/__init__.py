"""Pictures of explanations: heatmaps over views and whole photos, figures of pairs and sets, curves, charts of scores,
images that a method made.

Everything takes numpy arrays. Outside of notebooks it is drawn without pyplot: no display, no global state, safe to
call from any thread. ``inches=COLUMN`` or ``PAGE`` makes figures for print; :func:`write_figure` writes any of them.
"""

from twinsight.plotting.charts import draw_agreement, draw_bars
from twinsight.plotting.curves import draw_curves
from twinsight.plotting.embedding import draw_embedding
from twinsight.plotting.figure import COLUMN, PAGE, blank_figure, write_figure
from twinsight.plotting.grid import ExplainedPair, draw_grid, draw_pairs
from twinsight.plotting.heatmap import overlay
from twinsight.plotting.images import draw_images, write_gif
from twinsight.plotting.original import Place, overlay_on_photo
from twinsight.plotting.pair import draw_explanation, draw_pair
from twinsight.plotting.parallel import draw_parallel
from twinsight.plotting.scale import OPACITY, color_limits, degeneracy, fading_colormap, is_signed, shared_scale

__all__ = [
    "COLUMN",
    "OPACITY",
    "PAGE",
    "ExplainedPair",
    "Place",
    "blank_figure",
    "color_limits",
    "degeneracy",
    "draw_agreement",
    "draw_bars",
    "draw_curves",
    "draw_embedding",
    "draw_explanation",
    "draw_grid",
    "draw_images",
    "draw_pair",
    "draw_pairs",
    "draw_parallel",
    "fading_colormap",
    "is_signed",
    "overlay",
    "overlay_on_photo",
    "shared_scale",
    "write_figure",
    "write_gif",
]
