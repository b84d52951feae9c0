"""A signal that takes a run off its machine loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers import TINY, corpus_lines, environment
from transformers import TrainerCallback

from simmim_hf import SimMIMTrainer
from simmim_hf.cli import main
from simmim_hf.options import parse
from simmim_hf.pretraining.options import pretraining_parser
from simmim_hf.pretraining.pretrain import Pretraining
from simmim_hf.training import checkpoints
from simmim_hf.training.signals import SIGNALS, Interrupted, StopAtSignal

pytestmark = pytest.mark.slow  # it trains


def words(folder: Path, *more: str) -> list[str]:
    corpus = folder.parent / "corpus.txt"
    corpus.write_text("\n".join(corpus_lines(60)))
    network = json.dumps({**TINY, "num_hidden_layers": 1})
    given = ["--use_cpu", "--train_file", str(corpus), "--output_dir", str(folder), "--report_to", "none"]
    given += ["--text_config", network, "--vocab_size", "120", "--per_device_train_batch_size", "8"]
    given += ["--validation_split_percentage", "40", "--per_device_eval_batch_size", "8", "--disable_tqdm", "true"]
    given += ["--gradient_accumulation_steps", "2"]
    return [*given, "--max_steps", "6", "--eval_strategy", "steps", "--eval_steps", "3", *more]


class Send(TrainerCallback):
    """Sends this process a signal at an event of a step."""

    def __init__(self, number: int, event: str, step: int):
        self.number, self.step = number, step
        setattr(self, event, self._send)

    def _send(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            signal.raise_signal(self.number)
            self.step = None


def interrupted(folder: Path, *sender) -> str:
    """What a run says that gets a signal."""
    run = Pretraining(*parse(pretraining_parser(), words(folder)))
    run.trainer.callback_handler.callbacks.insert(0, Send(*sender))
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Interrupted) as end, run.signals.listening():
        run.run()
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    return str(end.value)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert main(["pretrain", *words(folder)]) == 0
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("number", "event", "step", "saved"),
    [
        (signal.SIGTERM, "on_substep_end", 1, 2),  # in the middle of an accumulation
        (signal.SIGHUP, "on_prediction_step", 3, 3),
        (signal.SIGUSR1, "on_train_end", 6, 6),
    ],
)
def test_a_signal_saves_and_the_resumed_run_ends_as_unbroken(tmp_path, unbroken, number, event, step, saved):
    folder = tmp_path / "run"
    said = interrupted(folder, number, event, step)
    name = signal.Signals(number).name
    assert said.startswith(f"{name}: ended with a checkpoint of step {saved}. ") and "\n" not in said
    assert checkpoints.last_checkpoint(folder) == str(folder / f"checkpoint-{saved}")
    assert not (folder / "model.safetensors").exists()
    assert main(["pretrain", *words(folder), "--resume_from_checkpoint", "last"]) == 0
    assert (folder / "model.safetensors").read_bytes() == unbroken


def test_a_signal_before_the_first_step(tmp_path):
    said = interrupted(tmp_path / "run", signal.SIGTERM, "on_prediction_step", 0)
    assert "before the first step" in said and not os.listdir(tmp_path / "run")


def test_a_signal_that_is_passed_on_counts_once():
    stop = StopAtSignal()
    with stop.listening():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
    assert stop.received == signal.SIGTERM


def test_a_second_signal_ends_at_once():
    child = os.fork()
    if child == 0:
        with StopAtSignal().listening():
            signal.raise_signal(signal.SIGTERM)
            time.sleep(1.2)
            signal.raise_signal(signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_the_command_ends_with_a_line_and_a_code(tmp_path):
    long = ("--max_steps", "100000", "--save_strategy", "no", "--logging_steps", "1", "--eval_strategy", "no")
    command = [sys.executable, "-m", "simmim_hf.cli", "pretrain", *words(tmp_path / "run"), *long]
    run = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert any("'loss'" in line for line in run.stdout), run.communicate()[1]  # it has taken a step
    run.send_signal(signal.SIGTERM)
    said = run.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert run.returncode == 75
    assert said.startswith("simmim pretrain: SIGTERM: ended with a checkpoint of step ")


def test_ctrl_c_is_one_line(tmp_path, monkeypatch, capsys):
    # What SIGINT raises, unless it is ignored, as in a process that a shell has put into the background.
    monkeypatch.setattr(SimMIMTrainer, "training_step", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit) as end:
        main(["pretrain", *words(tmp_path / "run")])
    said = capsys.readouterr().err
    assert end.value.code == 130 and said.strip().splitlines()[-1] == "simmim pretrain: interrupted."
    assert "Traceback" not in said
