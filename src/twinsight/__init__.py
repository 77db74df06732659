"""Explains why a self-supervised model finds two views of an image similar, and measures each explanation."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("twinsight")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0.0.0"
