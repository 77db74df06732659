"""A configuration that does not fit is refused at once, with the full key and the remedy."""

import errno
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import hydra.utils
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch._utils import ExceptionWrapper

from twinsight.complaints import explain_error
from twinsight.config import conf_folder, options, register_schema, validate
from twinsight.errors import UserError
from twinsight.signatures import arguments, expected, fits

GROUPS = sorted(path.name for path in conf_folder().iterdir() if path.is_dir() and path.name != "hydra")
CHOICES = [(group, name) for group in GROUPS for name in options(group)]


@pytest.fixture(autouse=True)
def composing():
    register_schema()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    return compose("config", list(overrides))


def complaint(*overrides: str) -> str | None:
    """What a user reads who gives these overrides; None when nothing is wrong."""
    try:
        validate(composed(*overrides))
    except Exception as error:
        return explain_error(error) or repr(error)
    return None


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=[f"{group}={name}" for group, name in CHOICES])
def test_every_shipped_choice_is_valid(group, name):
    config = composed(f"{group}={name}")
    for key in OmegaConf.missing_keys(config):
        # What names code must name some that is there.
        OmegaConf.update(config, key, "torch.nn.Identity" if key.endswith(("._target_", ".path")) else "given")
    validate(config)


def test_validation_changes_nothing():
    config = composed()
    before = OmegaConf.to_yaml(config)
    validate(config)
    assert OmegaConf.to_yaml(config) == before


def test_a_plain_dictionary_is_held_against_the_schema_as_well():
    config = OmegaConf.create(OmegaConf.to_container(composed()))
    config.loader.batch_siz = 3
    with pytest.raises(UserError, match=r"unknown key 'loader.batch_siz': did you mean 'loader.batch_size'\?"):
        validate(config)


def test_hydras_own_part_of_a_configuration_is_left_to_hydra():
    validate(compose("config", return_hydra_config=True))


@pytest.mark.parametrize(
    ("override", "wrong", "right"),
    [
        ("explainer.reducton=max", "explainer.reducton", "explainer.reduction"),
        ("+explainer.reducton=max", "explainer.reducton", "explainer.reduction"),
        ("loader.batch_siz=3", "loader.batch_siz", "loader.batch_size"),
        ("+loader.batch_siz=3", "loader.batch_siz", "loader.batch_size"),
        ("trainr.devices=2", "trainr.devices", "trainer.devices"),
        ("reduction=max", "reduction", "explainer.reduction"),
        ("explaner=gradcam", "explaner", "explainer"),
        ("+sed=3", "sed", "seed"),
        ("hydra.run.dirr=x", "hydra.run.dirr", "hydra.run.dir"),
        ("views.ratoi=[1,1]", "views.ratoi", "+views.ratio"),
        ("+trainer.max_stepz=1", "trainer.max_stepz", "trainer.max_steps"),
        ("+metrics.average_drop.flor=1", "metrics.average_drop.flor", "metrics.average_drop.floor"),
    ],
)
def test_a_misspelt_key_is_named_in_full_with_the_nearest_valid_one(override, wrong, right):
    message = complaint(override)
    assert f"{wrong!r}: did you mean {right!r}? Valid: " in message


def test_a_misspelt_key_of_one_explainer_in_a_set_is_named_in_full():
    message = complaint("explainers=[gradcam,interaction_cam]", "+explainers.options.gradcam.fom=canonical")
    assert message.startswith("unknown key 'explainers.options.gradcam.fom': did you mean 'explainers.options.gradcam.")


def test_an_option_of_a_set_that_was_not_chosen_says_to_choose_it():
    assert complaint("explainers.options.gradcam.form=canonical").endswith("Name the set first, explainers=[a,b]")


def test_an_argument_that_no_file_sets_is_added_with_a_plus():
    assert complaint("views.ratio=[1,1]") == (
        "`views.ratio` is a valid key that no file sets: add it with a plus, +views.ratio=..."
    )
    assert complaint("+views.ratio=[1,1]") is None


