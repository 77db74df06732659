"""The study logic: one cell is planned, run, recorded, resumed; many cells are an aggregate of such."""

from twinsight.study.cell import Cell, Plan, plan
from twinsight.study.evaluation import Evaluation
from twinsight.study.explain import explain

__all__ = ["Cell", "Evaluation", "Plan", "explain", "plan"]
