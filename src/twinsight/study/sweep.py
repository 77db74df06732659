"""All configurations of a multirun, composed in seconds: Hydra composes each choice once, not each combination."""

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

Compose = Callable[[Sequence[str]], DictConfig]
Path = tuple[str, ...]
Words = tuple[str, ...]
Axis = list[str]
"""Alternatives for one override, as they would be written without the others; a single one is fixed."""

_GONE = object()


def axes_of(words: Sequence[str], loader: ConfigLoader) -> list[Axis]:
    """The overrides of a command line, each as the list of its alternatives.

    Raises:
        HydraException: a sweep that is no list of values.
    """
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(words))
    split = [BasicSweeper.split_arguments([override], None)[0] for override in overrides]
    return [[alternative for (alternative,) in alternatives] for alternatives in split]


def compositions(
    axes: Sequence[Axis], compose: Compose, loader: ConfigLoader
) -> Iterator[tuple[list[str], DictConfig]]:
    """Every combination of alternatives and its configuration, the last axis running fastest.

    Hydra takes a third of a second for a composition. A thousand combinations of ten models, ten explainers and ten
    data sets take thirty here: what each choice changes, compared with the first combination, is a patch, and patches
    that touch different places can be laid over one another. Choices that touch the same places are composed together,
    and plain values are set afterwards, as Hydra does. The last combination is composed in full and compared; should
    the patches not amount to it (choices that look at each other), every combination is composed.

    Args:
        axes: as :func:`axes_of` gives them.
        compose: a list of overrides to a configuration, without ``hydra``.
        loader: parses overrides.
    """
    combinations = [list(combination) for combination in itertools.product(*axes)]
    base = compose(combinations[0])
    patched = _Patched(axes, base, compose, loader)
    trusted = len(combinations) == 1 or _plain(patched(combinations[-1])) == _plain(compose(combinations[-1]))
    for combination in combinations:
        yield combination, patched(combination) if trusted else compose(combination)


class _Patched:
    """The configuration of a combination as the base with patches."""

    def __init__(self, axes: Sequence[Axis], base: DictConfig, compose: Compose, loader: ConfigLoader) -> None:
        self.base = base
        self.compose = compose
        self._loader = loader
        self._parser = OverridesParser.create(config_loader=loader)
        self._first = [axis[0] for axis in axes]
        sweeping = [place for place, axis in enumerate(axes) if len(axis) > 1]
        self.values = [place for place in sweeping if self._is_value(axes[place][0])]
        choices = [place for place in sweeping if place not in self.values]
        alone = {place: [self._patch({place: one}) for one in axes[place]] for place in choices}
        self._patches: list[tuple[list[int], dict[Words, Mapping[Path, Any]]]] = []
        patches: dict[Words, Mapping[Path, Any]]
        for group in _overlapping({place: set().union(*map(set, patches)) for place, patches in alone.items()}):
            if len(group) == 1:
                (place,) = group
                patches = {(one,): patch for one, patch in zip(axes[place], alone[place], strict=True)}
            else:
                together: Iterator[Words] = itertools.product(*(axes[place] for place in group))
                patches = {words: self._patch(dict(zip(group, words, strict=True))) for words in together}
            self._patches.append((group, patches))

    def __call__(self, combination: Sequence[str]) -> DictConfig:
        config = copy.deepcopy(self.base)
        with open_dict(config):
            for group, table in self._patches:
                for path, value in table[tuple(combination[place] for place in group)].items():
                    _set(config, path, value)
        for place in self.values:
            override = self._parse(combination[place])
            key = override.get_key_element()
            if not _has(config, key):
                return self.compose(combination)  # which says in Hydra's words what is wrong with it
            OmegaConf.update(config, key, override.value(), merge=True)
        return config

    def _patch(self, words: Mapping[int, str]) -> Mapping[Path, Any]:
        combination = [words.get(place, first) for place, first in enumerate(self._first)]
        if combination == self._first:
            return {}
        return dict(_difference(_plain(self.base), _plain(self.compose(combination))))

    def _is_value(self, word: str) -> bool:
        """Whether an override sets a value that the base has, rather than choosing a file, adding or removing."""
        override = self._parse(word)
        plain = not (override.is_add() or override.is_delete() or override.package)
        value = _has(self.base, override.key_or_group)
        # A group's node is in the configuration too; only what is below it, or no group, is a value.
        return plain and value and not self._loader.get_group_options(override.key_or_group)

    def _parse(self, word: str) -> Override:
        return self._parser.parse_override(word)


def _has(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent, throw_on_resolution_failure=False) if parent else config
    # As a list: asked directly, a node denies having what is missing or cannot be resolved yet.
    return isinstance(node, DictConfig) and not node._is_missing() and name in list(node)


def _plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False)


def _difference(old: Any, new: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """What must be set, or removed, to make ``new`` of ``old``, as deep as mappings go."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if key not in new:
                yield (*path, key), _GONE
            elif key not in old:
                yield (*path, key), new[key]
            else:
                yield from _difference(old[key], new[key], (*path, key))
    elif old != new or type(old) is not type(new):
        yield path, new


def _set(config: DictConfig, path: Path, value: Any) -> None:
    node: Any = config
    for key in path[:-1]:
        node = node._get_node(key)
    if value is _GONE:
        node.pop(path[-1], None)
    else:
        node[path[-1]] = value


def _overlapping(touched: Mapping[int, set[Path]]) -> list[list[int]]:
    """Groups of axes that touch, directly or through others, the same places."""
    groups: list[tuple[list[int], set[Path]]] = []
    for place, paths in touched.items():
        own, rest = ([place], set(paths)), []
        for group in groups:
            if _meet(own[1], group[1]):
                own = (sorted([*own[0], *group[0]]), own[1] | group[1])
            else:
                rest.append(group)
        groups = [*rest, own]
    return [places for places, _ in groups]


def _meet(one: set[Path], other: set[Path]) -> bool:
    """Whether a path of one set is, or lies below, a path of the other."""
    return any(a[: len(b)] == b[: len(a)] for a in one for b in other)
