"""What each process of test_launched_commands.py runs: `torchrun ... launched_commands.py COMMANDS.json FOLDER`.

COMMANDS.json holds a list of command lines of `simmim`, each with an `--output_dir`. The weights that a process has at
the end of training go to FOLDER, by the name of the output folder and the rank.
"""

import json
import os
import sys
from pathlib import Path

import torch

from simmim_hf.cli import main
from simmim_hf.training.trainer import SimMIMTrainer

commands, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
train = SimMIMTrainer.train


def train_and_keep(self, *args, **kwargs):
    output = train(self, *args, **kwargs)
    if self.args.save_strategy != "no":  # the head of `adapt` is trained beforehand
        weights = self._unwrapped_model().state_dict()
        name = "-".join(Path(self.args.output_dir).parts[-2:])
        torch.save(weights, folder / f"{name}-{os.environ.get('RANK', 0)}.pt")
    return output


SimMIMTrainer.train = train_and_keep
for command in commands:
    code = main(command)
    assert code == 0, command
