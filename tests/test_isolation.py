"""The tests pass in a clone in which the commands of README.md were run, and leave nothing there."""

from pathlib import Path

import pytest
from helpers import run_python

# It gives no --output_dir.
ASKED = Path(__file__).parent / "pretraining/test_refusals.py::test_bfloat16_that_is_slower_is_told"
LEFT = ("simmim-pretrained", "simmim-adapted", "simmim-comparison", "simmim-evaluated", "trainer_output")


@pytest.mark.slow
@pytest.mark.parametrize("left", [LEFT, ()], ids=["after the commands", "before the commands"])
def test_a_test_runs_in_a_folder_of_its_own(tmp_path, left):
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in left:
        (clone / name).mkdir()
        (clone / name / "results.json").write_text("{}")
    before = sorted(clone.rglob("*"))
    run_python("-m", "pytest", "-p", "no:cacheprovider", "--basetemp", tmp_path / "tests", ASKED, cwd=clone)
    assert sorted(clone.rglob("*")) == before
