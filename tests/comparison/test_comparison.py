"""`simmim compare`: the same weights, text and budget for every arm; resuming; statistics and report."""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode

from simmim_hf import SimMIMTrainer
from simmim_hf.cli import main
from simmim_hf.comparison.arms import check_arms
from simmim_hf.comparison.budget import training_flops
from simmim_hf.comparison.comparison import Comparison
from simmim_hf.comparison.held_out import HeldOut
from simmim_hf.data.collator import DataCollatorForSimMIM
from simmim_hf.options import typed, words_of
from simmim_hf.training.arguments import PRETRAINING

TINY = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
BATCH, BUDGET, LONGEST = 8, 900, 14
ARMS = {"mlm": {"objective": "mlm"}, "simmim": {"objective": "simmim", "temperature": 0.1}}
EXPLOSIVE = {"objective": "mlm", "learning_rate": 1e30, "max_grad_norm": 0, "warmup_steps": 0}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with a corpus and scored pairs."""
    folder = tmp_path_factory.mktemp("files")
    lines = helpers.corpus_lines(200)
    (folder / "corpus.txt").write_text("\n".join(lines))
    pairs = [{"sentence1": lines[i], "sentence2": lines[i + 1], "score": i % 5} for i in range(30)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder


def options(files: Path, **more) -> dict:
    given = {"train_file": [str(files / "corpus.txt")], "text_config": json.dumps(TINY), "vocab_size": 300}
    given |= {"per_device_train_batch_size": BATCH, "logging_steps": 1, "save_steps": 3, "use_cpu": True}
    return {**given, "disable_tqdm": True, **more}


@contextlib.contextmanager
def recorded():
    """For each run the tokens of each batch, and the weights before the first step, by its folder."""
    runs, step = {}, SimMIMTrainer.training_step

    def recording_step(trainer, model, inputs, *args):
        name = "/".join(Path(trainer.args.output_dir).parts[-2:])
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        run = runs.setdefault(name, {"weights": weights, "batches": []})
        run["batches"].append(inputs["input_ids"][inputs["attention_mask"].bool()].tolist())
        return step(trainer, model, inputs, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimMIMTrainer, "training_step", recording_step)
        yield runs


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """A comparison without interruption: its folder, its results, and what its runs read."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    with recorded() as runs:
        results = compare(files, folder)
    return folder, results, runs


def compare(files: Path, folder: Path, arms=ARMS, **more) -> dict:
    return Comparison(arms, options(files), str(folder), **{**settings(files), **more}).run()


def settings(files: Path) -> dict:
    return {"seeds": 2, "budget_text": BUDGET, "tasks": [str(files / "pairs.jsonl")]}


def timeless(results: dict) -> dict:
    """Results without what differs from one time to the next."""
    runs = [{k: v for k, v in run.items() if k not in ("seconds", "peak_memory_bytes")} for run in results["runs"]]
    return json.loads(json.dumps({**results, "runs": runs}))


def timeless_report(folder: Path) -> str:
    return (folder / "report.md").read_text().split("## Cost")[0]


# the same for every arm


@pytest.mark.slow
def test_all_arms_have_the_budget_of_text_to_within_one_batch(whole):
    _, results, runs = whole
    for result in results["runs"]:
        batches = runs[f"{result['arm']}/seed-{result['seed']}"]["batches"]
        text = sum(map(len, batches))
        assert result["tokens"] == text * {"mlm": 1, "simmim": 2}[result["arm"]]  # a text and its masked copy
        assert result["steps"] == result["planned_steps"] == len(batches) >= 10
        assert BUDGET <= text < BUDGET + BATCH * LONGEST


@pytest.mark.slow
def test_all_arms_read_the_budget_of_tokens_to_within_one_batch(files, tmp_path):
    arms = {name: {"objective": name} for name in ("mlm", "simmim", "spans")}
    with recorded() as runs:
        results = compare(
            files, tmp_path / "out", arms, seeds=1, tasks=None, budget_text=None, budget_tokens=3 * BUDGET
        )
    steps = {}
    for result in results["runs"]:
        text = sum(map(len, runs[f"{result['arm']}/seed-42"]["batches"]))
        assert 0 <= result["tokens"] - 3 * BUDGET < 2 * BATCH * LONGEST
        steps[result["arm"]] = result["steps"]
        if result["arm"] == "mlm":
            assert result["tokens"] == text
    assert steps["simmim"] < 0.6 * steps["mlm"]
    operations = {result["arm"]: result["flops"] / result["tokens"] for result in results["runs"]}
    # These texts are so short that the special tokens of a second view count.
    assert operations["spans"] == pytest.approx(operations["mlm"], rel=0.1)


