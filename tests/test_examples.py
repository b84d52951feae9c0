"""The scripts in examples/ run as they are, and what they save loads."""

import functools
import json
import os
import random
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
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


def test_search_finds_a_passage_and_keeps_the_vectors(text_file, backbone, tmp_path, monkeypatch, capsys):
    options = ["--model", backbone, "--text", text_file, "--words", "6", "--index", tmp_path / "index", "--top", "3"]
    question = min(text_file.read_text().splitlines(), key=len)  # a passage as it is
    found = run_here(monkeypatch, capsys, "search.py", *options, "--question", question)
    cosines = [float(line.split()[0]) for line in found.splitlines()]
    assert len(cosines) == 3 and cosines == sorted(cosines, reverse=True)
    assert found.splitlines()[0] == f"1.000  {question}"
    written = (tmp_path / "index" / "vectors.npy").stat().st_mtime_ns
    assert run_here(monkeypatch, capsys, "search.py", *options, "--question", question) == found
    assert (tmp_path / "index" / "vectors.npy").stat().st_mtime_ns == written
    run_here(monkeypatch, capsys, "search.py", *options, "--words", "5", "--question", question)
    assert (tmp_path / "index" / "vectors.npy").stat().st_mtime_ns > written


CONFIGURATIONS = sorted((EXAMPLES / "accelerate_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_the_configurations_have_the_options_of_accelerate(path):
    config = load_config_from_file(str(path))  # refuses what it does not know, but not within a part
    options = vars(launch_command_parser().parse_args(["script.py"]))
    assert {*config.fsdp_config, *config.deepspeed_config} <= options.keys()
    assert config.num_processes >= 2


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_slurm_script_requeues_what_a_signal_ended(tmp_path, code):
    """With programs in place of those of a cluster."""
    programs = {"srun": 'exec "$@"', "scontrol": 'echo "scontrol $*"'}
    programs["simmim"] = f'echo "$RANK $LOCAL_RANK $WORLD_SIZE $*"; exit {code}'
    for name, program in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{program}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1"}
    variables |= {"SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_NODELIST": "a", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", EXAMPLES / "slurm.sh", "settings.yaml"]
    job = subprocess.run(command, env={**os.environ, **variables}, cwd=tmp_path, capture_output=True, text=True)
    words = "--output_dir my-encoder --resume_from_checkpoint last_if_any"
    requeue = "scontrol requeue 7\n" if code == 75 else ""
    assert job.stdout == f"9 1 16 pretrain settings.yaml {words}\n{requeue}", job.stderr
    assert job.returncode == code