def test_options_of_a_task_are_its_own_and_those_of_its_parts_are_checked():
    pretrain = ("task=pretrain", "data.root=given")
    assert complaint(*pretrain, "+task.mine=3") is None
    assert "did you mean 'task.epochs'?" in complaint(*pretrain, "task.epoch=3")
    assert "did you mean 'task.method.temperature'?" in complaint(*pretrain, "+task.method.temprature=1")
    assert complaint(*pretrain, "task.method.temperature=hot") == "`task.method.temperature` must be float, got 'hot'"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=abc", "`seed` must be int, got 'abc'"),
        ("seed=null", "`seed` must be int, got null"),
        ("pictures.limit=1.5", "`pictures.limit` must be int, got 1.5"),
        ("loader=3", "`loader` must be a node of batch_size, num_workers, got 3"),
        ("data.limit=2.5", "`data.limit` must be int or null, got 2.5"),
        ("data.limit='3'", "`data.limit` must be int or null, got '3'"),
        ("views.antialias=3", "`views.antialias` must be true or false, got 3"),
        ("views.scale=[0.1]", "`views.scale` must be [float, float], got [0.1]"),
        ("views.first=augmentd", "`views.first` must be 'centre' or 'augmented', got 'augmentd': did you mean 'augm"),
        ("model.similarity=3", "`model.similarity` must be str or a node with a _target_, got 3"),
        ("views.size=${seed}${seed}", "`views.size` must be int, got '00' from ${seed}${seed}"),
        ("trainer.precision=bf16-mxied", "got 'bf16-mxied': did you mean 'bf16-mixed'?"),
        ("explainer.gradient_interaction=3", "must be true, false or 'sign_consistent', got 3"),
        ("+explainer.model=3", "`explainer.model` must be TwoViewModel, got 3"),
    ],
)
def test_a_wrong_type_is_named_with_key_value_and_what_is_expected(override, message):
    assert message in complaint(override)


@pytest.mark.parametrize(
    "override",
    ["views.strength=1", "trainer.devices=[0]", "data.limit=null", "model.similarity=dot", "views.scale=[0,1]"],
)
def test_values_that_fit_pass(override):
    assert complaint(override) is None


def test_a_missing_value_says_how_to_give_it():
    assert complaint("data=image_folder") == "data.root is missing: give it on the command line, data.root=..."


def test_a_missing_choice_lists_the_valid_ones():
    message = complaint("~explainer")
    assert message.startswith("explainer is missing: choose one on the command line, explainer=NAME. Valid: ")
    assert "interaction_cam" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data._target_=nosuch.Photos",
            "`data._target_=nosuch.Photos` cannot be imported: there is no module 'nosuch'",
        ),
        ("data._target_=twinsight.data.Demo", "twinsight.data has no 'Demo'"),
        ("data._target_=twinsight.data.DemoPhoto", "has no 'DemoPhoto', did you mean 'DemoPhotos'?"),
        ("data._target_=twinsight.data.__all__", "is a list: give the dotted path of a class or function"),
        ("data._target_=3", "`data._target_` must be the dotted path of a class or function, got 3"),
        (
            "similarity.path=twinsight.similarity.cosne",
            "`similarity.path=twinsight.similarity.cosne` cannot be imported",
        ),
        ("task._target_=nosuch.task", "`task._target_=nosuch.task` cannot be imported"),
    ],
)
def test_a_target_that_cannot_be_imported_is_named_with_its_key(override, message):
    assert message in complaint(override)


def test_a_node_without_a_target_is_not_checked():
    assert complaint("logger=none", "+logger.anything=3") is None


def test_an_interpolation_that_leads_nowhere_is_named_with_its_key():
    assert complaint("views.flip=${nosuch}") == (
        "`views.flip=${nosuch}` cannot be resolved: Interpolation key 'nosuch' not found"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("explainer=grad_cam", "unknown explainer 'grad_cam': did you mean 'gradcam'? Valid: "),
        ("explainers=[grad_cam]", "unknown explainer or set 'grad_cam': did you mean 'gradcam'? Valid: "),
        ("hydra/launcher=nosuch", "unknown hydra/launcher 'nosuch': Valid: "),
        ("explainer=3", "`explainer=3`: Config group override must be a string or a list. Got int"),
        ("+explainer=gradcam", "`explainer` is chosen twice: write explainer=NAME once, without a plus"),
        ("explainer@mine=gradcam", "Did you mean to override explainer?"),
        ("seed=1,2", "Ambiguous value for argument 'seed=1,2'"),
        ("+seed=1", "Either remove + prefix: 'seed=1'"),
        ("~nosuch", "'nosuch' does not exist"),
        ("gradcam", "'gradcam' is not an override: write key=value or group=name"),
        ("a b=3", "cannot read the override 'a b=3': put special characters in quotes"),
        ("seed=[1", "cannot read the override 'seed=[1' (no viable alternative at input '[1'): put special"),
    ],
)
def test_what_does_not_compose_is_said_in_one_line(override, message):
    found = complaint(override)
    assert message in found
    assert "\n" not in found


