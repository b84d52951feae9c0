"""The command `simmim` up to the choice of what it does. The package behind it imports torch, which takes seconds."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

COMMANDS = {
    "pretrain": "pre-train an encoder on your text, from scratch or from another encoder",
    "adapt": "adapt a sentence-transformers model, or any encoder, to your text without labels",
    "compare": "train objectives from the same weights for the same budget, and write a report",
    "evaluate": "measure one encoder or several, side by side",
    "card": "write the model card of a run again",
    "export": "write a checkpoint as a plain BERT, for sentence-transformers, or as ONNX",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="simmim",
        usage="simmim [--help] [--version] command [options]",
        description="SimMIM, the Siamese Masked Language Model for text.",
        epilog="`simmim command --help` lists the options of a command.\n\ncommands:\n"
        + "\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"simmim_hf {version('simmim_hf')}")
    parser.add_argument("command", choices=list(COMMANDS), metavar="command", help="what to do, see below")
    parser.add_argument("options", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    try:
        from simmim_hf import cli
    except KeyboardInterrupt:
        parser.exit(130, f"simmim {arguments.command}: interrupted.\n")
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
