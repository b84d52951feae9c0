"""Training from a stream: read more than once, resumed, and with a fault that is far behind its beginning."""

import json
import shutil

import pytest
from helpers import TINY, corpus_lines, refused

from simmim_hf import SimMIMTrainer
from simmim_hf.cli import main


def options(tmp_path, output, *more):
    text, held_out = tmp_path / "corpus", tmp_path / "held-out.txt"
    text.mkdir(exist_ok=True)
    (text / "a.txt").write_text("\n".join(corpus_lines(40)))
    held_out.write_text("\n".join(corpus_lines(10)))
    given = ["--train_file", text, "--validation_file", held_out, "--output_dir", output, "--streaming", "--use_cpu"]
    small = ["--text_config", json.dumps({**TINY, "num_hidden_layers": 1}), "--vocab_size", "200", "--max_steps", "9"]
    small += ["--per_device_train_batch_size", "16", "--logging_steps", "1", "--report_to", "none"]
    return ["pretrain", *map(str, [*given, *small, *more])]


def curve(output):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_mixture", "buffer"), [(False, None), (False, "7"), (True, "7")], ids=["plain", "shuffled", "mixture"]
)
def test_a_stream_that_is_read_three_times_resumes_where_it_was(tmp_path, monkeypatch, is_mixture, buffer):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    batches, step = {}, SimMIMTrainer.training_step

    def recording_step(trainer, model, inputs, *args):
        batches[trainer.args.output_dir, trainer.state.global_step] = {n: x.tolist() for n, x in inputs.items()}
        return step(trainer, model, inputs, *args)

    monkeypatch.setattr(SimMIMTrainer, "training_step", recording_step)
    more = ["--save_steps", "5", "--dataloader_drop_last"]
    more += ["--shuffle_buffer_size", buffer] if buffer else []
    if is_mixture:
        other = tmp_path / "other.txt"
        other.write_text("\n".join(corpus_lines(15)))
        more += ["--train_file", tmp_path / "corpus", other, "--mixture_weights", "1", "3"]
        more += ["--tokenizer_name", tokenizer(tmp_path)]  # one that is trained reads 100,000 documents
    assert main(options(tmp_path, whole, *more)) == 0
    shutil.copytree(whole / "checkpoint-5", broken / "checkpoint-5")
    assert main(options(tmp_path, broken, *more, "--resume_from_checkpoint", "last")) == 0
    assert len(curve(whole)) == 9 and curve(broken) == curve(whole)
    assert all(batches[str(broken), i] == batches[str(whole), i] for i in range(5, 9))
    # Ten held-out rows are fewer than a batch, and only training drops such a batch.
    assert json.loads((whole / "results.json").read_text())["after"]["mlm_loss"] > 0


def test_a_fault_late_in_a_stream_ends_in_one_line(tmp_path, capsys):
    words = options(tmp_path, tmp_path / "run")
    (tmp_path / "corpus" / "b.txt").write_bytes(b"good line\n" * 20 + b"caf\xe9\n")
    said = refused(capsys, *words, "--tokenizer_name", tokenizer(tmp_path))
    assert "b.txt, line 21" in said and "convert it to UTF-8" in said


def tokenizer(tmp_path):
    """One that is there, for a tokenizer that is trained reads the whole stream."""
    from simmim_hf.data.tokenization import train_tokenizer

    train_tokenizer(corpus_lines(40), 200, show_progress=False).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"
