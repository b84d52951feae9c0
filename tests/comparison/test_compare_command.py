"""The command `simmim compare`: arms from objectives and files, and what is refused before anything is trained."""

import json
import re

import helpers
import pytest
import yaml
from comparisons import BUDGET, compare, options

from simmim_hf.cli import main
from simmim_hf.comparison.arms import check_arms
from simmim_hf.options import typed, words_of
from simmim_hf.pretraining.options import PRETRAINING

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.slow
def test_the_command_makes_arms_of_objectives_and_of_a_file(files, tmp_path, capsys):
    arms = {
        "deleted words": {"positive_view": "deleted", "deletion_probability": 0.3},
        "by itself": {"objective": "simmim", "projection_dim": 8},
        "crops": {"objective": "simcse", "positive_view": "cropped", "pooling": "cls"},
    }
    secret = {name: {**arm, "hub_token": helpers.SECRET} for name, arm in arms.items()}
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(secret, sort_keys=False))
    words = words_of({**options(files), "budget_text": BUDGET, "seeds": 1, "output_dir": str(tmp_path / "out")})
    words += ["--arms", str(tmp_path / "arms.yaml"), f"--hub_token={helpers.SECRET}"]
    assert main(["compare", "--objectives", "fused", *words]) == 0
    assert helpers.with_the_secret(tmp_path / "out") == []
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["arms"]) == ["fused", *arms] and {run["status"] for run in results["runs"]} == {"finished"}
    assert results["arms"]["deleted words"] == {"objective": "snippets", **arms["deleted words"]}
    assert results["command"].startswith("simmim compare --objectives fused")
    by_arm = {run["arm"]: run for run in results["runs"]}
    assert "perplexity" in by_arm["fused"]["figures"]["held-out text"]
    assert all(run["figures"]["held-out text"]["mlm_loss"] > 0 for run in results["runs"])
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Without ± there is one seed" in report and "crops †" in report
    assert "The whole report" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--objectives", "simim"], "there is no `simim`. Did you mean `simmim`? There are: clm, mlm, simcse, simmim"),
        (["--seeds", "0"], "--seeds is 0: give 1 or more"),
        (["--budget_tokens", "100"], "steps of the arm `mlm`"),
        (["--budget_tokens", "-5"], "--budget_tokens is -5: it must be above 0"),
        (["--budget_tokens", "1e300"], "passes over the text, and 1,000 are the most"),
        (["--budget_tokens", "900", "--budget_flops", "1e9"], "--budget_tokens and --budget_flops: give one budget"),
        (["--temprature", "0.1"], "there is no option --temprature. Did you mean --temperature?"),
        (["--max_steps", "10"], "--max_steps is no option of a comparison; the budget decides"),
        (["--objective", "mlm"], "the arms have it: --objectives"),
        (["--seeds", "two"], "invalid int value"),
        (["--arms", "no-such-file.yaml"], "there is no settings file `no-such-file.yaml`"),
        (["--tasks", "no-such-task"], "no-such-task"),
        (["--train_file", "no-such-file.txt"], "no-such-file.txt"),
    ],
)
def test_bad_options_are_refused_before_training(files, tmp_path, capsys, given, said):
    words = words_of({**options(files), "output_dir": str(tmp_path / "out"), "objectives": ["mlm"]})
    assert said in helpers.refused(capsys, "compare", *words, *given)
    assert not (tmp_path / "out" / "runs" / "mlm" / "seed-42" / "result.json").exists()


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"temprature": 0.1}, "the arm `a`: there is no option --temprature. Did you mean --temperature?"),
        ({"objective": "simim"}, "the arm `a`: there is no objective `simim`. Did you mean `simmim`? There are: clm"),
        ({"temperature": "warm"}, "the arm `a`: argument --temperature: invalid float value"),
        ({"temperature": 0}, "the arm `a`: `temperature` is 0.0: it must be above 0"),
        ({"train_file": "x.txt"}, "the arm `a`: all arms have the same train_file"),
        ({"max_steps": 5}, "the arm `a`: --max_steps is no option of a comparison"),
        (None, "the arm `a` must hold options"),
    ],
)
def test_bad_arms_are_refused_by_name(arm, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        check_arms({"a": arm})


def test_bad_names_of_arms_are_refused(tmp_path, capsys):
    for name in ("a/b", "..", "a, b", "random weights", ""):
        with pytest.raises(ValueError, match="cannot be the name of an arm"):
            check_arms({name: {"objective": "mlm"}})
    (tmp_path / "arms.yaml").write_text("mlm: {objective: mlm}\n")
    assert "is also in --objectives" in helpers.refused(
        capsys, "compare", "--objectives", "mlm", "--arms", str(tmp_path / "arms.yaml")
    )


def test_an_arm_that_cannot_be_made_is_refused_before_training(files, tmp_path):
    for arm, said in (
        ({"mlm_probability": 1.0}, "the arm `b`: mlm_probability=1.0"),
        ({"chunk_size": 0}, "the arm `b`: chunk_size=0"),
        ({"objective": "mlm", "weight_schedule": "contrastive_weight=0:0,1:1"}, "the arm `b`: weight_schedule"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            compare(files, tmp_path / "out", {"a": {"objective": "mlm"}, "b": arm})
        assert not list((tmp_path / "out").rglob("result.json"))


def test_a_folder_with_something_else_is_not_written_into(files, tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("keep")
    said = helpers.refused(capsys, "compare", *words_of({**options(files), "output_dir": str(tmp_path)}))
    assert "is not empty and holds no comparison" in said
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_options_are_read_as_pretrain_reads_them():
    settings = {"temperature": "0.1", "symmetric": True, "snippet_ratio": [0.2, 0.4], "pooling": None}
    given = typed(PRETRAINING, settings)
    assert given == {"temperature": 0.1, "symmetric": True, "snippet_ratio": [0.2, 0.4]}
    assert typed(PRETRAINING, given) == given
