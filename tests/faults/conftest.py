"""Every test leaves the process as it found it."""

from toy_runs import surroundings_restored

__all__ = ["surroundings_restored"]
