"""The command `simmim`: parses, and calls the rest of the package."""

import argparse
import contextlib
import sys
from collections.abc import Sequence

from transformers import HfArgumentParser

from .options import option_names, parse, parse_given


def pretrain(argv: list[str]) -> int:
    from .training.arguments import pretraining_parser
    from .training.pretraining import Pretraining

    parser = pretraining_parser()
    with refusing(parser, ValueError, OSError):
        run = Pretraining(*parse(parser, argv))
    with failing(parser, FloatingPointError):
        run.run(["pretrain", *argv])
    return 0


def evaluate(argv: list[str]) -> int:
    from .evaluation.command import Evaluation, EvaluationArguments

    parser = HfArgumentParser(
        EvaluationArguments,
        prog="simmim evaluate",
        usage="simmim evaluate [settings.yaml | settings.json] --model MODEL --tasks TASK [TASK ...] [options]",
        description="Measure an encoder: similarity, retrieval, transfer, language modelling, and the geometry of its "
        "vectors. Results go to a table, results.json and results.md.",
        allow_abbrev=False,
    )
    with refusing(parser, ValueError, OSError):
        run = Evaluation(*parse(parser, argv))
    with failing(parser, FloatingPointError):
        run.run(["evaluate", *argv])
    return 0


def card(argv: list[str]) -> int:
    from .training.card import CardArguments, write_card

    parser = HfArgumentParser(
        CardArguments,
        prog="simmim card",
        usage="simmim card --model FOLDER [options]",
        description="Write README.md, the model card, from what a run recorded in its folder: results.json.",
        allow_abbrev=False,
    )
    with refusing(parser, ValueError, OSError):
        path = write_card(*parse(parser, argv))
    print(f"Wrote {path}")
    return 0


def export(argv: list[str]) -> int:
    from .export import ExportArguments, ExportError, run

    parser = HfArgumentParser(
        ExportArguments,
        prog="simmim export",
        usage="simmim export --model FOLDER --to FORM --output_dir FOLDER [options]",
        description="Write a checkpoint in a form that other libraries open, and compare it with its source.",
        allow_abbrev=False,
    )
    with refusing(parser, ValueError, OSError, ImportError), failing(parser, ExportError):
        run(*parse(parser, argv))
    return 0


def compare(argv: list[str]) -> int:
    from .comparison.arms import read_arms
    from .comparison.comparison import Comparison, ComparisonArguments
    from .training.arguments import PRETRAINING

    parser = HfArgumentParser(
        (ComparisonArguments, *PRETRAINING),
        prog="simmim compare",
        usage="simmim compare [settings.yaml | settings.json] [options]",
        description="Train arms, which are objectives or any options of `simmim pretrain`, from the same weights on "
        "the same text for the same budget, evaluate them, and write a report. Options of `simmim pretrain` are those "
        "of all arms. Without options: all objectives on the documentation inside Python, torch and transformers.",
        allow_abbrev=False,
    )
    with refusing(parser, ValueError, OSError):
        options = {"output_dir": "simmim-comparison", **parse_given(parser, argv)}
        own = {name: options.pop(name) for name in option_names([ComparisonArguments]) if name in options}
        arms = read_arms(own.pop("objectives", None), own.pop("arms", None))
        comparison = Comparison(arms, options, options.pop("output_dir"), **own)
    results = comparison.run(["compare", *argv])
    return 0 if any(run["status"] == "finished" for run in results["runs"]) else 1


@contextlib.contextmanager
def refusing(parser: argparse.ArgumentParser, *errors: type[Exception]):
    """Ends the command with status 2, as argparse does, where these errors say that the input cannot work."""
    try:
        yield
    except errors as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


@contextlib.contextmanager
def failing(parser: argparse.ArgumentParser, *errors: type[Exception]):
    """Ends the command with status 1 where these errors say that the input was right and the result is not."""
    try:
        yield
    except errors as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


COMMANDS = {"pretrain": pretrain, "compare": compare, "evaluate": evaluate, "card": card, "export": export}


def main(argv: Sequence[str] | None = None) -> int:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(prog="simmim", description="SimMIM, the Siamese Masked Language Model for text.")
    parser.add_argument("--version", action="version", version=f"simmim_hf {version('simmim_hf')}")
    parser.add_argument("command", choices=list(COMMANDS), help="`simmim COMMAND --help` tells its options")
    parser.add_argument("options", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    return COMMANDS[arguments.command](arguments.options)


if __name__ == "__main__":
    sys.exit(main())
