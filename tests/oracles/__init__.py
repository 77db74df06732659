"""Slow, literal re-implementations of the formulas: one pair at a time, plain loops, to test the fast code against."""
