"""What the tests of this folder share: a tiny comparison, and what its runs read."""

import contextlib
import json
from pathlib import Path

import pytest

from simmim_hf import SimMIMTrainer
from simmim_hf.comparison.comparison import Comparison

TINY = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
BATCH, BUDGET, LONGEST = 8, 900, 14
ARMS = {"mlm": {"objective": "mlm"}, "simmim": {"objective": "simmim", "temperature": 0.1}}


def options(files: Path, save_steps=1000, **more) -> dict:
    given = {"train_file": [str(files / "corpus.txt")], "text_config": json.dumps(TINY), "vocab_size": 300}
    given |= {"per_device_train_batch_size": BATCH, "logging_steps": 1, "save_steps": save_steps, "use_cpu": True}
    return {**given, "disable_tqdm": True, **more}


@contextlib.contextmanager
def recorded():
    """For each run the tokens of each batch, and the weights before the first step, by its folder."""
    runs, step = {}, SimMIMTrainer.training_step

    def recording_step(trainer, model, inputs, *args):
        name = "/".join(Path(trainer.args.output_dir).parts[-2:])
        if name not in runs:
            weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
            runs[name] = {"weights": weights, "batches": []}
        runs[name]["batches"].append(inputs["input_ids"][inputs["attention_mask"].bool()].tolist())
        return step(trainer, model, inputs, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimMIMTrainer, "training_step", recording_step)
        yield runs


def compare(files: Path, folder: Path, arms=ARMS, save_steps=1000, **more) -> dict:
    return Comparison(arms, options(files, save_steps), str(folder), **{**settings(files), **more}).run()


def settings(files: Path) -> dict:
    return {"seeds": 2, "budget_text": BUDGET, "tasks": [str(files / "pairs.jsonl")]}
