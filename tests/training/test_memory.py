"""Memory that runs out, in torch's own words: one line with the remedy."""

import functools
import json
from pathlib import Path

import pytest
import torch
from helpers import TINY, corpus_lines, launch, refused, tiny_model, tiny_tokenizer
from trainers import make_trainer

from simmim_hf import SimMIMForPreTraining, SimMIMTrainer
from simmim_hf.cli import main
from simmim_hf.evaluation import command
from simmim_hf.memory import OutOfMemory, remedied

TOO_MUCH = 2**50  # more bytes than any machine has
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15 GiB"


@pytest.fixture
def text(tmp_path) -> str:
    (tmp_path / "text.txt").write_text("\n".join(corpus_lines(60)))
    return str(tmp_path / "text.txt")


@pytest.fixture
def greedy(monkeypatch):
    """A step of training asks for too much."""
    forward = SimMIMForPreTraining.forward

    @functools.wraps(forward)  # Trainer reads its parameters
    def greedy_forward(model, *args, **options):
        if model.training:
            torch.empty(TOO_MUCH)
        return forward(model, *args, **options)

    monkeypatch.setattr(SimMIMForPreTraining, "forward", greedy_forward)


def pretrain(text: str) -> list[str]:
    network = json.dumps({**TINY, "num_hidden_layers": 1})
    words = ["pretrain", "--train_file", text, "--use_cpu", "--report_to", "none", "--output_dir", "run"]
    words += ["--text_config", network, "--vocab_size", "120"]
    return [*words, "--max_steps", "4", "--per_device_train_batch_size", "8"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError(CUDA), "Tried to allocate 2.00 GiB"),
        (RuntimeError("MPS backend out of memory (MPS: 1 GB)"), "MPS backend out of memory (MPS: 1 GB)"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (MemoryError("Unable to allocate 8. EiB for an array"), "Unable to allocate 8. EiB for an array"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_it_is_told_from_other_errors(error, said):
    with pytest.raises(OutOfMemory if said else type(error)) as raised, remedied("Give less."):
        raise error
    assert str(raised.value) == (f"Out of memory ({said}). Give less." if said else str(error))


@pytest.mark.usefixtures("greedy")
def test_a_trainer_says_what_takes_less(tmp_path):
    trainer = make_trainer(tmp_path, SimMIMTrainer, max_steps=2)
    with pytest.raises(OutOfMemory, match=r"tried to allocate \d+ bytes\)\. Give a smaller --chunk_size \(now None\)"):
        trainer.train()


@pytest.mark.slow
@pytest.mark.usefixtures("greedy")
def test_the_command_ends_in_one_line(text, capsys):
    message = refused(capsys, *pretrain(text), code=1)
    assert "simmim pretrain: Out of memory (tried to allocate " in message
    for option in ("chunk_size", "per_device_train_batch_size (now 8)", "gradient_accumulation_steps", "bf16"):
        assert f"--{option}" in message


@pytest.mark.slow
def test_an_evaluation_ends_in_one_line(text, tmp_path, capsys, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "encoder")
    tiny_tokenizer().save_pretrained(tmp_path / "encoder")
    words = ["evaluate", "--model", str(tmp_path / "encoder"), "--tasks", text, "--output_dir", "figures"]
    monkeypatch.setattr(command, "measure_with_samples", lambda *_, **__: torch.empty(TOO_MUCH))
    assert "Give a smaller --batch_size (now 64)" in refused(capsys, *words, code=1)


@pytest.mark.slow
@pytest.mark.usefixtures("greedy", "no_pictures")
def test_an_arm_of_a_comparison_fails_in_one_line(text, capsys, caplog):
    words = [*pretrain(text)[1:], "--budget_text", "900", "--seeds", "1", "--objectives", "mlm"]
    del words[words.index("--max_steps") : words.index("--max_steps") + 2]
    assert main(["compare", *words]) == 1
    said = [
        record for record in caplog.records if "The arm `mlm` failed with seed 42: Out of memory" in record.message
    ]
    assert len(said) == 1 and not said[0].exc_info and "Traceback" not in capsys.readouterr().err


ONE_PROCESS = """
import functools, os, sys, torch
from simmim_hf import SimMIMForPreTraining
from simmim_hf.cli import main

forward = SimMIMForPreTraining.forward


@functools.wraps(forward)
def greedy(model, *arguments, **options):
    if model.training and os.environ["RANK"] == "1":
        torch.empty(2**50)
    return forward(model, *arguments, **options)


SimMIMForPreTraining.forward = greedy
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_each_process_ends_in_one_line(text):
    Path("greedy.py").write_text(ONE_PROCESS)
    ended = launch("greedy.py", *pretrain(text), check=False)
    said = [line for line in ended.stderr.splitlines() if "simmim pretrain: Out of memory" in line]
    assert ended.returncode and len(said) == 1 and "--chunk_size" in said[0]
    assert "simmim pretrain: process 0 of 2 ends: another one has ended" in ended.stderr
    assert "Error: [" not in ended.stderr, "no traceback of gloo"
