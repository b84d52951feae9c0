"""The command `simmim pretrain` as a user meets it: what it makes, and what it says to input that cannot work."""

import itertools
import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from helpers import TINY, corpus_lines, refused
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForPreTraining, PreTrainedTokenizerFast, pipeline

from simmim_hf.cli import main
from simmim_hf.options import Parser, parse, read_settings
from simmim_hf.pretraining.options import PRETRAINING, fill_defaults


@pytest.fixture
def corpus(tmp_path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(corpus_lines(240)))
    return file


def options(corpus: Path, output: Path, *more: str) -> list[str]:
    given = ["--train_file", str(corpus), "--output_dir", str(output), "--text_config", json.dumps(TINY), "--use_cpu"]
    small = ["--vocab_size", "300", "--per_device_train_batch_size", "16", "--logging_steps", "1"]
    small += ["--report_to", "none"]
    return ["pretrain", *given, *small, "--max_steps", "6", *more]


@pytest.mark.slow
def test_a_run_makes_a_checkpoint_and_all_that_belongs_to_it(corpus, tmp_path, capsys):
    """That it opens in a fresh process is seen by the snippets of its card."""
    output = tmp_path / "run"
    assert main(options(corpus, output)) == 0
    said = capsys.readouterr().out
    assert "MLM loss" in said and "Nearest neighbours" in said and "fill_mask = " in said
    assert {"model.safetensors", "tokenizer.json", "data_collator_config.json", "results.json"} <= set(
        os.listdir(output)
    )
    assert (output / "training.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((output / "results.json").read_text())
    assert results["steps"] == 6 and results["after"]["mlm_loss"] < results["before"]["mlm_loss"]
    assert len(pipeline("fill-mask", model=str(output))("the old [MASK] runs")) == 5
    assert not list(output.glob("**/*.bin")) or all(p.name == "training_args.bin" for p in output.glob("**/*.bin"))


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_what_predicts_no_tokens_is_not_offered_for_it(corpus, tmp_path, capsys):
    words = {**TINY, "model_type": "bert"}
    more = ["--mlm_weight", "0", "--text_config", json.dumps(words), "--num_hidden_layers", "0"]
    more += ["--contrastive_gradient", "encoder"]
    assert main(options(corpus, tmp_path / "words", *more)) == 0
    said = capsys.readouterr().out
    assert "vectors = " in said and "fill_mask" not in said and "contrastive loss" in said


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_settings_file_equals_the_options(corpus, tmp_path):
    assert main(options(corpus, tmp_path / "flags", "--temperature", "0.1", "--snippet_ratio", "0.2", "0.4")) == 0
    settings = {
        **{"train_file": [str(corpus)], "text_config": TINY, "vocab_size": 300, "use_cpu": True},
        **{"per_device_train_batch_size": 16, "logging_steps": 1, "report_to": "none", "max_steps": 6},
        **{"temperature": 0.1, "snippet_ratio": [0.2, 0.4], "output_dir": str(tmp_path / "file")},
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert main(["pretrain", str(tmp_path / "settings.yaml")]) == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("flags", "file"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_it_continues_from_its_own_checkpoint_with_other_options(corpus, tmp_path):
    assert main(options(corpus, tmp_path / "first")) == 0
    more = ("--model_name_or_path", str(tmp_path / "first"), "--objective", "fused")
    assert main(options(corpus, tmp_path / "second", *more)) == 0
    config = AutoModelForPreTraining.from_pretrained(tmp_path / "second").config
    assert config.clm_weight == 1 and config.text_config.hidden_size == 32


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("long_texts", ["split", "truncate"])
def test_documents_and_tokens_are_counted(corpus, tmp_path, capsys, long_texts):
    more = ("--max_seq_length", "8", "--validation_file", str(corpus), "--long_texts", long_texts)
    assert main(options(corpus, tmp_path / "run", *more)) == 0
    lines = [line.split() for line in corpus.read_text().splitlines()]
    said = capsys.readouterr().out
    assert "A document is a line of .txt (--text_unit)." in said
    assert f"Training text: {len(lines):,} documents" in said and "reads 8 tokens at once" in said
    dropped = int(re.search(r"([\d,]+) tokens cut off|$", said)[1].replace(",", "")) if "cut off (" in said else 0
    if long_texts == "split":
        assert dropped == 0 and "nothing cut off" in said
    else:
        assert dropped >= sum(max(0, len(line) - 6) for line in lines) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_more_tokens_than_positions_are_truncated(corpus, tmp_path, capsys):
    short = json.dumps({**TINY, "max_position_embeddings": 6})
    assert main(options(corpus, tmp_path / "run", "--text_config", short)) == 0
    assert "an encoder that reads 6 tokens at once" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--temprature", "0.1"], "there is no option --temprature. Did you mean --temperature?"),
        (["--batch_size", "32"], "Did you mean --per_device_train_batch_size?"),
        (["--optim_args", "x", "--optim_target_modules", "encoder"], "--optim adamw_torch_fused, --optim_args x: "),
        (["--temperature", "0"], "`temperature` is 0.0: it must be above 0"),
        (["--mlm_probability", "0"], "mlm_probability=0.0"),
        (["--mlm_probability", "1.0"], "mlm_probability=1.0"),
        (["--snippet_ratio", "0.1", "0.2", "0.3"], "or a pair (shortest, longest)"),
        (["--per_device_train_batch_size", "1"], "without negatives"),
        (["--text_config", '{"model_type": "vit"}'], "reads `pixel_values` and not text"),
        (["--text_config", "nonsense"], "neither a JSON object, nor a JSON file, nor a model type"),
        (["--text_config", '{"hidden_size": 30, "num_attention_heads": 4}'], "30"),
        (["--objective", "simim"], "simim"),
        (["--mlm_weight", "0"], "no loss would teach the encoder, whose weights are random: give --contrastive_gr"),
        (["--pooling", "mean", "--pooled_layers", "last"], "'pooler', which has nothing to learn"),
        (["--train_file", "no-such-file.txt"], "--train_file: no such file or folder: 'no-such-file.txt'"),
        (["--validation_file", "[x].txt"], "--validation_file: '[x].txt' matches no text file"),
        (["--resume_from_checkpoint", "last"], "no checkpoint"),
        (["--resume_from_checkpoint", "no/such/folder"], "there is no folder `no/such/folder`"),
        (["--streaming", "--max_steps", "-1"], "--max_steps"),
        (["--streaming"], "--streaming holds out the first 1,000 texts, and there are"),
        (["--text_config", '{"layer_norm_eps": 1e30, "num_hidden_layers": 1}'], "the same vectors whatever it reads"),
        (["--validation_split_percentage", "0"], "--validation_split_percentage is 0.0"),
        (["--similarity_file", "no-such-pairs.jsonl"], "--similarity_file: there is no file `no-such-pairs.jsonl`"),
        (["--push_to_hub", "--hub_token", "wrong"], "--push_to_hub: "),  # without a network, or with one
        (["--chunk_size", "0"], "chunk_size=0"),
        (["--dropout", "1"], "dropout=1.0: give a number from 0 to below 1"),
        (["--objective", "simcse", "--dropout", "0"], "none: give --dropout 0.1"),
        (["--bf16_full_eval", "true"], "--bf16_full_eval"),
        (["--torch_compile_backend", "none"], "--torch_compile_backend: batches without padding have new lengths"),
        (["--debug", "tpu_metrics_debug"], "--debug tpu_metrics_debug needs a TPU"),
        (["stray"], "stray"),
    ],
)
def test_bad_options_are_refused_before_training(corpus, tmp_path, capsys, given, said):
    message = refused(capsys, *options(corpus, tmp_path / "run"), *given)
    assert said in message and "error" in message
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(("content", "said"), [("", "empty"), ("\n  \n\n", "holds no text")])
def test_files_without_text_are_refused(tmp_path, capsys, content, said):
    (tmp_path / "nothing.txt").write_text(content)
    message = refused(capsys, *options(tmp_path / "nothing.txt", tmp_path / "run"))
    assert "nothing.txt" in message and said in message


def test_a_tokenizer_without_a_mask_token_is_refused(corpus, tmp_path, capsys):
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "the": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        tmp_path / "tokenizer"
    )
    message = refused(capsys, *options(corpus, tmp_path / "run"), "--tokenizer_name", str(tmp_path / "tokenizer"))
    assert "has no mask token" in message and "add_special_tokens" in message


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_an_earlier_run_is_not_written_over(corpus, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("keep")
    message = refused(capsys, *options(corpus, tmp_path / "run"))
    assert "is not empty" in message and "--overwrite_output_dir" in message and "--resume_from_checkpoint" in message
    assert main(options(corpus, tmp_path / "run", "--overwrite_output_dir")) == 0
    assert (tmp_path / "run" / "precious.txt").read_text() == "keep"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("skipped", "said"), [("2", "nor in the 2 before it"), ("20", "nor in the 4 before it")])
