"""The committed W&B sweep file, composed as W&B's agent does it."""

import os
import random
import subprocess
from pathlib import Path

import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from toy_cells import TINY, cells
from toy_wandb import configuration, described, runs
from twinsight.metrics import ALL_METRICS

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


def agents_command(sweep, chosen):
    """The words that an agent would start for the values it was given."""
    macros = {key: list(words) for key, words in create_sweep_command_args({"args": chosen}).items() if key != "args"}
    macros |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep["program"]]}
    words = []
    for part in create_sweep_command(list(sweep["command"])):
        name = str(part).removeprefix("${").removesuffix("}")
        words += macros[name] if str(part).startswith("${") else [str(part)]
    return words


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_its_command_runs_a_cell_with_the_chosen_options_as_the_agents_run(path, photos, tmp_path, monkeypatch):
    sweep = yaml.safe_load(path.read_text())
    metric = ALL_METRICS[sweep["metric"]["name"]]
    assert sweep["metric"]["goal"] == ("maximize" if metric.higher_is_better else "minimize")
    draw = random.Random(0)
    chosen = {key: {"value": draw.choice([one for one in options["values"] if one <= 16])}
              for key, options in sweep["parameters"].items()}  # fmt: skip
    words = agents_command(sweep, chosen)
    assert words[:3] == ["/usr/bin/env", "python", "run.py"]
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(yaml.safe_dump({"wandb_version": 1, **chosen}))
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    environment = {
        **os.environ,
        "WANDB_SWEEP_ID": "sweep0",
        "WANDB_RUN_ID": "chosen0",
        "WANDB_SWEEP_PARAM_PATH": str(parameters),
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
        "PATH": os.pathsep.join([str(Path(os.sys.executable).parent), os.environ["PATH"]]),
    }
    small = [word for word in TINY if not word.startswith("logger=")]
    command = [*words, *small, "data.limit=1", f"data.root={photos}", f"paths.output_root={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ((name, folder),) = runs(tmp_path / "out").items()
    assert (name, described(folder).sweep_id) == ("chosen0", "sweep0")
    found = configuration(folder)
    (cell,) = cells(tmp_path / "out").values()
    assert found["cell"].startswith(cell.name.rpartition("-")[2])
    for key, one in chosen.items():
        assert found[key] == one["value"]
        assert found["explainer"]["options"][key.removeprefix("explainer.")] == [one["value"]] * 2
    wandb.teardown()
