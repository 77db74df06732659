"""Two versions of the package, each really installed somewhere, work on one study."""

import re
import shutil

import pytest

from toy_cells import ROOT
from toy_studies import ended, typed, words
from twinsight import __version__
from twinsight.study import Study
from twinsight.study.cell import RESULT_VERSION

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """A copy of the package of a later version, whose results differ."""
    copy = tmp_path_factory.mktemp("newer")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", copy)
    for file, old, new in (
        ("study/cell.py", f"RESULT_VERSION = {RESULT_VERSION}", f"RESULT_VERSION = {RESULT_VERSION + 1}"),
        ("__init__.py", 'version("twinsight")', '"99.0"'),
    ):
        path = copy / "src" / "twinsight" / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    return copy


def contents(study):
    return {cell.name: (cell.folder / "records.parquet").read_bytes() for cell in study.cells}


def test_results_of_two_versions_are_never_under_one_name(tmp_path, photos, newer):
    asked = words(tmp_path, photos, "explainer=gradcam", "seed=0,1", "data.limit=2")
    one = [*asked[:-2], "seed=0", asked[-1]]
    ended(typed(*one))
    (old,) = Study.open(tmp_path, "typed").cells
    before = contents(Study.open(tmp_path, "typed"))

    # Going on with what was planned: what is done stays, what is not is refused by the cell's name.
    shutil.rmtree(old.folder)
    output = ended(typed(*one, at=newer), code=1)
    said = re.sub(r"\s+", " ", output)
    assert f"{old.name} was planned for something else: the version of twinsight's results changed since" in said
    assert not (old.folder / "records.parquet").exists()
    ended(typed(*one, "retry_failed=true"))
    assert contents(Study.open(tmp_path, "typed")) == before
    ended(typed(*one, at=newer))  # nothing left to do

    # Planning more: cells of the later version are others.
    ended(typed(*asked, at=newer))
    study = Study.open(tmp_path, "typed")
    assert {old.name: before[old.name]}.items() <= contents(study).items()
    versions = {cell.name: cell.status()["versions"]["twinsight"] for cell in study.cells}
    assert versions.pop(old.name) == __version__
    assert set(versions.values()) == {"99.0"}
    assert {cell.identity["version"] for cell in study.cells} == {RESULT_VERSION, RESULT_VERSION + 1}
