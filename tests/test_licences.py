"""Everything shipped that is neither code nor text stands in docs/licences.md, with a licence."""

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE_AND_TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".css", ".js", ".html", ".typed"}
ROWS = re.findall(r"^\| `([^`]+)` \| .+ \| .+ \|$", (ROOT / "docs" / "licences.md").read_text(encoding="utf-8"), re.M)


def shipped() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout")
    files = [name for name in listed.stdout.splitlines() if "/" in name and not name.startswith(".")]
    return [name for name in files if Path(name).suffix not in CODE_AND_TEXT]


def test_every_shipped_file_that_is_no_code_is_listed_with_its_licence():
    files = shipped()
    assert len(files) > 50
    assert [name for name in files if not any(fnmatch(name, row.replace("**/", "")) for row in ROWS)] == []


def test_every_row_is_about_files_that_are_there():
    files = [
        *shipped(),
        *(str(path.relative_to(ROOT)) for path in ROOT.glob("src/twinsight/report/html/assets/vendor/*")),
    ]
    assert [row for row in ROWS if not any(fnmatch(name, row.replace("**/", "")) for name in files)] == []


def test_every_photo_is_attributed():
    folder = ROOT / "src" / "twinsight" / "data" / "photos"
    attributed = re.findall(r"^\| `([^`]+)` \|", (folder / "ATTRIBUTION.md").read_text(encoding="utf-8"), re.M)
    assert attributed == sorted(path.name for path in folder.glob("*.jpg"))
