"""The model card: of a real run, read as the Hub and its visitors would read it."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import torch
import transformers.trainer
from datasets import Dataset
from helpers import (
    SECRET,
    TINY,
    WITHOUT_THE_PACKAGE,
    corpus_lines,
    refused,
    run_python,
    tiny_model,
    tiny_tokenizer,
    with_the_secret,
)
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import filter_repo_objects
from transformers import TrainingArguments

from simmim_hf import DataCollatorForSimMIM, SimMIMForPreTraining, SimMIMTrainer
from simmim_hf.cli import COMMANDS, main
from simmim_hf.folders import LOCK
from simmim_hf.metric_catalogue import metric_of, title
from simmim_hf.model.configuration_simmim import POSITIVE_VIEWS
from simmim_hf.pretraining import console
from simmim_hf.training import card as hub
from simmim_hf.training.facts import earlier_runs

pytestmark = pytest.mark.slow  # it trains


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of six steps on a small file, with every figure but retrieval, which the built-in text has."""
    folder = tmp_path_factory.mktemp("card")
    lines = corpus_lines(240)
    (folder / "corpus.txt").write_text("\n".join(lines))
    pairs = [{"sentence1": lines[i], "sentence2": lines[2 * i], "score": i % 5} for i in range(20)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    options = ["--train_file", str(folder / "corpus.txt"), f"--similarity_file={folder / 'pairs.jsonl'}"]
    options += ["--output_dir", str(folder / "my-encoder"), "--text_config", json.dumps(TINY), "--use_cpu"]
    options += ["--vocab_size", "300", "--per_device_train_batch_size", "16", "--report_to", "none"]
    options += ["--max_steps", "6", "--logging_steps", "1"]
    options += ["--objective", "fused", "--max_seq_length", "10", "--bf16", "--hub_token", SECRET]
    assert main(["pretrain", *options]) == 0
    return folder / "my-encoder"


@pytest.fixture(scope="module")
def results(run) -> dict:
    return json.loads((run / "results.json").read_text())


@pytest.fixture(scope="module")
def text(run) -> str:
    return (run / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def trainer_in(folder, **options) -> SimMIMTrainer:
    """A Trainer of a user's own script."""
    tokenizer = tiny_tokenizer()
    texts = Dataset.from_dict({"text": ["w1 w2 w3 w4", "w5 w6 w7", "w8 w9 w10 w11", "w12 w13"] * 4})
    defaults = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no"}
    defaults |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return SimMIMTrainer(
        model=tiny_model().train(),
        args=TrainingArguments(str(folder), **{**defaults, **options}),
        train_dataset=texts,
        eval_dataset=texts,
        data_collator=DataCollatorForSimMIM(tokenizer),
        processing_class=tokenizer,
    )


def test_the_metadata_are_what_the_hub_takes(text, results):
    card = ModelCard(text)
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "fill-mask"
    assert {"simmim", "fill-mask", "sentence-similarity", "contrastive-learning", "text-generation"} <= set(
        card.data.tags
    )
    for given_only in ("license", "language", "base_model", "datasets"):
        assert given_only not in card.data.to_dict()
    name, figures = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "my-encoder" and figures == card.data.eval_results
    expected = {name: round(results["after"][name], 4) for name in results["after"] if metric_of(name).hub_metric}
    assert [figure.metric_value for figure in figures] == list(expected.values())
    assert set(expected) == {"mlm_loss", "mlm_accuracy", "clm_loss", "similarity_spearman"}
    assert {figure.dataset_name.split(";")[0] for figure in figures} == {"corpus.txt", "pairs.jsonl"}


def test_every_figure_is_that_of_the_results(text, results):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    table = {row[0]: row[1:] for row in rows}
    for name, after in results["after"].items():
        assert table[title(name)][:2] == [f"{results['before'][name]:.3f}", f"{after:.3f}"]
    assert table["MLM loss"][2] == f"{results['unigram_cross_entropy']:.3f} token frequencies"
    data = results["data"]
    counted = {"training sequences": data["train_sequences"], "tokens in them": data["train_tokens"]}
    counted |= {"held-out sequences": data["held_out_sequences"], "steps": results["steps"]}
    counted |= {"tokens that the encoder read, without padding": results["tokens_read"]}
    for name, count in counted.items():
        assert table[name] == [f"{count:,}"] and count > 0
    assert table["training time"] == [f"{results['train_seconds']:,} seconds"]
    assert table["precision"] == ["bfloat16 autocast over float32 weights"]
    assert table["training documents"] == [f"{data['train_documents']:,}"] and data["dropped_tokens"] == 0
    assert table["longest sequence"] == [f"{data['max_length']:,} tokens"]
    assert f"{results['parameters']:,} parameters" in text
    for group in ("backbone", "objective", "corruption", "training"):
        for name, value in results[group].items():
            assert table[f"{group}: {name}"] == [f"`{json.dumps(value)}`"]
    assert {"learning_rate", "per_device_train_batch_size", "optim"} <= results["training"].keys()


def test_tokens_are_counted_without_padding_and_as_often_as_they_are_read(run, results):
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    seen, read = (
        [entry[name] for entry in history if "loss" in entry] for name in ("num_input_tokens_seen", "tokens_read")
    )
    assert read[-1] == results["tokens_read"]
    assert read == [3 * tokens for tokens in seen]  # the text, its masked copy and the text from left to right
    assert not any("train_tokens_per_second" in entry for entry in history if "loss" in entry)


def test_a_card_states_no_placeholder_path_or_secret(run, text):
    said = text.replace("`[MASK]`", "")
    assert not re.search(r"More Information|\{\{|\}\}|\{%|TODO|None|\bnan\b|\binf\b|undefined", said)
    assert with_the_secret(run) == []
    for file in ("README.md", "results.json", "training_args.json"):
        written = (run / file).read_text()
        assert str(run.parent) not in written and os.path.expanduser("~/") not in written
    assert "![" in text and (run / re.search(r"!\[.*?\]\((.*?)\)", text)[1]).is_file()
    assert shlex.split(blocks(text, "bash")[1])[:4] == ["simmim", "pretrain", "--train_file", "corpus.txt"]
    assert "`corpus.txt`" in text and "Not recorded: the language of the text and a licence" in text


def test_the_snippets_run_in_the_folder(run, text):
    snippets = blocks(text, "python")
    with_package = [snippet for snippet in snippets if "import simmim_hf" in snippet]
    (without,) = [snippet for snippet in snippets if "import simmim_hf" not in snippet]
    start = "import torch\ntorch.set_num_threads(1)\n"
    for script in (
        "\n".join([start, *with_package]),
        start + WITHOUT_THE_PACKAGE + without + "assert vectors.shape == (2, 32)",
    ):
        run_python("-c", script, cwd=run)
    assert len(with_package) == 3
    assert all(shlex.split(line)[1] in {*COMMANDS, "export"} for line in blocks(text, "bash")[0].splitlines())


def test_the_arguments_of_training_are_no_pickle(run):
    assert not list(run.glob("**/training_args.bin"))
    for folder in (run, run / "checkpoint-6"):
        arguments = json.loads((folder / "training_args.json").read_text())
        assert arguments["max_steps"] == 6 and arguments["output_dir"] == "my-encoder"
        assert not [name for name in arguments if name.endswith("_token")]


def test_card_writes_what_it_is_given(run, text, capsys):
    given = ["--license", "apache-2.0", "--language", "en", "zh", "--hub_model_id", "someone/some-encoder"]
    assert main(["card", "--model", str(run), *given]) == 0
    assert "README.md" in capsys.readouterr().out
    card = ModelCard.load(run / "README.md")
    assert card.data.license == "apache-2.0" and card.data.language == ["en", "zh"]
    assert card.data.model_name == "some-encoder" and "# some-encoder" in card.text
    assert 'model_id = "someone/some-encoder"\n' in card.text and "Not recorded" not in card.text
    # As `pretrain` wrote it.
    assert main(["card", "--model", str(run)]) == 0
    assert (run / "README.md").read_text() == text


def test_what_evaluate_measured_stands_in_the_card(run, text, capsys, tmp_path):
    measured = tmp_path / "measured"
    words = ["--tasks", str(run.parent / "pairs.jsonl"), "--output_dir", str(measured), "--device", "cpu"]
    assert main(["evaluate", "--model", str(run), str(run), *words]) == 0
    assert main(["card", "--model", str(run), "--evaluation", str(measured)]) == 0
    card = (run / "README.md").read_text()
    (found,) = json.loads((measured / "results.json").read_text())["models"]["my-encoder"]["tasks"].values()
    assert f"| Spearman x 100 | {found['spearman']:.3f} | {found['spearman']:.3f} (+0.000: " in card
    assert "simmim evaluate --model my-encoder my-encoder --tasks pairs.jsonl" in card
    assert "Pearson" not in card and "no downstream task" not in card and "no downstream task" in text
    assert "there are no results of `simmim evaluate`" in refused(
        capsys, "card", "--model", str(run), "--evaluation", str(tmp_path)
    )
    assert main(["card", "--model", str(run)]) == 0
    assert (run / "README.md").read_text() == text


def test_an_edited_card_stays(run, text, capsys, tmp_path):
    readme = run / "README.md"
    for edited in (text.replace("A text encoder", "My text encoder"), "# Mine\n", "# \xe9\n", text + "More.\n"):
        readme.write_text(edited, encoding="latin-1")
        said = refused(capsys, "card", "--model", str(run))
        assert "was edited or written by a person" in said and "--overwrite" in said
        assert readme.read_text(encoding="latin-1") == edited
    assert main(["card", "--model", str(run), "--overwrite"]) == 0
    assert readme.read_text() == text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--language", "English"], "`English` is not a language code"),
        (["--hub_model_id", "a/b/c"], "a/b/c"),
        (["--licence", "mit"], "Did you mean --license?"),
    ],
)
def test_what_the_hub_would_refuse_is_refused(run, text, capsys, given, said):
    assert said in refused(capsys, "card", "--model", str(run), *given)
    assert (run / "README.md").read_text() == text


