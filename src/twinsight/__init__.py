"""Explains why a self-supervised model finds two views of an image similar, and measures each explanation."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinsight.api import evaluate, explain

__all__ = ["evaluate", "explain"]

try:
    __version__ = version("twinsight")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        from twinsight import api  # brings torch along, which importing this package alone does not

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
