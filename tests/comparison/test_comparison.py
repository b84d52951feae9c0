"""`simmim compare`: the same weights and text for every arm; going on after a kill; results and report."""

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import comparisons
import helpers
import numpy as np
import pytest
import torch
import yaml
from comparisons import ARMS, BATCH, BUDGET, LONGEST, recorded, settings
from datasets import Dataset

from simmim_hf import SimMIMTrainer
from simmim_hf.comparison.comparison import Comparison
from simmim_hf.comparison.held_out import HeldOut
from simmim_hf.data.collator import DataCollatorForSimMIM
from simmim_hf.folders import LOCK
from simmim_hf.options import words_of

WIDTHS = {"as it is": {}, "a narrow table": {"token_table_dim": 24}, "projected": {"projection_dim": 8}}
EXPLOSIVE = {"objective": "mlm", "learning_rate": 1e30, "max_grad_norm": 0, "warmup_steps": 0}

compare, options = (partial(function, save_steps=3) for function in (comparisons.compare, comparisons.options))

pytestmark = pytest.mark.usefixtures("no_pictures")  # but `whole` renders its own


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """A comparison without interruption: its folder, its results, and what its runs read."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    with recorded() as runs:
        results = compare(files, folder)
    return folder, results, runs


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


# going on


@pytest.mark.slow
def test_a_killed_comparison_does_what_is_missing_and_gives_the_same_report(files, whole, tmp_path):
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
    deadline = time.time() + 300
    while (
        not list(second.glob("checkpoint-*/trainer_state.json")) and process.poll() is None and time.time() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert second.is_dir(), (tmp_path / "stderr").read_text()
    assert not (tmp_path / "out" / "report.md").exists()
    last = max(int(path.name.removeprefix("checkpoint-")) for path in second.glob("checkpoint-*"))
    with recorded() as runs:
        again = compare(files, tmp_path / "out")
    assert set(runs) == {"simmim/seed-42", "mlm/seed-43", "simmim/seed-43"}
    finished = next(run for run in again["runs"] if (run["arm"], run["seed"]) == ("simmim", 42))
    assert len(runs["simmim/seed-42"]["batches"]) == finished["steps"] - last, "it goes on from its last checkpoint"
    assert timeless(again) == timeless(results)
    assert timeless_report(tmp_path / "out") == timeless_report(folder)
    assert not list((tmp_path / "out").rglob("checkpoint-*"))
    with recorded() as runs:
        assert timeless(compare(files, tmp_path / "out")) == timeless(results)
    assert not runs


@pytest.mark.slow
def test_a_signal_saves_the_run_that_is_trained_and_the_same_command_goes_on(
    files, whole, tmp_path, monkeypatch, capsys
):
    _, results, _ = whole
    step, folder = SimMIMTrainer.training_step, tmp_path / "out"
    words = words_of({**options(files), "budget_text": BUDGET, "tasks": [str(files / "pairs.jsonl")]})
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(ARMS, sort_keys=False))

    def signalled(trainer, *args):
        if trainer.args.output_dir.endswith("simmim/seed-42") and trainer.state.global_step == 3:
            signal.raise_signal(signal.SIGUSR1)
        return step(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SimMIMTrainer, "training_step", signalled)
        words = ["compare", *words, "--arms", tmp_path / "arms.yaml", "--output_dir", folder]
        said = helpers.refused(capsys, *words, code=75)
    assert said == "simmim compare: SIGUSR1: ended with 1 of 4 runs finished. The same command goes on."
    with recorded() as runs:
        again = compare(files, folder)
    finished = next(run for run in again["runs"] if (run["arm"], run["seed"]) == ("simmim", 42))
    assert len(runs["simmim/seed-42"]["batches"]) == finished["steps"] - 4, "it goes on after the step of the signal"
    assert "mlm/seed-42" not in runs and timeless(again) == timeless(results)


@pytest.mark.slow
def test_a_run_killed_between_its_last_step_and_its_result_is_only_evaluated(files, whole, tmp_path, monkeypatch):
    _, results, _ = whole
    arm, measured = {"mlm": ARMS["mlm"]}, Comparison._measure

    def interrupted(comparison, model, folder):
        if "runs" in folder.parts:
            raise KeyboardInterrupt
        return measured(comparison, model, folder)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Comparison, "_measure", interrupted)
        compare(files, tmp_path / "out", arm, seeds=1)
    with recorded() as runs:
        again = compare(files, tmp_path / "out", arm, seeds=1)
    assert not runs
    expected = [run for run in timeless(results)["runs"] if (run["arm"], run["seed"]) == ("mlm", 42)]
    assert timeless(again)["runs"] == expected


@pytest.mark.slow
def test_more_arms_and_seeds_are_added_and_other_options_refused(files, whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "out")
    comparison = json.loads((folder / "comparison.json").read_text())
    comparison["options"]["hard_negatives"] = "none"  # as version 0.1.0 wrote it
    comparison["arms"]["mlm"]["one_source_batches"] = False
    (folder / "comparison.json").write_text(json.dumps(comparison))
    more = {**ARMS, "warmer": {"objective": "simmim", "temperature": 0.5}}
    record = json.loads((folder / "comparison.json").read_text())
    record["options"]["hub_token"] = helpers.SECRET  # as earlier versions wrote it
    (folder / "comparison.json").write_text(json.dumps(record))
    with recorded() as runs:
        results = compare(files, folder, more)
    assert helpers.with_the_secret(folder) == []
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
        Comparison(more, options(changed_text), str(folder), **settings(files)).prepare()


@pytest.mark.slow
def test_a_run_that_fails_fails_alone_and_is_tried_again_unless_it_diverged(files, tmp_path, monkeypatch):
    arms, measured, folder = {"mlm": ARMS["mlm"], "wild": EXPLOSIVE}, Comparison._measure, tmp_path / "out"

    def full_disk(comparison, model, folder):
        if folder.parent.name == "mlm":
            raise OSError("no space left")
        return measured(comparison, model, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "_measure", full_disk)
        results = compare(files, folder, arms, seeds=1)
    assert [run["status"] for run in results["runs"]] == ["failed", "failed"]
    assert "OSError: no space left" in (folder / "report.html").read_text()
    with recorded() as runs:
        results = compare(files, folder, arms, seeds=1)
    assert [run["status"] for run in results["runs"]] == ["finished", "failed"]
    assert "wild/seed-42" not in runs, "a loss that is not finite is a result: it is not tried again"
    report = (folder / "report.md").read_text()
    assert "## Runs without a result" in report and "| wild | 42 | The loss or its gradient is not" in report
    assert "| wild | 0 of 1 | - |" in report


@pytest.mark.slow
def test_two_processes_compare_what_one_does(files, whole, tmp_path):
    _, results, _ = whole
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump({"simmim": ARMS["simmim"]}))
    words = ["-m", "simmim_hf.cli", "compare", "--arms", tmp_path / "arms.yaml", "--output_dir", tmp_path / "out"]
    words += ["--seeds", "1", "--budget_text", BUDGET, "--tasks", files / "pairs.jsonl"]
    words += words_of(options(files, per_device_train_batch_size=BATCH // 2))
    process = helpers.launch(*words)
    assert process.stdout.count("The whole report") == 1
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["processes"] == 2
    one = next(run for run in results["runs"] if (run["arm"], run["seed"]) == ("simmim", 42))
    (run,) = found["runs"]
    assert run["status"] == "finished", run
    assert (run["steps"], run["tokens"]) == (one["steps"], one["tokens"])
    assert run["flops"] == pytest.approx(one["flops"], rel=0.02)
    losses = [each["figures"]["held-out text"]["mlm_loss"] for each in (run, one)]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


# preparing


def test_a_comparison_is_made_at_once_and_reads_its_text_when_it_prepares(files, tmp_path):
    missing = options(files, train_file=[str(files / "no-such-file.txt")])
    comparison = Comparison(ARMS, missing, tmp_path / "out", seeds=1, budget_text=BUDGET)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"no-such-file\.txt"):
        comparison.prepare()


def test_nothing_is_trained_before_every_arm_could_be_built(files, tmp_path):
    with recorded() as runs:
        Comparison(ARMS, options(files), tmp_path / "out", seeds=1, budget_text=BUDGET).prepare()
        with pytest.raises(ValueError, match="the arm `b`"):
            compare(files, tmp_path / "other", {"a": ARMS["mlm"], "b": {"objective": "mlm", "chunk_size": 0}})
    assert not runs
    assert (tmp_path / "out" / "initial" / "seed-42" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_folder_is_claimed_from_preparing_to_the_end_of_the_run(files, tmp_path):
    comparison = Comparison(ARMS, options(files), tmp_path / "out", seeds=1, budget_text=BUDGET)
    comparison.prepare()
    assert (tmp_path / "out" / LOCK).is_file()
    results = comparison.run()
    assert not (tmp_path / "out" / LOCK).exists()
    with recorded() as runs:
        assert timeless(comparison.run()) == timeless(results), "it claims the folder and looks again"
    assert not runs and not (tmp_path / "out" / LOCK).exists()


# measuring


def test_every_model_is_asked_the_same_whatever_its_objective():
    tokenizer = helpers.tiny_tokenizer()
    rows = [
        {"input_ids": tokenizer(" ".join(f"w{i * j % 50}" for j in range(1, 5 + i)))["input_ids"]} for i in range(9)
    ]
    dataset = Dataset.from_list([{**row, "length": len(row["input_ids"])} for row in rows])
    collator = DataCollatorForSimMIM(tokenizer, mlm_probability=0.4, positive_view="deleted")
    held_out = HeldOut(dataset, collator, batch_size=4)
    objectives = {
        "simcse": {"mlm_weight": 0, "positive_view": "dropout"},
        "joint": {"positive_view": "deleted"},
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
    assert found["simcse"] == found["joint"] == found["mlm"] == held_out.measure(reference)
    predicted = sum((batch["labels"] != -100).sum().item() for batch in held_out.batches)
    assert 0.3 < predicted / sum(len(row["input_ids"]) - 2 for row in rows) < 0.5
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
    assert all((whole[0] / f"{kind}.png").is_file() for kind in ("front", "curves"))


def test_arms_keep_the_pooling_of_the_model_they_start_from(tmp_path):
    helpers.tiny_model(pooling="max").save_pretrained(tmp_path / "start")
    helpers.tiny_tokenizer().save_pretrained(tmp_path / "start")
    (tmp_path / "corpus.txt").write_text("\n".join(f"w{i % 50} w{i % 7} w{i // 10}" for i in range(60)))
    given = {"train_file": [str(tmp_path / "corpus.txt")], "model_name_or_path": str(tmp_path / "start")}
    arms = {"spans": {"objective": "spans"}, "own": {"objective": "spans", "pooling": "cls"}}
    given |= {"use_cpu": True, "per_device_train_batch_size": BATCH}
    comparison = Comparison(arms, given, str(tmp_path / "out"), seeds=1, budget_tokens=1000)
    comparison.prepare()
    pooling = [comparison._trainer(arm, 42).model.config.pooling for arm in arms]
    assert pooling == ["max", "cls"]


def test_arms_may_differ_in_what_their_vectors_are_made_of(files, tmp_path):
    arms = {name: {"objective": "snippets", **more} for name, more in WIDTHS.items()}
    comparison = Comparison(arms, options(files), str(tmp_path / "out"), seeds=1, budget_tokens=5000)
    comparison.prepare()
    models = [comparison._trainer(arm, 42).model for arm in arms]
    assert [model.simmim.pooler.lexicon.table.embedding_dim for model in models] == [256, 24, 256]
    assert [model.projection.out.out_features for model in models if model.projection is not None] == [8]
    embeddings = [model.get_input_embeddings().weight for model in models]
    assert all(torch.equal(embeddings[0], other) for other in embeddings)