@pytest.mark.slow
def test_arms_share_weights_and_batches_and_seeds_do_not(whole):
    _, _, runs = whole
    for seed in (42, 43):
        one, other = (runs[f"{arm}/seed-{seed}"] for arm in ARMS)
        assert one["batches"] == other["batches"]
        assert one["weights"].keys() == other["weights"].keys()
        assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
    first, second = runs["mlm/seed-42"], runs["mlm/seed-43"]
    assert first["batches"] != second["batches"]
    name = "simmim.encoder.embeddings.word_embeddings.weight"
    assert not torch.equal(first["weights"][name], second["weights"][name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"train_sampling_strategy": "random", "dataloader_drop_last": True},
    ],
)
def test_the_plan_is_what_training_reads(files, tmp_path, more):
    with recorded() as runs:
        comparison = Comparison({"mlm": ARMS["mlm"]}, options(files, **more), tmp_path, seeds=1, budget_tokens=2500)
        result = comparison.run()["runs"][0]
    batches = runs["mlm/seed-42"]["batches"]
    size = more.get("gradient_accumulation_steps", 1)
    assert result["tokens"] == sum(map(len, batches)) and result["curve"][-1]["tokens"] == result["tokens"]
    assert result["tokens"] > sum(comparison.text.train["length"]), "more than one epoch is tested"
    assert 0 <= result["steps"] * size - len(batches) <= size


@pytest.mark.parametrize(
    ("term", "view"), [("mlm", "masked"), ("contrastive", "masked"), ("contrastive", "deleted"), ("clm", "masked")]
)
def test_operations_are_those_that_torch_counts(term, view):
    backbone = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    batch, ragged = helpers.ragged_batch([40] * 4), helpers.ragged_batch([40, 20, 20, 20])
    for columns in (batch, ragged) if view == "deleted" else ():
        for name in ("input_ids", "attention_mask"):
            columns |= {f"positive_{name}": columns[name], f"negative_{name}": batch[name][:2]}
    weights = {f"{name}_weight": float(name == term) for name in ("mlm", "contrastive", "clm")}
    model = helpers.tiny_model(backbone=backbone, positive_view=view, **weights)
    model.simmim.encoder.config._attn_implementation = "eager"  # one that torch can look into
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    # Norms and biases are parameters, but no products.
    assert training_flops(model, batch) == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert 0.5 < training_flops(model, ragged) / training_flops(model, batch) < 0.75


@pytest.mark.slow
def test_a_budget_of_operations_gives_half_the_steps_to_twice_the_views(files, tmp_path):
    arms = {"one view": {"objective": "mlm"}, "two views": {"objective": "simmim"}}
    results = compare(files, tmp_path / "out", arms, seeds=1, tasks=None, budget_text=None, budget_flops=7e7)
    one, two = results["runs"]
    assert 1.6 < one["steps"] / two["steps"] < 2.1
    for run in results["runs"]:
        assert run["flops"] == pytest.approx(7e7, rel=0.12)


@pytest.mark.slow
def test_weights_that_change_are_counted_as_they_are(files, tmp_path):
    arms = {
        "joint": {"objective": "simmim"},
        "later": {"objective": "simmim", "weight_schedule": "contrastive_weight=0:0,0.5:0,0.5:1"},
    }
    runs = compare(files, tmp_path / "out", arms, seeds=1, tasks=None)["runs"]
    assert runs[0]["steps"] == runs[1]["steps"] and runs[0]["tokens"] > runs[1]["tokens"]
    assert 0.65 < runs[1]["flops"] / runs[0]["flops"] < 0.85  # half of the time one reading instead of two


@pytest.mark.slow
def test_a_budget_of_seconds_plans_the_steps_and_stops_in_time(files, tmp_path):
    arms = {"mlm": ARMS["mlm"]}
    comparison = Comparison(arms, options(files, learning_rate=1e-3), tmp_path, seeds=1, budget_seconds=1.0)
    result = comparison.run()["runs"][0]
    assert result["steps"] <= result["planned_steps"] and result["planned_steps"] >= 10
    assert result["seconds"] < 4  # a second and what a busy machine adds to its last step
    assert not (tmp_path / "out" / "calibration").exists()


# going on


