"""Pictures of explanations: heatmaps over views, one figure per pair, insertion and deletion curves.

Everything takes numpy arrays and is drawn without pyplot: no display, no global state, safe to call from any thread.
"""

from twinsight.plotting.curves import draw_curves
from twinsight.plotting.embedding import draw_embedding
from twinsight.plotting.heatmap import overlay
from twinsight.plotting.pair import draw_explanation, draw_pair

__all__ = ["draw_curves", "draw_embedding", "draw_explanation", "draw_pair", "overlay"]