def test_what_did_not_help_is_said(results):
    worse = {**results, "before": {"mlm_loss": 3.0, "similarity_spearman": 50.0}, "unigram_cross_entropy": 2.0}
    worse |= {"after": {"mlm_loss": 2.5, "similarity_spearman": 40.0}}
    text = str(hub.model_card(worse, "worse"))
    assert "No better than before training: similarity Spearman x 100." in text
    assert "No better than the baseline: MLM loss." in text
    better = {**worse, "after": {"mlm_loss": 1.5, "similarity_spearman": 60.0}}
    assert "No better" not in str(hub.model_card(better, "better"))


def test_a_name_writes_no_more_than_a_name(results, tmp_path):
    """Into the card, and to the terminal."""
    name = "a.txt`\n\n# Another title\n\x1b[2J"
    facts = {**results, "command": f"simmim pretrain --train_file '{name}'"}
    facts["data"] = {**results["data"], "files": [name], "similarity_file": name}
    for written in (hub.model_card(facts, name), hub.model_card({**facts, "earlier_runs": [facts]}, name)):
        assert "\n# Another" not in str(written) and "\x1b" not in str(written)
        assert r"\n\n# Another title\n\x1b[2J" in str(written)
    hub.save_adapted_card(facts, tmp_path, "simmim")
    assert "\n# Another" not in (tmp_path / "README.md").read_text()
    shown = console.neighbours(f"a text {name}", [(name, 0.5)])
    assert shown.count("\n") == 1 and "\x1b" not in shown


