"""The study logic: one cell is planned, run, recorded, resumed; many cells are a study, planned once."""

from twinsight.study.cell import Cell
from twinsight.study.evaluation import Evaluation
from twinsight.study.explain import explain
from twinsight.study.planner import Plan, Planner, plan
from twinsight.study.study import Study, StudyCell

__all__ = ["Cell", "Evaluation", "Plan", "Planner", "Study", "StudyCell", "explain", "plan"]
