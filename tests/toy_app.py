"""What tests in a browser hand around."""

from typing import Any, NamedTuple


class Served(NamedTuple):
    """The app at an address, and what computes behind it."""

    address: str
    workshop: Any


def patient(opened: Any) -> Any:
    """A page or a context of Playwright's, which waits as long as a busy machine may take."""
    opened.set_default_timeout(120_000)
    return opened
