"""What is chosen on the page: as words of a configuration, as a command to copy, as the query of a link."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from omegaconf import DictConfig, OmegaConf

from twinsight.app.photos import demo_name, names_of, pairs_table
from twinsight.config import HYDRA_KEYS, conf_folder, options
from twinsight.errors import UserError, unknown
from twinsight.protocol import PROTOCOLS
from twinsight.signatures import arguments, choices, expected, locate

VIEWS = ("simclr", "whole", "none")
LARGEST = 100_000
"""Numbers beyond it, in options, would keep a machine busy for days."""
_SAFE = re.compile(r"[\w.+-]{1,80}|\[[\w.+,-]{1,200}\]", re.ASCII)
_NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\w.+-]*")
_HIDDEN = (*HYDRA_KEYS, "protocol", "progress")


@dataclass(frozen=True)
class Option:
    """An option of an explainer, as its file in ``conf/explainer`` has it.

    Attributes:
        name: key in the file.
        default: value in the file, as text.
        valid: the values it takes, where there are few; empty where anything can be written.
        note: the comment beside it.
    """

    name: str
    default: str
    valid: tuple[str, ...]
    note: str


@cache
def explainer_options(explainer: str) -> tuple[Option, ...]:
    """What can be set on the page for an explainer: every option of its file whose value is no node.

    >>> [option.name for option in explainer_options("gradcam")], explainer_options("gradcam")[0].valid
    (['form', 'layer'], ('canonical', 'elementwise'))
    """
    path = conf_folder() / "explainer" / f"{explainer}.yaml"
    node = OmegaConf.load(path)
    assert isinstance(node, DictConfig)
    types = arguments(locate(f"explainer={explainer}", node._target_)).types
    found = []
    for line in path.read_text().splitlines():
        match = re.fullmatch(r"(\w+):\s*(.*?)(?:\s+# (.*))?", line)
        if match is None or match[1] in _HIDDEN or match[2].startswith("{"):
            continue
        name, default, note = match[1], match[2], match[3] or ""
        annotation = types.get(name, Any)
        takes = expected(annotation)
        # Sorted, since Python may know one of these types in another order already.
        valid = [*(["true", "false"] if "true" in takes else []), *sorted(choices(annotation))]
        if annotation is Any or re.search(r"\b(int|float|str)\b", takes):
            valid = []
        found.append(Option(name, default, tuple(valid), note))
    return tuple(found)


@cache
def explainer_names() -> tuple[str, ...]:
    """Every explainer that has a file."""
    return tuple(name for name in options("explainer") if (conf_folder() / "explainer" / f"{name}.yaml").exists())


@dataclass(frozen=True)
class Settings:
    """Everything that decides a result, but the photos.

    Args:
        model: name of one of the models on offer.
        explainers: names, at least one.
        options: of each explainer, by its name: what differs from its file.
        protocol: ``"sound"`` or ``"paper"``.
        views: how two views are made of one photo; two photos are shown whole.
        seed: of the views and of everything explainers draw.
        points: intervals per insertion and deletion curve.

    Raises:
        UserError: an unknown name, or an option whose value is no plain number, word or list of them.

    >>> Settings(explainers=("gradcam",), options={"gradcam": {"form": "elementwise"}}).words(["data=demo_photos"])
    ['data=demo_photos', 'views=simclr', 'model=demo_simclr', 'explainer=gradcam', 'explainer.form=elementwise']
    """

    model: str = "demo_simclr"
    explainers: tuple[str, ...] = ("interaction_cam",)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    protocol: str = "sound"
    views: str = "simclr"
    seed: int = 0
    points: int = 224

    def __post_init__(self) -> None:
        if not self.explainers:
            raise UserError("choose at least one explainer")
        if len(set(self.explainers)) < len(self.explainers):
            raise UserError("an explainer was chosen twice")
        for name in self.explainers:
            if name not in explainer_names():
                raise unknown("explainer", name, explainer_names())
        if self.protocol not in PROTOCOLS:
            raise unknown("protocol", self.protocol, PROTOCOLS)
        if self.views not in VIEWS:
            raise unknown("views", self.views, VIEWS)
        for name, value, top in (("seed", self.seed, 2**32 - 1), ("points", self.points, 1000)):
            least = 1 if name == "points" else 0
            if not isinstance(value, int) or not least <= value <= top:
                raise UserError(f"`{name}` must be a whole number from {least} to {top}, got {value!r}")
        given = {name: self._plain(name) for name in self.explainers}
        object.__setattr__(self, "options", {name: values for name, values in given.items() if values})

    def words(self, data: Sequence[str], scored: bool | None = None) -> list[str]:
        """Overrides of the configuration.

        Args:
            data: the words that say which photos.
            scored: whether metrics are wanted; None leaves that unsaid.
        """
        two = "data=pairs" in data
        words = [*data, f"views={'whole' if two else self.views}", f"model={self.model}"]
        if self.seed:
            words.append(f"seed={self.seed}")
        if self.protocol != "sound":
            words.append(f"protocol={self.protocol}")
        one = len(self.explainers) == 1
        words.append(f"explainer={self.explainers[0]}" if one else f"explainers=[{','.join(self.explainers)}]")
        for name, values in self.options.items():
            prefix = "explainer" if one else f"explainers.options.{name}"
            words += [f"{prefix}.{key}={value}" for key, value in values.items()]
        if scored is not None:
            words.append(f"metrics={'paper' if scored else 'none'}")
        if scored:
            words.append(f"metrics.insertion_deletion.points={self.points}")
        return words

    def command(self, photos: Sequence[Path], scored: bool, models: Mapping[str, str]) -> str:
        """What computes the same from a terminal, in the folder of ``run.py``.

        Like the app it sends nothing anywhere: without ``logger=none``, who is logged in to W&B would upload the photo.

        Args:
            photos: the files, of which names alone are told.
            scored: with the nine metrics.
            models: words of each model on offer.
        """
        lines = []
        if len(photos) == 2:
            lines.append(f"# {' and '.join(names_of(photos))} lie in this folder")
            lines.append(f"printf '%s\\n' {shlex.join(pairs_table(photos))} > pairs.csv")
            data = ["data=pairs", "data.file=pairs.csv"]
        elif demo_name(photos[0]):
            lines.append(f"# {photos[0].name} is one of its twelve pairs")
            data = ["data=demo_photos"]
        else:
            lines.append(f"# FOLDER holds {names_of(photos)[0]}; the seed of the views is made of that name")
            data = ["data=image_folder", "data.root=FOLDER"]
        words = [*self.words(data, scored), "logger=none"]
        words[words.index(f"model={self.model}")] = _without_folders(models[self.model])
        return "\n".join([*lines, shlex.join(["python", "run.py", *shlex.split(" ".join(map(_quoted, words)))])])

    def query(self, photos: Sequence[Path]) -> str:
        """The query of a link that chooses the same, with the photos where they ship with the package."""
        named = {"photo": demo_name(photos[0])} if photos else {}
        if len(photos) == 2:
            named["photo2"] = demo_name(photos[1]) or ""
        given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        given |= {"model": self.model, "explainers": ",".join(self.explainers), "protocol": self.protocol}
        given |= {"views": self.views, "seed": self.seed, "points": self.points}
        given |= {f"{name}.{key}": value for name, values in self.options.items() for key, value in values.items()}
        return urlencode(given)

    @classmethod
    def from_query(cls, query: Mapping[str, str], models: Mapping[str, str]) -> "Settings":
        """The settings of a link; what it leaves out is the default.

        Raises:
            UserError: it asks for what does not exist.

        >>> Settings.from_query({"explainers": "gradcam", "gradcam.form": "elementwise", "seed": "3"}, {}).options
        {'gradcam': {'form': 'elementwise'}}
        """
        given: dict[str, Any] = {name: query[name] for name in ("model", "protocol", "views") if name in query}
        if "model" in given and given["model"] not in models:
            raise unknown("model", given["model"], models)
        if "explainers" in query:
            given["explainers"] = tuple(query["explainers"].split(","))
        for name in ("seed", "points"):
            if name in query:
                given[name] = int(query[name]) if query[name].isascii() and query[name].isdigit() else query[name]
        chosen: dict[str, dict[str, Any]] = {}
        for key, value in query.items():
            name, dot, option = key.partition(".")
            if dot:
                chosen.setdefault(name, {})[option] = value
        return cls(**given, options=chosen)

    def _plain(self, explainer: str) -> dict[str, str]:
        """Options as text that Hydra reads as a number, a word or a list, and never as a node or a reference."""
        known = {option.name: option for option in explainer_options(explainer)}
        found = {}
        given = self.options.get(explainer, {})
        for name in given:
            if name not in known:
                raise unknown(f"option of {explainer}", name, known)
        for name in (name for name in known if name in given):
            text = _text(given[name])
            if not text or text == known[name].default.replace(" ", ""):
                continue
            if not _SAFE.fullmatch(text):
                raise UserError(f"`{explainer}.{name}` must be a number, a word or a list of them, got {text[:80]!r}")
            for number in _NUMBER.findall(text):
                if _size(number) > LARGEST:
                    raise UserError(f"`{explainer}.{name}` must be at most {LARGEST}, got {text}")
            found[name] = text
        return found


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: ""}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    return str(value).replace(" ", "")


def _size(number: str) -> float:
    try:
        return abs(float(number))
    except ValueError:  # a word that begins with a digit
        return 0.0


def _quoted(word: str) -> str:
    return word if word.startswith("model=") else shlex.quote(word)


def _without_folders(words: str) -> str:
    """Words of a model with file names alone: where they lie on the server is nobody's business."""
    parts = []
    for word in shlex.split(words):
        key, equals, value = word.partition("=")
        parts.append(shlex.quote(f"{key}{equals}{Path(value).name}" if "/" in value else word))
    return " ".join(parts)