def test_a_figure_that_is_not_finite_is_not_in_the_metadata(results):
    card = hub.model_card({**results, "after": {"mlm_loss": 2.5, "similarity_spearman": float("nan")}}, "card")
    assert [figure.metric_value for figure in card.data.eval_results] == [2.5]
    assert "undefined" in card.text and "nan" not in str(card).split()


def test_a_hub_model_and_dataset_are_in_the_metadata(results):
    data = {"datasets": ["someone/texts"], "dataset_config": "en", "similarity_file": "pairs.csv"}
    card = hub.model_card({**results, "base_model": "someone/base", "data": data}, "card")
    assert card.data.base_model == "someone/base" and card.data.datasets == ["someone/texts"]
    assert "Training started from [someone/base](https://huggingface.co/someone/base)" in card.text
    assert "[someone/texts](https://huggingface.co/datasets/someone/texts), configuration en" in card.text


@pytest.mark.parametrize("view", POSITIVE_VIEWS)
def test_every_positive_has_words(results, view):
    assert POSITIVE_VIEWS[view] in str(
        hub.model_card({**results, "objective": results["objective"] | {"positive_view": view}}, "card")
    )


def test_a_trainer_states_what_it_knows(tmp_path):
    trainer = trainer_in(tmp_path / "own")
    trainer.train()
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "own" / "README.md")
    assert card.data.eval_results is None and "No metrics on held-out text were recorded" in card.text
    assert "On which text was not recorded" in card.text and "simmim pretrain" not in card.text
    assert (
        "before training" not in card.text and "tokens read" not in card.text and "Training started" not in card.text
    )
    figures = trainer.evaluate()
    trainer.create_model_card(license="mit", finetuned_from="someone/base", dataset_tags="someone/texts", tags="mine")
    card = ModelCard.load(tmp_path / "own" / "README.md")
    assert card.data.eval_results[0].metric_value == round(figures["eval_mlm_loss"], 4)
    assert card.data.license == "mit" and card.data.base_model == "someone/base" and "mine" in card.data.tags
    assert f"| MLM loss | {figures['eval_mlm_loss']:.3f} |" in card.text and "after 2 steps" in card.text
    assert (tmp_path / "own" / "training.png").is_file()
    (tmp_path / "own" / "README.md").write_text("# Mine\n")
    trainer.create_model_card()
    assert (tmp_path / "own" / "README.md").read_text() == "# Mine\n"