def test_a_loss_that_is_not_finite_stops_the_run(corpus, tmp_path, capsys, skipped, said):
    explosive = ("--learning_rate", "1e30", "--max_grad_norm", "0", "--save_steps", "1", "--warmup_steps", "0")
    message = refused(capsys, *options(corpus, tmp_path / "run", *explosive, "--max_skipped_steps", skipped), code=1)
    assert said in message and "Lower the learning rate" in message
    assert list((tmp_path / "run").glob("checkpoint-*")) and not (tmp_path / "run" / "model.safetensors").exists()


def test_unknown_settings_in_a_file_are_refused(tmp_path, capsys):
    (tmp_path / "settings.json").write_text('{"tempperature": 1}')
    assert "Did you mean --temperature?" in refused(capsys, "pretrain", str(tmp_path / "settings.json"))
    assert "no settings file" in refused(capsys, "pretrain", str(tmp_path / "missing.yaml"))
    (tmp_path / "settings.json").write_bytes(b"\xff")
    assert "settings.json` is not valid YAML or JSON" in refused(capsys, "pretrain", str(tmp_path / "settings.json"))
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "must hold options" in refused(capsys, "pretrain", str(tmp_path / "list.yaml"))


NAMES = "abcdefghij"
LISTS = "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise(NAMES))
MERGES = LISTS.replace("[", "{<<: [").replace("]", "]}")


