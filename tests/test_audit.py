"""What `make audit` makes of pip-audit's answers, which calls nothing wrong what it did not look up."""

import runpy
from pathlib import Path

import pytest

findings = runpy.run_path(str(Path(__file__).parents[1] / ".ci" / "audit"), run_name="audit")["findings"]

SOUND = {"name": "pillow", "version": "12.0", "vulns": []}
OWN = {"name": "twinsight", "skip_reason": "not in the register"}
KNOWN = {
    "name": "torch",
    "version": "2.5",
    "vulns": [{"id": "CVE-1", "fix_versions": ["2.6"]}, {"id": "CVE-2", "fix_versions": []}],
}


@pytest.mark.parametrize(
    ("dependencies", "wrong"),
    [
        ([SOUND, OWN], []),
        ([SOUND, OWN, KNOWN], ["torch 2.5: CVE-1, mended in 2.6", "torch 2.5: CVE-2, mended in no version yet"]),
        ([SOUND, {"name": "wandb", "skip_reason": "no connection"}], ["wandb was not looked up: no connection"]),
        ([OWN], ["nothing was looked at"]),
        ([], ["nothing was looked at"]),
    ],
)
def test_only_what_was_looked_up_and_has_no_known_vulnerability_passes(dependencies, wrong):
    assert findings({"dependencies": dependencies}) == wrong