def test_what_a_trainer_pushes_has_our_card_and_no_pickle(tmp_path, monkeypatch):
    pushed = []

    class Api:
        def create_repo(self, name, **options):
            return type("Url", (), {"repo_id": f"someone/{name}"})

        def upload_folder(self, folder_path, ignore_patterns=None, **options):
            files = [str(file.relative_to(folder_path)) for file in Path(folder_path).rglob("*") if file.is_file()]
            pushed.append(set(filter_repo_objects(files, ignore_patterns=ignore_patterns)))
            return type("Job", (), {"done": lambda self: True})()

    save, written = torch.save, []

    def spied_save(content, target, *args, **options):
        save(content, target, *args, **options)
        written.extend(with_the_secret(tmp_path))

    monkeypatch.setattr(torch, "save", spied_save)
    monkeypatch.setattr(transformers.trainer, "hf_api", Api)
    options = {"save_strategy": "steps", "save_steps": 1, "push_to_hub": True, "hub_always_push": True}
    options["hub_token"] = SECRET
    trainer = trainer_in(tmp_path / "own", **options)
    (tmp_path / "own" / LOCK).touch()
    trainer.train()
    trainer.push_to_hub()
    assert not [file for files in pushed for file in files if file.startswith("_")]
    assert written == [], "not even for the moment of saving"
    assert len(pushed) == 3 and {"README.md", "training.png", "training_args.json"} <= pushed[-1]
    assert all({"model.safetensors", "modeling_simmim.py", "losses.py"} <= files for files in pushed)
    assert not [file for files in pushed for file in files if file.endswith((".bin", ".pt", ".pth"))]
    text = (tmp_path / "own" / "README.md").read_text()
    assert 'model_id = "someone/own"' in text and "More Information Needed" not in text


def options_of_a_run(run, folder):
    options = ["--train_file", str(run.parent / "corpus.txt"), "--output_dir", str(folder), "--report_to", "none"]
    return [*options, "--per_device_train_batch_size", "16", "--use_cpu"]


def test_a_run_that_goes_on_from_a_checkpoint_tells_of_the_runs_before(run, tmp_path, caplog):
    first = run
    for name in "ab":
        options = [*options_of_a_run(run, tmp_path / name), "--max_steps", "2"]
        assert main(["pretrain", *options, "--model_name_or_path", str(first)]) == 0
        first = tmp_path / name
    results = json.loads((first / "results.json").read_text())
    sources = [json.loads((folder / "results.json").read_text()) for folder in (run, tmp_path / "a")]
    assert [told["tokens_read"] for told in results["earlier_runs"]] == [told["tokens_read"] for told in sources]
    text, total = (first / "README.md").read_text(), sum(told["tokens_read"] for told in (results, *sources))
    assert f"| with those of the runs before | {total:,} |" in text
    assert f"```bash\n{sources[0]['command']}\n```" in text and "Run 2 of those before, from the local ch" in text
    (first / "results.json").write_text("{")
    assert earlier_runs(first) == {} and "is not known" in caplog.text


def test_vectors_can_learn_while_the_encoder_stays_as_it_is(run, tmp_path):
    options = [*options_of_a_run(run, tmp_path / "vectors"), "--max_steps", "2", "--model_name_or_path", str(run)]
    options += ["--mlm_weight", "0", "--contrastive_gradient", "pooler"]
    assert main(["pretrain", *options, "--pooling", "attention", "--pooled_layers", "table_and_last"]) == 0
    before, after = (SimMIMForPreTraining.from_pretrained(folder) for folder in (run, tmp_path / "vectors"))
    for name, weight in before.state_dict().items():
        assert "pooler" in name or torch.equal(weight, after.state_dict()[name]), name
    assert after.simmim.pooler.lexicon.state_bias.abs().max() > 0
    text = (tmp_path / "vectors" / "README.md").read_text()
    assert "fill_mask = pipeline" in text and "It learned to predict masked tokens, to tell" in text


def test_a_resumed_run_says_from_where(run, tmp_path):
    options = [*options_of_a_run(run, tmp_path / "run"), "--text_config", json.dumps(TINY), "--vocab_size", "300"]
    options += ["--save_steps", "2", "--save_total_limit", "1"]
    assert main(["pretrain", *options, "--max_steps", "2"]) == 0
    first = json.loads((tmp_path / "run" / "results.json").read_text())
    assert main(["pretrain", *options, "--max_steps", "6", "--resume_from_checkpoint", "last", "--allow_changed"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["resumed_at_step"] == 2 and results["steps"] == 6
    assert (
        results["tokens_read"] > first["tokens_read"]
        and "seconds, from step 2 on" in (tmp_path / "run" / "README.md").read_text()
    )
