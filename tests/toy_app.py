"""What tests of the app hand around."""

from typing import Any, NamedTuple


class Served(NamedTuple):
    """The app at an address, and what computes behind it."""

    address: str
    workshop: Any
