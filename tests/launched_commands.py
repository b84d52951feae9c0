"""Commands of `simmim` in each process of a launcher: `torchrun ... launched_commands.py COMMANDS.json FOLDER`.

COMMANDS.json holds a list of command lines, each with an `--output_dir`. The weights that a process has at the end of
training go to FOLDER, by the name of the output folder and the rank. One start of processes serves many commands.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformers import TrainerCallback

from simmim_hf.cli import main
from simmim_hf.training.trainer import SimMIMTrainer

RANK = os.environ.get("RANK", "0")
train = SimMIMTrainer.train


class SignalOnce(TrainerCallback):
    """Sends a signal to process 1 itself before a step, at the first start only: KILL_AT=step, SIGNAL, MARK=file."""

    def on_step_begin(self, args, state, control, **kwargs):
        mark = Path(os.environ["MARK"])
        if RANK == "1" and state.global_step == int(os.environ["KILL_AT"]) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))


def keeping_weights(folder: Path):
    def train_and_keep(self, *args, **kwargs):
        if "KILL_AT" in os.environ:
            self.add_callback(SignalOnce())
        output = train(self, *args, **kwargs)
        if self.args.save_strategy != "no":  # the head of `adapt` is trained beforehand, and not saved
            weights = self.accelerator.unwrap_model(self.model).state_dict()
            torch.save(weights, folder / f"{'-'.join(Path(self.args.output_dir).parts[-2:])}-{RANK}.pt")
        return output

    return train_and_keep


if __name__ == "__main__":
    Figure.savefig = lambda figure, path, **_: Path(path).write_bytes(b"")  # which takes as long as a tiny run
    SimMIMTrainer.train = keeping_weights(Path(sys.argv[2]))
    for command in json.loads(Path(sys.argv[1]).read_text()):
        assert main(command) == 0, command