class TestFilesThatUsersWrite:
    @pytest.fixture
    def written(self, tmp_path, monkeypatch):
        """Writes a file of a config group, and returns what is said when it is chosen."""
        monkeypatch.syspath_prepend(tmp_path)

        def write(path: str, text: str) -> str | None:
            group, name = path.split("/")
            file = tmp_path / f"{path}.yaml"
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
            return complaint(f"hydra.searchpath=[file://{tmp_path}]", f"{group}={name}")

        return write

    def test_a_misspelt_argument_is_caught(self, written):
        message = written("explainer/mine", "_target_: twinsight.explainers.GradCAM\nfrom: canonical\n")
        assert message.startswith("unknown key 'explainer.from': did you mean 'explainer.form'?")

    def test_their_own_class_is_read_for_its_arguments(self, written, tmp_path):
        (tmp_path / "my_explainers.py").write_text(
            "class Mine:\n    def __init__(self, model, sharpness: float = 1.0, **rest): ...\n"
            "class Strict:\n    def __init__(self, model, sharpness: float = 1.0): ...\n"
        )
        assert written("explainer/open", "_target_: my_explainers.Mine\nanything: 3\n") is None
        assert "must be float" in written("explainer/sharp", "_target_: my_explainers.Mine\nsharpness: very\n")
        assert "unknown key 'explainer.anything'" in written(
            "explainer/strict", "_target_: my_explainers.Strict\nanything: 3\n"
        )

    def test_a_class_whose_module_fails_to_import_says_why(self, written, tmp_path):
        (tmp_path / "my_broken.py").write_text("import nosuch_package\n")
        message = written("explainer/broken", "_target_: my_broken.Mine\n")
        assert message.startswith("`explainer._target_=my_broken.Mine` cannot be imported: ModuleNotFoundError: ")
        assert "nosuch_package" in message

    def test_an_experiment_names_its_file_with_the_key(self, written):
        header = "# @package _global_\n"
        assert written("experiment/a", f"{header}sed: 1\n").startswith(
            "in experiment/a.yaml: unknown key or group 'sed': did you mean 'seed'?"
        )
        assert written("experiment/b", f"{header}seed: x\n") == "in experiment/b.yaml: `seed` must be int, got 'x'"
        assert "`# @package _global_`" in written("experiment/c", "seed: 1\n")

    def test_yaml_that_cannot_be_read_is_named_with_its_line(self, written):
        message = written("explainer/torn", "_target_: [1\nb: 2\n")
        assert "explainer/torn.yaml, line 2: not valid YAML" in message


class TestWhatConstructorsRaise:
    def built(self, target: Callable[..., Any], **given: object) -> str | None:
        """What is said about an error while ``target`` is built."""
        name = f"{__name__}.{target.__qualname__}"
        config = OmegaConf.create({"model": {"_target_": name, **given}})
        with pytest.raises(Exception) as caught:  # noqa: PT011 (what is said of it is under test)
            hydra.utils.instantiate(config.model)
        return explain_error(caught.value)

    def test_a_user_error_comes_through(self):
        assert self.built(refuse) == "`model.name` is unknown"

    def test_a_fault_of_the_program_is_not_explained(self):
        assert self.built(stumble) is None

    def test_a_missing_argument_says_which(self):
        message = self.built(needs_a_root)
        assert message.startswith("`model`: needs_a_root() missing 1 required positional argument: 'root'")
        assert message.endswith("give it, +model.NAME=...")

    def test_an_argument_that_is_not_taken_says_to_choose_another(self):
        message = self.built(needs_a_root, root="x", split="test")
        assert message == "`model`: needs_a_root() got an unexpected keyword argument 'split': choose another model"

    def test_a_type_error_further_inside_is_not_explained(self):
        assert self.built(calls_wrongly) is None


def refuse() -> None:
    raise UserError("`model.name` is unknown")


def stumble() -> None:
    raise ValueError("a fault of ours")


