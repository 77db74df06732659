"""What a ``_target_`` accepts: names and types of its arguments, read from its signature."""

import difflib
import functools
import inspect
import logging
import os
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import hydra.utils

from twinsight.errors import UserError

_STDLIB_ALLOWED = (
    *("builtins.bool", "builtins.complex", "builtins.dict", "builtins.float", "builtins.int", "builtins.list"),
    *("builtins.range", "builtins.set", "builtins.slice", "builtins.str", "builtins.tuple"),
    *("collections.OrderedDict", "datetime.timedelta", "functools.partial", "pathlib.Path"),
)
_RUN_CODE = (
    *("torch.load", "torch.serialization", "torch.hub", "torch.jit", "torch.package", "torch.utils.cpp_extension"),
    *("numpy.load", "numpy.lib", "pandas.read_pickle", "pandas.io", "joblib", "cloudpickle", "dill", "yaml"),
    *("pip", "setuptools", "IPython", "hydra.utils.call", "hydra.utils.instantiate", "hydra._internal", "omegaconf"),
    "twinsight.requeued",
)
"""Beyond Python's own library, what is plainly made to run what a file or a text says; there is more."""
_LISTS = (list, tuple, set, frozenset, Sequence, Collection, Iterable)


@dataclass(frozen=True)
class Arguments:
    """Keyword arguments of a callable.

    Attributes:
        types: annotation by name; Any where the signature does not say.
        open: whether it takes keywords beyond ``types``.
    """

    types: Mapping[str, Any]
    open: bool

    @property
    def writable(self) -> list[str]:
        """Names that make sense in a file. Models and tensors without a default are left to the calling code."""
        return [name for name, annotation in self.types.items() if not isinstance(annotation, _FromCaller)]


@dataclass(frozen=True)
class _FromCaller:
    """Annotation of a required argument that no text can stand for."""

    annotation: Any


def locate(key: str, path: object) -> Callable[..., Any]:
    """The callable at the dotted ``path`` that the configuration gives as ``key``.

    Raises:
        UserError: it cannot be imported or called, or is plainly no part of an experiment: something of Python's own
            library, ``os.system`` for one, or what runs the code in a file.

    >>> locate("model", "os.system")
    Traceback (most recent call last):
    twinsight.errors.UserError: `model=os.system` could run anything: give a class or function of twinsight, or yours
    """
    if not isinstance(path, str):
        raise UserError(f"`{key}` must be the dotted path of a class or function, got {path!r}")
    _refuse_dangerous(key, path, path)
    try:
        with _silent("hydra.utils"):  # which logs what it also raises
            found = hydra.utils.get_object(path)
    except Exception as error:
        raise UserError(f"`{key}={path}` cannot be imported: {_why(path, error)}") from error
    if not callable(found):
        raise UserError(f"`{key}={path}` is a {type(found).__name__}: give the dotted path of a class or function")
    # Whatever name leads there: twinsight.exits.os.system. Objects, such as a partial in a module of the user's, pass.
    if isinstance(found, type) or hasattr(found, "__qualname__"):
        _refuse_dangerous(key, path, f"{found.__module__ or 'builtins'}.{found.__qualname__}")
    return found


def _refuse_dangerous(key: str, path: str, name: str) -> None:
    own_library = name.partition(".")[0] in sys.stdlib_module_names and name not in _STDLIB_ALLOWED
    if own_library or any(f"{name}.".startswith(f"{each}.") for each in _RUN_CODE):
        raise UserError(f"`{key}={path}` could run anything: give a class or function of twinsight, or yours")