@pytest.mark.parametrize("content", [f"a: &a [x]\n{LISTS}", f"a: &a {{x: 1}}\n{MERGES}", "a: &a [*a]\n", "[" * 9999])
@pytest.mark.parametrize("command", [["pretrain"], ["compare", "--arms"]])
def test_settings_that_stand_for_more_than_memory_holds_are_refused(tmp_path, capsys, command, content):
    (tmp_path / "settings.yaml").write_text(content)
    message = refused(capsys, *command, tmp_path / "settings.yaml")
    assert "settings.yaml` is not valid YAML or JSON" in message
    assert "more than 100,000 values" in message or "recursion" in message


def test_an_alias_in_settings_is_what_it_stands_for(tmp_path):
    (tmp_path / "arms.yaml").write_text("one: &one {objective: mlm, seed: 1}\ntwo: {<<: *one, objective: simmim}\n")
    arms = read_settings(str(tmp_path / "arms.yaml"))
    assert arms == {"one": {"objective": "mlm", "seed": 1}, "two": {"objective": "simmim", "seed": 1}}


def test_a_network_nested_too_deeply_is_refused(capsys):
    assert "neither a JSON object" in refused(capsys, "pretrain", "--text_config", '{"a":' * 9999)


@pytest.mark.parametrize(
    "words, first_sentences, token_table_dim",
    [
        ("", 0.5, 512),
        ("--text_config bert", 0.5, None),
        ("--objective mlm", 0.5, None),
        ("--model_name_or_path some-encoder", 0.5, None),
        ("--train_file notes.txt", 0.0, None),
        ("--first_sentence_probability 0 --token_table_dim 64", 0.0, 64),
    ],
)
def test_the_built_in_text_has_defaults_of_its_own(words, first_sentences, token_table_dim):
    model_args, data_args, args = parse(Parser(PRETRAINING), words.split())
    fill_defaults(model_args, data_args, args)
    assert data_args.collator_options()["first_sentence_probability"] == first_sentences
    assert model_args.token_table_dim == token_table_dim