@pytest.mark.slow
def test_an_interrupted_comparison_does_what_is_missing_and_gives_the_same_report(files, whole, tmp_path, monkeypatch):
    folder, results, _ = whole
    train_step, steps = SimMIMTrainer.training_step, []

    def failing_step(trainer, *args):
        steps.append(trainer.args.output_dir)
        if trainer.args.output_dir.endswith("simmim/seed-42") and trainer.state.global_step == 7:
            raise KeyboardInterrupt
        return train_step(trainer, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SimMIMTrainer, "training_step", failing_step)
        compare(files, tmp_path / "out")
    assert not (tmp_path / "out" / "report.md").exists()
    with recorded() as runs:
        again = compare(files, tmp_path / "out")
    assert set(runs) == {"simmim/seed-42", "mlm/seed-43", "simmim/seed-43"}
    finished = next(run for run in again["runs"] if (run["arm"], run["seed"]) == ("simmim", 42))
    assert len(runs["simmim/seed-42"]["batches"]) == finished["steps"] - 6, "it goes on from checkpoint 6"
    assert timeless(again) == timeless(results)
    assert timeless_report(tmp_path / "out") == timeless_report(folder)
    assert not list((tmp_path / "out").rglob("checkpoint-*"))
    with recorded() as runs:
        assert timeless(compare(files, tmp_path / "out")) == timeless(results)
    assert not runs


@pytest.mark.slow
def test_a_killed_comparison_gives_the_same_report(files, whole, tmp_path):
    folder, results, _ = whole
    words = words_of({**options(files), "budget_text": BUDGET, "tasks": [str(files / "pairs.jsonl")]})
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(ARMS, sort_keys=False))
    command = [sys.executable, "-m", "simmim_hf.cli", "compare", *words, "--arms", str(tmp_path / "arms.yaml")]
    process = subprocess.Popen(
        [*command, "--output_dir", str(tmp_path / "out")],
        env=helpers.environment(),
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "stderr").open("w"),
    )
    second = tmp_path / "out" / "runs" / "simmim" / "seed-42"
    deadline = time.time() + 120
    while (
        not list(second.glob("checkpoint-*/trainer_state.json")) and process.poll() is None and time.time() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert second.is_dir(), (tmp_path / "stderr").read_text()
    assert timeless(compare(files, tmp_path / "out")) == timeless(results)
    assert timeless_report(tmp_path / "out") == timeless_report(folder)


@pytest.mark.slow
def test_a_run_killed_between_its_last_step_and_its_result_is_only_evaluated(files, whole, tmp_path, monkeypatch):
    _, results, _ = whole
    measured = Comparison._measure

    def interrupted(comparison, model, folder):
        if "runs" in folder.parts:
            raise KeyboardInterrupt
        return measured(comparison, model, folder)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Comparison, "_measure", interrupted)
        compare(files, tmp_path / "out", seeds=1)
    with recorded() as runs:
        again = compare(files, tmp_path / "out", seeds=1)
    assert set(runs) == {"simmim/seed-42"}
    expected = [run for run in timeless(results)["runs"] if run["seed"] == 42]
    assert timeless(again)["runs"] == expected


@pytest.mark.slow
def test_more_arms_and_seeds_are_added_and_other_options_refused(files, whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "out")
    more = {**ARMS, "warmer": {"objective": "simmim", "temperature": 0.5}}
    with recorded() as runs:
        results = compare(files, folder, more)
    assert set(runs) == {"warmer/seed-42", "warmer/seed-43"} and len(results["runs"]) == 6
    for changed, said in (
        ({"budget_text": 2 * BUDGET}, '"amount": 900'),
        ({"tasks": None}, "tasks was"),
        ({"seeds": 1}, r"seeds was \[42, 43\] and is now \[42\]"),
        ({"arms": {"mlm": ARMS["mlm"]}}, "the arm `simmim` was .* and is now null"),
        ({"arms": {**more, "mlm": {"objective": "clm"}}}, 'the arm `mlm` was {"objective": "mlm"}'),
    ):
        with pytest.raises(ValueError, match=f"holds another comparison: .*{said}"):
            compare(files, folder, **{"arms": more, **changed})
    with pytest.raises(ValueError, match='options was {"learning_rate": null} and is now {"learning_rate": 0.1}'):
        Comparison(more, options(files, learning_rate=0.1), str(folder), **settings(files))
    changed_text = shutil.copytree(files, tmp_path / "files")
    (changed_text / "corpus.txt").write_text((files / "corpus.txt").read_text().replace("river", "river bank"))
    comparison = json.loads((folder / "comparison.json").read_text())
    comparison["options"]["train_file"] = [str(changed_text / "corpus.txt")]
    (folder / "comparison.json").write_text(json.dumps(comparison))
    with pytest.raises(ValueError, match="text was"):
        Comparison(more, options(changed_text), str(folder), **settings(files))


