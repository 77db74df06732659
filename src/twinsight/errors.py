"""The one exception that means: the user can mend this."""

import difflib
from collections.abc import Iterable
from importlib.util import find_spec


class UserError(ValueError):
    """Bad input, said once: the message names the argument, its value and the remedy.

    The command line prints the message without a traceback and exits with code 2. It is a ``ValueError``, so Python
    callers need no import of ours to catch it.
    """


class NotApplicable(UserError):
    """A method that makes no sense for this model: a set goes on without it and says why."""


def unknown(kind: str, value: object, valid: Iterable[str]) -> UserError:
    """The error for a name that is not among ``valid``, with the nearest one and the whole list.

    >>> print(unknown("explainer", "grad_cam", ["gradcam", "interaction_cam"]))
    unknown explainer 'grad_cam': did you mean 'gradcam'? Valid: gradcam, interaction_cam
    """
    names = sorted(valid)
    close = difflib.get_close_matches(str(value), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UserError(f"unknown {kind} {value!r}: {hint}Valid: {', '.join(names)}")


def require_extra(what: str, package: str, extra: str) -> None:
    """Refuse to go on without a package that an extra of twinsight installs; it is not imported.

    Args:
        what: wants it.
        package: its name as its makers write it; the module's is the same in lower case.
        extra: that brings it.

    Raises:
        UserError: it is not installed.

    >>> require_extra("this example", "torch", "none")
    """
    if find_spec(package.lower()) is None:
        raise UserError(f'{what} needs {package}: pip install "twinsight[{extra}]"')
