"""What a user sees of the command line: messages, exit codes, help."""

import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import nn

from twinsight import __main__ as command_line
from twinsight import __version__
from twinsight.errors import UserError
from twinsight.exits import Terminated, exit_code, terminable, told_to_stop
from twinsight.plotting import write_figure

RUN = Path(__file__).parents[1] / "run.py"
QUIET = ["hydra/job_logging=none", "hydra/hydra_logging=none"]


# Tasks for the command line to call: task._target_=test_command_line.NAME.


def finish(config: DictConfig) -> int:
    return 0


def fail_some(config: DictConfig) -> int:
    return 1 if config.seed == 1 else 0


def refuse_some(config: DictConfig) -> int:
    if config.seed:
        raise UserError(f"`pictures.limit` must be positive, got {config.pictures.limit}")
    return 0


def refuse(config: DictConfig) -> int:
    raise UserError("`views.flip` is a probability, got 2")


def stumble(config: DictConfig) -> int:
    raise ZeroDivisionError("a fault of ours")


def leave(config: DictConfig) -> int:
    sys.exit(7)


def interrupt_as_lightning_does(config: DictConfig) -> int:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def interrupt_inside_compiled_code(config: DictConfig) -> int:
    with suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    raise ImportError("a module could not be initialised")


def write_into_the_root_of_a_file(config: DictConfig) -> int:
    Path(config.paths.output_root, "file", "below").mkdir(parents=True)
    return 0


def draw_for_print(config: DictConfig) -> int:
    figure = Figure()
    figure.text(0, 0, "fonts are embedded")
    write_figure(figure, Path(config.paths.output_root, "figure.pdf"))
    return 0


def ask_for_a_gpu(config: DictConfig) -> int:
    pl.Trainer(accelerator="cuda", logger=False)
    return 0