@pytest.mark.slow
def test_an_arm_that_diverges_fails_alone_and_is_shown(files, tmp_path):
    arms = {"mlm": ARMS["mlm"], "wild": EXPLOSIVE}
    results = compare(files, tmp_path / "out", arms, seeds=1)
    states = {run["arm"]: run["status"] for run in results["runs"]}
    assert states == {"mlm": "finished", "wild": "failed"}
    report = (tmp_path / "out" / "report.md").read_text()
    assert "## Runs without a result" in report and "| wild | 42 | The loss or its gradient is not" in report
    assert "| wild | 0 of 1 | - |" in report
    with recorded() as runs:
        compare(files, tmp_path / "out", arms, seeds=1)
    assert not runs, "a loss that is not finite is a result: it is not tried again"


@pytest.mark.slow
def test_what_fails_for_another_reason_is_tried_again(files, tmp_path, monkeypatch):
    measured = Comparison._measure

    def full_disk(comparison, model, folder):
        if folder.parent.name == "mlm":
            raise OSError("no space left")
        return measured(comparison, model, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "_measure", full_disk)
        results = compare(files, tmp_path / "out", seeds=1)
    assert [run["status"] for run in results["runs"]] == ["failed", "finished"]
    assert "OSError: no space left" in (tmp_path / "out" / "report.html").read_text()
    assert [run["status"] for run in compare(files, tmp_path / "out", seeds=1)["runs"]] == ["finished", "finished"]


# the command


