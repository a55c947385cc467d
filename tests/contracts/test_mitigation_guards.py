"""What the runner refuses from a mitigation that breaks the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.test_run import RECIPE, unmem

BROKEN = {
    "forgets": "return data.take(np.arange(3)), []",
    "changes": "return dataclasses.replace(data, store=255 - data.store), []",
}


@pytest.mark.parametrize(
    ("name", "message"),
    [("forgets", "its ledger does not account for every image"), ("changes", "neither change nor add any")],
)
def test_a_mitigation_must_account_for_what_it_does(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(
        "import dataclasses\nimport numpy as np\nfrom unmem.component import component\n\n"
        "@component\nclass Broken:\n    'A broken mitigation.'\n\n"
        f"    def apply(self, data, rng):\n        {BROKEN[name]}\n"
    )
    (tmp_path / "lab").mkdir()
    (tmp_path / "broken.py").rename(tmp_path / "lab" / "broken.py")
    (tmp_path / "r.yaml").write_text(RECIPE.replace("plain: []", "plain: [{kind: lab.broken}]"))
    done = unmem("run", "r.yaml", "--out", "run", "--arm", "plain", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_component_that_mitigates_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "idle.py").write_text(
        "from unmem.component import component\n\n@component\nclass Idle:\n    'Does nothing.'\n"
    )
    (tmp_path / "r.yaml").write_text(RECIPE.replace("plain: []", "plain: [{kind: lab.idle}]"))
    done = unmem("validate", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "arms.plain[0]: has neither apply() nor update_rule()" in done.stderr
