"""Pictures of explanations: heatmaps over views, one figure per pair, insertion and deletion curves, images
that a method made.

Everything takes numpy arrays and is drawn without pyplot: no display, no global state, safe to call from any thread.
"""

from twinsight.plotting.curves import draw_curves
from twinsight.plotting.embedding import draw_embedding
from twinsight.plotting.grid import draw_grid
from twinsight.plotting.heatmap import overlay
from twinsight.plotting.images import draw_images, write_gif
from twinsight.plotting.pair import draw_explanation, draw_pair

__all__ = [
    "draw_curves",
    "draw_embedding",
    "draw_explanation",
    "draw_grid",
    "draw_images",
    "draw_pair",
    "overlay",
    "write_gif",
]