def needs_a_root(root: str) -> None: ...


def calls_wrongly() -> None:
    needs_a_root()


def test_a_user_error_inside_a_loaders_worker_is_said_without_its_traceback():
    try:
        raise UserError("`data.root=x`: no such folder")
    except UserError:
        carried = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(UserError, match="Original Traceback") as caught:
        carried.reraise()
    assert explain_error(caught.value) == "`data.root=x`: no such folder"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "/x/y: permission denied: change its rights, or "),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), "/x/y: read-only file system: "),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x/y"), "/x/y: not a directory: "),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: no space left on the disk: free some, or "),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left on the disk: free some, or "),
    ],
)
def test_a_disk_that_refuses_is_named_with_the_way_out(error, message):
    assert explain_error(error).startswith(message)
    assert "paths.output_root=DIR" in explain_error(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("No supported gpu backend found!", "`trainer.accelerator=gpu`: this machine has none that PyTorch can use. "),
        ("`CUDAAccelerator` can not run on your system", "`trainer.accelerator=cuda`: this machine has none that "),
        ("You requested gpu: [0, 1]\n But your machine only has: [0]", "`trainer`: You requested gpu: [0, 1] But your"),
        ("`Trainer(devices=0)` value is not a valid input", "`trainer`: `Trainer(devices=0)` value is not a valid"),
    ],
)
def test_what_lightning_cannot_do_here_is_a_user_error(text, message):
    found = explain_error(MisconfigurationException(text))
    assert found.startswith(message)
    assert ("trainer=cpu" in found) == ("Trainer(devices=0)" not in text)


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError(), FileNotFoundError(errno.ENOENT, "No such file", "x"), KeyError("x"), ConnectionError()],
)
def test_faults_of_the_program_are_not_explained(error):
    assert explain_error(error) is None


class Colour(Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "annotation", "words"),
    [
        (1, int, "int"),
        (1, float | None, "float or null"),
        (None, float | None, "float or null"),
        (True, bool | Literal["warn"], "true, false or 'warn'"),
        ("warn", bool | Literal["warn"], "true, false or 'warn'"),
        ("x", str | Path, "str or a path"),
        ([1, 2], Sequence[int], "[int, ...]"),
        ([1, 2.5], tuple[float, float], "[float, float]"),
        ([], tuple[int, ...], "[int, ...]"),
        ({"a": 1}, dict[str, int], "{str: int}"),
        ("RED", Colour, "'RED'"),
        ({"_target_": "x"}, int, "int"),
        ({"_target_": "x"}, Callable[[Tensor], Tensor], "a node with a _target_"),
        ("cuda:0", nn.Module, "Module"),  # a string may name an object
        (3, Any, "Any"),
    ],
)
def test_a_value_of_the_annotated_type_fits(value, annotation, words):
    assert fits(value, annotation)
    assert fits(OmegaConf.create({"value": value}).value, annotation)
    assert expected(annotation) == words


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (True, int),
        (True, float),
        (1, bool),
        ("1", int),
        (1.5, int),
        (None, int),
        (1, str),
        ("ab", Sequence[str]),
        ([1, "a"], list[int]),
        ([1], tuple[int, int]),
        ({"a": "x"}, dict[str, int]),
        ("x", int | None),
        ("nrom", Literal["warn"]),
        (1, Literal[True]),
        ("BLUE", Colour),
        (3, nn.Module),
        ("f", Callable[[Tensor], Tensor]),
    ],
)
def test_a_value_of_another_type_does_not_fit(value, annotation):
    assert not fits(value, annotation)
    assert not fits(OmegaConf.create({"value": value}).value, annotation)


def test_arguments_that_only_code_can_give_are_not_offered():
    def explain(model: nn.Module, view1: Tensor, window: int, layer: str | None = None, mask: Tensor | None = None): ...

    assert arguments(explain).writable == ["window", "layer", "mask"]


def test_further_keywords_of_a_constructor_are_those_of_its_base():
    class Base:
        def __init__(self, width: int = 1): ...

    class Derived(Base):
        def __init__(self, height: int = 1, **rest): ...

    class Plain: ...

    class Open:
        def __init__(self, **rest): ...

    assert set(arguments(Derived).types) == {"width", "height"}
    assert not arguments(Derived).open
    assert arguments(Open).open
    assert not arguments(Plain).types