@pytest.mark.slow
def test_the_command_makes_arms_of_objectives_and_of_a_file(files, tmp_path, capsys):
    arms = {
        "deleted words": {"positive_view": "deleted", "deletion_probability": 0.3},
        "by itself": {"objective": "simmim", "uncertainty_weighting": True, "projection_dim": 8},
        "crops": {"objective": "simcse", "positive_view": "cropped", "hard_negatives": "next", "pooling": "cls"},
    }
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(arms, sort_keys=False))
    words = words_of({**options(files), "budget_text": BUDGET, "seeds": 1, "output_dir": str(tmp_path / "out")})
    assert main(["compare", "--objectives", "fused", "--arms", str(tmp_path / "arms.yaml"), *words]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["arms"]) == ["fused", *arms] and {run["status"] for run in results["runs"]} == {"finished"}
    assert results["arms"]["deleted words"] == {"objective": "snippets", **arms["deleted words"]}
    assert results["command"].startswith("simmim compare --objectives fused")
    by_arm = {run["arm"]: run for run in results["runs"]}
    assert "perplexity" in by_arm["fused"]["figures"]["held-out text"]
    assert all(run["figures"]["held-out text"]["mlm_loss"] > 0 for run in results["runs"])
    assert by_arm["by itself"]["conflict"] and not by_arm["crops"]["conflict"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "With one seed nothing can be told apart" in report and "crops †" in report
    assert "The whole report" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--objectives", "simim"], "there is no `simim`. Did you mean `simmim`? There are: clm, mlm, simcse, simmim"),
        (["--seeds", "0"], "--seeds is 0: give 1 or more"),
        (["--budget_tokens", "100"], "steps of the arm `mlm`"),
        (["--budget_tokens", "-5"], "--budget_tokens is -5: it must be above 0"),
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
    settings = {"temperature": "0.1", "symmetric": True, "mlm_probability": [0.2, 0.4], "pooling": None}
    given = typed(PRETRAINING, settings)
    assert given == {"temperature": 0.1, "symmetric": True, "mlm_probability": [0.2, 0.4]}
    assert typed(PRETRAINING, given) == given


@pytest.mark.slow
def test_two_processes_compare_what_one_does(files, whole, tmp_path):
    _, results, _ = whole
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(ARMS, sort_keys=False))
    words = ["-m", "simmim_hf.cli", "compare", "--arms", tmp_path / "arms.yaml", "--output_dir", tmp_path / "out"]
    words += ["--seeds", "1", "--budget_text", BUDGET, "--tasks", files / "pairs.jsonl"]
    words += words_of(options(files, per_device_train_batch_size=BATCH // 2))
    process = helpers.run_on_two_processes(*words)
    assert process.stdout.count("The whole report") == 1
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["processes"] == 2
    by_arm = {run["arm"]: run for run in results["runs"] if run["seed"] == 42}
    for run in found["runs"]:
        assert run["status"] == "finished", run
        one = by_arm[run["arm"]]
        assert (run["steps"], run["tokens"]) == (one["steps"], one["tokens"])
        assert run["flops"] == pytest.approx(one["flops"], rel=0.02)
        figures = run["figures"]["held-out text"]
        assert figures["mlm_loss"] == pytest.approx(one["figures"]["held-out text"]["mlm_loss"], abs=0.05)


# measuring


def test_every_model_is_asked_the_same_whatever_its_objective():
    tokenizer = helpers.tiny_tokenizer()
    rows = [
        {"input_ids": tokenizer(" ".join(f"w{i * j % 50}" for j in range(1, 5 + i)))["input_ids"]} for i in range(9)
    ]
    dataset = Dataset.from_list([{**row, "length": len(row["input_ids"])} for row in rows])
    collator = DataCollatorForSimMIM(tokenizer, mlm_probability=(0.1, 0.4), positive_view="deleted")
    held_out = HeldOut(dataset, collator, batch_size=4)
    objectives = {
        "simcse": {"mlm_weight": 0, "positive_view": "dropout"},
        "joint": {"positive_view": "deleted", "uncertainty_weighting": True},
        "mlm": {"contrastive_weight": 0},
    }
    found = {}
    for name, chosen in objectives.items():
        model = helpers.tiny_model(**chosen).train()
        reference = helpers.tiny_model()
        model.load_state_dict(reference.state_dict(), strict=False)
        before = model.config.to_dict()
        found[name] = held_out.measure(model)
        assert model.config.to_dict() == before and model.training
        assert (model.uncertainty is None) == (name != "joint")
    assert found["simcse"] == found["joint"] == found["mlm"] == held_out.measure(reference)
    predicted = sum((batch["labels"] != -100).sum().item() for batch in held_out.batches)
    assert 0.3 < predicted / sum(len(row["input_ids"]) - 2 for row in rows) < 0.5, "the end of the schedule"
    assert "perplexity" not in found["mlm"]
    causal = held_out.measure(helpers.tiny_model(clm_weight=1.0))
    assert causal["perplexity"] > 1


@pytest.mark.slow
def test_results_are_saved_as_they_are_returned(whole):
    folder, results, _ = whole
    saved = json.loads((folder / "results.json").read_text())
    assert saved == json.loads(json.dumps(results)) and saved["versions"]["torch"] == torch.__version__
    by_figure = {(row["task"], row["figure"]): row for row in saved["summary"]}
    losses = [run["figures"]["held-out text"]["mlm_loss"] for run in saved["runs"] if run["arm"] == "mlm"]
    assert by_figure["held-out text", "mlm_loss"]["arms"]["mlm"]["mean"] == pytest.approx(np.mean(losses))
    for run in saved["runs"]:
        assert run["seconds"] > 0 and run["flops"] > 0 and len(run["figures"]) == 2
        assert [row["tokens"] for row in run["curve"]] == sorted({row["tokens"] for row in run["curve"]})
        assert run["curve"][0]["step"] == 0 and run["curve"][-1]["tokens"] == run["tokens"]


@pytest.mark.slow
def test_the_report_of_a_comparison_has_all_its_sections(whole):
    text = (whole[0] / "report.md").read_text()
    for title in ("At a glance", "Language modelling", "Similarity", "Geometry", "Learning curves", "Cost"):
        assert f"## {title}" in text
    assert "| random weights | 2 |" in text and "| token frequencies | - |" in text
    assert all(f"| {arm} | 2 of 2 |" in text for arm in ARMS)
    assert all((whole[0] / f"{kind}.png").is_file() for kind in ("front", "curves", "conflict"))


def test_arms_keep_the_pooling_of_the_model_they_start_from(tmp_path):
    helpers.tiny_model(pooling="max").save_pretrained(tmp_path / "start")
    helpers.tiny_tokenizer().save_pretrained(tmp_path / "start")
    (tmp_path / "corpus.txt").write_text("\n".join(f"w{i % 50} w{i % 7} w{i // 10}" for i in range(60)))
    given = {"train_file": [str(tmp_path / "corpus.txt")], "model_name_or_path": str(tmp_path / "start")}
    arms = {"spans": {"objective": "spans"}, "own": {"objective": "spans", "pooling": "cls"}}
    given |= {"use_cpu": True, "per_device_train_batch_size": BATCH}
    comparison = Comparison(arms, given, str(tmp_path / "out"), seeds=1, budget_tokens=100)
    pooling = [comparison._trainer(arm, 42).model.config.pooling for arm in arms]
    assert pooling == ["max", "cls"]
