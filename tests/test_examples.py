"""The scripts in examples/ run as they are, and what they save loads."""

import functools
import json
import random
import runpy
import sys
from pathlib import Path

import pytest
from helpers import EXAMPLES, TINY, environment, run_python
from transformers import AutoModelForPreTraining, AutoTokenizer, BertConfig, BertForMaskedLM

from simmim_hf import DataCollatorForSimMIM, SimMIMForPreTraining
from simmim_hf.data import tokenization

SCRIPTS = ("run_pretraining.py", "run_pretraining_accelerate.py")
pytestmark = pytest.mark.usefixtures("fresh_accelerator")
WORDS = ["the", "a", "river", "stone", "bright", "winter", "garden", "music", "silver", "thunder", "quiet", "paper"]


def run(script: str, *options) -> str:
    """The standard output of a script that has to succeed, in a process of its own."""
    return run_python(EXAMPLES / script, *options, env=environment(ACCELERATE_USE_CPU="true")).stdout


def run_here(monkeypatch, capsys, script: str, *options) -> str:
    """The same in this process, which saves the time of the imports."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, options)])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    try:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    except SystemExit as stop:
        assert stop.code == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(" ".join(rng.choices(WORDS, k=rng.randint(3, 12))) for _ in range(80)))
    return path


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, text_file):
    """A saved BERT with its head and tokenizer."""
    folder = tmp_path_factory.mktemp("backbone")
    tokenizer = tokenization.train_tokenizer(text_file.read_text().split("\n"), 99, show_progress=False)
    tokenizer.save_pretrained(folder)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **TINY)).save_pretrained(folder)
    return folder


def common(script: str, folder: Path, text_file: Path) -> list:
    options = ["--train_file", text_file, "--output_dir", folder, "--max_seq_length", 16]
    options += ["--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 2, "--num_train_epochs", 2]
    options += ["--logging_steps", 2]
    return options + (["--use_cpu", "--report_to", "none"] if script == "run_pretraining.py" else [])


def check_saved(folder: Path, objective: str) -> SimMIMForPreTraining:
    model, report = AutoModelForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "SimMIMForPreTraining"
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert bool(model.config.clm_weight) == (objective == "fused")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    collator = DataCollatorForSimMIM.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == len(collator.tokenizer)
    assert model(**collator(["the silver river", "a quiet garden"])).loss.isfinite()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_from_scratch(script, text_file, tmp_path, monkeypatch, capsys):
    # The plain script runs in processes of its own in test_distributed.py.
    start = run if script == "run_pretraining_accelerate.py" else functools.partial(run_here, monkeypatch, capsys)
    config = json.dumps({"model_type": "bert", **TINY})
    options = ["--text_config", config, "--objective", "fused", "--whole_word_mask"]
    options += ["--mlm_probability", 0.4]
    output = start(script, *common(script, tmp_path / "out", text_file), *options)
    assert "loss" in output and "AutoModel.from_pretrained" in output and "eval" in output
    model = check_saved(tmp_path / "out", "fused")
    assert model.config.hidden_size == 32
    collator = DataCollatorForSimMIM.from_pretrained(tmp_path / "out")
    assert collator.whole_word_mask and collator.mlm_probability == 0.4


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_from_a_backbone_with_a_validation_file(script, text_file, backbone, tmp_path, monkeypatch, capsys):
    validation = tmp_path / "validation.txt"
    validation.write_text("the silver river\na quiet garden\nthe paper music")
    options = ["--model_name_or_path", backbone, "--validation_file", validation]
    run_here(monkeypatch, capsys, script, *common(script, tmp_path / "out", text_file), *options)
    check_saved(tmp_path / "out", "simmim")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_length(script, monkeypatch, capsys):
    output = run_here(monkeypatch, capsys, script, "--help")
    assert (
        "--train_file" in output
        and "--objective" in output
        and "{clm,mlm,simcse,simmim,fused,spans,snippets}" in output
    )
    assert len((EXAMPLES / script).read_text().splitlines()) <= 120
