"""Options with a published and a sound value: `paper` replicates, `sound` mends."""

from collections.abc import Mapping
from typing import Any, Literal

from twinsight.errors import unknown

Protocol = Literal["sound", "paper"]
PROTOCOLS = ("paper", "sound")


def resolve(protocol: str, options: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with every None that has a value in the protocol replaced by it; a value given explicitly wins.

    Args:
        protocol: ``"paper"`` or ``"sound"``.
        options: for each protocol option, its value under each protocol.
        given: the options as the caller gave them.

    Raises:
        UserError: unknown protocol.

    >>> resolve("paper", {"baseline": {"paper": "input_zero", "sound": "blur"}}, {"baseline": None, "window": 8})
    {'baseline': 'input_zero', 'window': 8}
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    return {
        name: options[name][protocol] if value is None and name in options else value for name, value in given.items()
    }
