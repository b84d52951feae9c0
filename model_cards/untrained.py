"""The weights that a model had before training: those of its configuration and seed 42, with its tokenizer.

python model_cards/untrained.py --model model_cards/simmim-tiny-en --output_dir reference/random
"""

import argparse

import torch
from transformers import AutoTokenizer

from simmim_hf import SimMIMConfig, SimMIMForPreTraining


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a checkpoint")
    parser.add_argument("--output_dir", required=True)
    arguments = parser.parse_args()
    torch.manual_seed(42)
    model = SimMIMForPreTraining(SimMIMConfig.from_pretrained(arguments.model))
    model.save_pretrained(arguments.output_dir)
    AutoTokenizer.from_pretrained(arguments.model).save_pretrained(arguments.output_dir)


if __name__ == "__main__":
    main()