@functools.cache
def arguments(target: Callable[..., Any]) -> Arguments:
    """Keyword arguments that ``target`` takes.

    >>> def photos(root: str, *, limit: int | None = None): ...
    >>> arguments(photos).writable, arguments(photos).open
    (['root', 'limit'], False)
    """
    function = target
    if isinstance(target, type):
        made_by_new = vars(object)["__init__"] is inspect.getattr_static(target, "__init__")
        function = target.__new__ if made_by_new else target.__init__  # type: ignore[misc]
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # built in, without a signature
        return Arguments({}, open=True)
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # names that exist for type checkers only
        hints = {}
    if function is not target:
        parameters = parameters[1:]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    annotations = {p.name: hints.get(p.name, Any) for p in named}
    for parameter in named:
        annotation = annotations[parameter.name]
        if parameter.default is parameter.empty and _is_object(annotation):
            annotations[parameter.name] = _FromCaller(annotation)
        elif parameter.default is None:
            annotations[parameter.name] = annotation | None if annotation is not Any else Any
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if is_open and isinstance(target, type):
        # A constructor that takes further keywords hands them to the next one in line, unless that is the last.
        makers = [base for base in target.__mro__ if "__init__" in vars(base) and base is not object]
        inherited = arguments(makers[1]) if len(makers) > 1 else Arguments({}, open=True)
        return Arguments({**inherited.types, **annotations}, inherited.open)
    return Arguments(annotations, is_open)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value from a file is one of ``annotation``. Nothing is converted: what fits is what the callable gets.

    Lenient where text may stand for an object: a node with a ``_target_`` fits everything, a string or a list fits
    classes that are not built in.

    >>> fits(1, float), fits(1.5, int), fits(True, int), fits([1, 2], tuple[int, ...]), fits(None, int | None)
    (True, False, False, True, True)
    """
    base = get_origin(annotation) or annotation
    inner = get_args(annotation)
    if annotation is Any or (isinstance(value, Mapping) and "_target_" in value):
        return True
    if isinstance(annotation, _FromCaller):
        return fits(value, annotation.annotation)
    if base is Annotated:
        return fits(value, inner[0])
    if base in (Union, types.UnionType):
        return any(fits(value, member) for member in inner)
    if base is Literal:
        return any(type(value) is type(member) and value == member for member in inner)
    if base in (None, types.NoneType):
        return value is None
    if base is Callable:
        return False  # only a `_target_` makes one
    if not isinstance(base, type):
        return True
    if value is None:
        return base is object
    if base in (int, float, bool, str):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number if base is float else type(value) is base
    if issubclass(base, os.PathLike):
        return isinstance(value, str | os.PathLike)
    if issubclass(base, Enum):
        return isinstance(value, base) or value in base.__members__
    if base is tuple and inner and Ellipsis not in inner:
        return _is_list(value) and len(value) == len(inner) and all(map(fits, value, inner))
    if issubclass(base, Mapping):
        return isinstance(value, Mapping) and all(fits(item, inner[1]) for item in value.values() if inner)
    if base in _LISTS:
        return _is_list(value) and all(fits(item, inner[0]) for item in value if inner)
    return not isinstance(value, int | float) or _is_instance(value, base)


def expected(annotation: Any) -> str:
    """``annotation`` in the words of a YAML file.

    >>> expected(int | None), expected(tuple[float, float]), expected(Literal["centre", "augmented"])
    ('int or null', '[float, float]', "'centre' or 'augmented'")
    """
    *others, last = dict.fromkeys(_alternatives(annotation))
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(annotation: Any) -> list[str]:
    base = get_origin(annotation) or annotation
    inner = get_args(annotation)
    if isinstance(annotation, _FromCaller):
        return _alternatives(annotation.annotation)
    if base is Annotated:
        return _alternatives(inner[0])
    if base in (Union, types.UnionType):
        return [word for member in inner for word in _alternatives(member)]
    if base is Literal:
        return [as_written(member) for member in inner]
    if base in (None, types.NoneType):
        return ["null"]
    if base is bool:
        return ["true", "false"]
    if base is Callable:
        return ["a node with a _target_"]
    if is_dataclass(base):
        return [f"a node of {', '.join(field.name for field in fields(base))}"]
    if isinstance(base, type) and issubclass(base, os.PathLike):
        return ["a path"]
    if isinstance(base, type) and issubclass(base, Enum):
        return [repr(name) for name in base.__members__]
    if base is tuple and inner and Ellipsis not in inner:
        return [f"[{', '.join(map(expected, inner))}]"]
    if isinstance(base, type) and issubclass(base, Mapping):
        return ["{" + ": ".join(map(expected, inner or (Any, Any))) + "}"]
    if base in _LISTS:
        return [f"[{expected(inner[0] if inner else Any)}, ...]"]
    return [str(getattr(base, "__name__", base))]


def as_written(value: object) -> str:
    """A value as YAML has it.

    >>> as_written(True), as_written(None), as_written("1")
    ('true', 'null', "'1'")
    """
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value)


def choices(annotation: Any) -> list[str]:
    """The strings that an annotation spells out."""
    if get_origin(annotation) is Literal:
        return [member for member in get_args(annotation) if isinstance(member, str)]
    return [name for member in get_args(annotation) for name in choices(member)]


def closest(name: object, valid: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The nearest of ``valid``, None when none is near."""
    return next(iter(difflib.get_close_matches(str(name), list(valid), n=1, cutoff=cutoff)), None)


def _is_object(annotation: Any) -> bool:
    """Whether only code can give a value: neither text, number, list nor table can."""
    if get_origin(annotation) in (Union, types.UnionType):
        return all(map(_is_object, get_args(annotation)))
    if Callable in (annotation, get_origin(annotation)):
        return True
    if not isinstance(annotation, type) or issubclass(annotation, os.PathLike | Enum):
        return False
    samples: tuple[Any, ...] = ("text", 1, 1.0, True, None, [], {})
    return not any(_is_instance(sample, annotation) for sample in samples)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_instance(value: Any, base: type) -> bool:
    try:
        return isinstance(value, base)
    except TypeError:  # a protocol that is not for run time
        return True


def _why(path: str, error: Exception) -> str:
    """The reason in one line: what does not exist, with the nearest name that does, or what its import ran into."""
    module, _, name = path.rpartition(".")
    cause = error.__cause__
    if isinstance(cause, ModuleNotFoundError) and cause.name and f"{path}.".startswith(f"{cause.name}."):
        with _silent("hydra.utils"):
            try:
                near = closest(name, dir(hydra.utils.get_object(module)))
            except Exception:
                return f"there is no module {cause.name!r}"
        return f"{module} has no {name!r}" + (f", did you mean {near!r}?" if near else "")
    return " ".join(f"{type(cause or error).__name__}: {cause or error}".split())


@contextmanager
def _silent(logger: str) -> Iterator[None]:
    log = logging.getLogger(logger)
    disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = disabled