class SignalsItself(pl.LightningModule):
    """Sends its own process a signal from inside the training loop."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.layer = nn.Linear(1, 1)

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(torch.zeros(100, 1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx == 3:
            os.kill(os.getpid(), self.number)
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def train_until_signalled(config: DictConfig) -> int:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
    )
    trainer.fit(SignalsItself(config.seed))
    return 0


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Runs a command line in this process; returns exit code, standard output and standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        code = command_line.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    for variable, value in (("HYDRA_FULL_ERROR", "1"), ("WANDB_ERROR_REPORTING", "false")):
        monkeypatch.setenv(variable, value)  # main sets them; so they are put back
    monkeypatch.chdir(tmp_path)
    handlers, level = logging.root.handlers[:], logging.root.level
    yield run
    logging.root.handlers[:] = handlers  # Hydra's write to the standard output of this test
    logging.root.setLevel(level)


@pytest.fixture
def call_task(call, tmp_path):
    """Runs one of the tasks above."""
    root = tmp_path / "out"

    def run(task: str, *words: str) -> tuple[int, str, str]:
        return call(f"task._target_=test_command_line.{task}", f"paths.output_root={root}", *QUIET, *words)

    return run


def spawn(*words: str, **options) -> subprocess.Popen:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, str(RUN), *words], stdout=pipe, stderr=pipe, text=True, **options)


@pytest.mark.parametrize(("task", "code"), [("finish", 0), ("fail_some", 0), ("leave", 7)])
def test_the_exit_code_is_what_the_task_says(call_task, task, code):
    assert call_task(task)[0] == code


def test_some_failed_cells_of_a_sweep_make_the_exit_code_one(call_task):
    code, _, error = call_task("fail_some", "seed=0,1,2", "-m")
    assert (code, error) == (1, "")


def test_a_user_error_is_one_line_on_standard_error_and_exit_code_two(call_task):
    code, out, error = call_task("refuse")
    assert (code, error) == (2, "error: `views.flip` is a probability, got 2\n")
    assert "Traceback" not in out


def test_a_sweep_runs_on_after_a_user_error_and_says_each_message_once(call_task):
    code, _, error = call_task("refuse_some", "seed=0,1,2", "pictures.limit=-1,-2", "-m")
    assert code == 2
    assert error.splitlines() == [f"error: `pictures.limit` must be positive, got {limit}" for limit in (-1, -2)]


@pytest.mark.parametrize("switch", ["debug=default", "debug.enabled=true"])
def test_debug_shows_the_traceback_as_well_as_the_message(call_task, switch):
    code, _, error = call_task("refuse", switch)
    assert code == 2
    assert "Traceback" in error
    assert error.endswith("error: `views.flip` is a probability, got 2\n")


def test_debug_shows_the_traceback_of_a_composition_that_fails(call):
    code, _, error = call("debug=default", "explainer=grad_cam")
    assert code == 2
    assert "Traceback" in error
    assert "error: unknown explainer 'grad_cam'" in error


def test_switching_debug_off_by_name_shows_no_traceback(call):
    assert "Traceback" not in call("debug=none", "explainer=grad_cam")[2]


def test_a_fault_of_the_program_shows_its_traceback_and_exits_with_one(call_task):
    code, _, error = call_task("stumble")
    assert code == 1
    assert error.startswith("Traceback")
    assert "ZeroDivisionError: a fault of ours" in error
    assert "\nerror: " not in error


def test_an_interrupt_that_lightning_turned_into_exit_one_counts_as_interrupted(call_task):
    assert call_task("interrupt_as_lightning_does")[0] == 130
    assert call_task("interrupt_inside_compiled_code")[0] == 130


def test_a_device_that_is_not_there_is_a_user_error_with_the_remedy(call_task, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    code, _, error = call_task("ask_for_a_gpu")
    assert code == 2
    assert "trainer.accelerator=cuda" in error
    assert "trainer.accelerator=cpu, or trainer=cpu" in error
    assert "Traceback" not in error


def test_an_output_root_that_cannot_be_written_is_a_user_error_with_its_path(call_task, tmp_path):
    (tmp_path / "taken").touch()
    code, _, error = call_task("finish", f"paths.output_root={tmp_path / 'taken'}")
    assert code == 2
    assert str(tmp_path / "taken") in error
    assert "paths.output_root=DIR" in error
    assert "Traceback" not in error


def test_an_output_root_that_leads_nowhere_is_a_user_error_with_its_path(call_task, tmp_path):
    (tmp_path / "scratch").symlink_to(tmp_path / "not mounted")
    code, _, error = call_task("finish", f"paths.output_root={tmp_path / 'scratch'}")
    assert code == 2
    assert error.startswith(f"error: {tmp_path / 'scratch'}: no folder can be made there")
    assert "paths.output_root=DIR" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explainer=grad_cam"], "unknown explainer 'grad_cam': did you mean 'gradcam'? Valid: "),
        (["explainers=[gradcam,grad_cam]"], "unknown explainer or set 'grad_cam': did you mean 'gradcam'? Valid: "),
        (["explaner=gradcam"], "unknown key or group 'explaner': did you mean 'explainer'? Valid: "),
        (["trainer.devces=2"], "unknown key 'trainer.devces': did you mean 'trainer.devices'? Valid: "),
        (["seed=abc"], "`seed` must be int, got 'abc'"),
        (["gradcam"], "'gradcam' is not an override: write key=value or group=name, see `--help`"),
        (["data.limit=[1"], "cannot read the override 'data.limit=[1'"),
        (["--config-dir", "nosuch"], "nosuch' not found"),
        (["--run", "--multirun"], "Only one of --run, --multirun"),
        (["task._target_=nosuch.task"], "`task._target_=nosuch.task` cannot be imported: there is no module 'nosuch'"),
    ],
)
def test_bad_input_is_said_once_without_a_traceback(call, tmp_path, words, message):
    code, out, error = call(*words, *(QUIET if "=" in words[0] else []))
    assert code == 2
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize("asked", [None, ":16:8"])
def test_products_on_a_gpu_repeat_unless_the_environment_asks_for_something_else(monkeypatch, asked):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", asked or "")  # so that it is put back
    if asked is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    command_line.prepare_environment()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (asked or ":4096:8")


def test_the_version_is_printed_without_composing_anything(call):
    assert call("--version") == (0, f"twinsight {__version__}\n", "")


def test_help_says_what_it_does_with_examples_choices_and_exit_codes(call):
    code, text, _ = call("--help")
    assert code == 0
    for word in (
        "explainer=conditional_occlusion data=image_folder data.root=PATH",
        "protocol=paper",
        "experiment=pretrain_cifar10_simclr data.root=DIR",
        "logger=none trainer=cpu",
        "\nexplainer: ",
        "paths.output_root (outputs)",
        "143 terminated",
    ):
        assert word in text
    assert "_target_" not in text  # not a dump of the configuration
    assert "Powered by Hydra" not in text
    assert max(map(len, (line for line in text.splitlines() if ": " not in line))) <= 120


def test_the_handler_of_sigterm_is_put_back(call):
    before = signal.getsignal(signal.SIGTERM)
    call("--version")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_sigterm_breaks_nothing_that_the_first_has_begun_to_close(monkeypatch):
    with terminable():
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr("twinsight.exits.GRACE_SECONDS", -1.0)  # much later
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)


def test_what_a_signal_turned_into_does_not_pass_whoever_listens_to_it():
    """Slurm says that time is up by a signal of its own, and waits for an orderly end before it requeues a job."""

    def work():
        with suppress(Terminated):
            signal.raise_signal(signal.SIGUSR1)
        raise ImportError("a module could not be initialised")

    with terminable(signal.SIGUSR1) as heard:
        assert exit_code(work) == 143
        assert told_to_stop()
    assert heard.received
    assert not told_to_stop()
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_inside_lightnings_loop_sets_the_exit_code(call_task, number, code):
    before = signal.getsignal(number)
    found, _, error = call_task("train_until_signalled", f"seed={int(number)}")
    assert found == code
    assert "Traceback" not in error
    assert signal.getsignal(number) is before


def test_bad_input_exits_with_two_from_the_shell(tmp_path):
    process = spawn("explainer=grad_cam", cwd=tmp_path)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 2
    assert error.startswith("error: unknown explainer 'grad_cam'")
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_fonts_embedded_in_a_figure_are_not_talked_of(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    words = ["task._target_=test_command_line.draw_for_print", f"paths.output_root={tmp_path}"]
    process = spawn(*words, cwd=tmp_path, env=environment)
    assert process.communicate(timeout=300)[1] == ""
    assert process.returncode == 0
    assert (tmp_path / "figure.pdf").exists()


def test_help_piped_to_a_reader_that_stops_ends_quietly():
    process = spawn("--help")
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=300) == 0
    assert error == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-m", "trainer=ddp", "seed=1,2"), "several devices inside a multirun"),
        (("explainers=[gradcam,interaction_cam]", "explainer.layer=trunk"), "write explainers.options.gradcam.layer"),
        (("explainers=[gradcam,interaction_cam]", "explainer=gradcam"), "has no effect beside a set"),
        (("seed=-1",), "`seed` must be between 0 and 4294967295, got -1"),
        (("seed=5000000000",), "`seed` must be between 0 and 4294967295, got 5000000000"),
    ],
)
def test_command_lines_that_cannot_mean_what_they_say_are_refused(words, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["twinsight", *words, "logger=none", f"paths.output_root={tmp_path}"])
    assert command_line.main() == 2
    assert message in capsys.readouterr().err
