"""The command `simmim`: parses, and calls the rest of the package."""

import argparse
import contextlib
import difflib
import json
import os
import sys
from collections.abc import Sequence

import yaml
from transformers import HfArgumentParser

SETTINGS_FILES = (".yaml", ".yml", ".json")


def pretraining_parser() -> HfArgumentParser:
    """The options of `simmim pretrain`."""
    from .pretraining import DataArguments, ModelArguments, PretrainingArguments

    return HfArgumentParser(
        (ModelArguments, DataArguments, PretrainingArguments),
        prog="simmim pretrain",
        usage="simmim pretrain [settings.yaml | settings.json] [options]",
        description="Pre-train a SimMIM encoder. Without options: a small one on the documentation inside Python, "
        "torch and transformers, in a few minutes. Options may also stand in a YAML or JSON file.",
        allow_abbrev=False,
    )


def pretrain(argv: list[str]) -> int:
    from .pretraining import Pretraining

    parser = pretraining_parser()
    with refusing(parser, ValueError, OSError):
        run = Pretraining(*parse(parser, argv))
    with failing(parser, FloatingPointError):
        run.run(["pretrain", *argv])
    return 0


def evaluate(argv: list[str]) -> int:
    from .evaluation import Evaluation, EvaluationArguments

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
    from .hub import CardArguments, write_card

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
    from .arms import normalise, read_arms
    from .comparison import Comparison, ComparisonArguments
    from .pretraining import DataArguments, ModelArguments, PretrainingArguments

    parser = HfArgumentParser(
        (ComparisonArguments, ModelArguments, DataArguments, PretrainingArguments),
        prog="simmim compare",
        usage="simmim compare [settings.yaml | settings.json] [options]",
        description="Train arms, which are objectives or any options of `simmim pretrain`, from the same weights on "
        "the same text for the same budget, evaluate them, and write a report. Options of `simmim pretrain` are those "
        "of all arms. Without options: all objectives on the documentation inside Python, torch and transformers.",
        allow_abbrev=False,
    )
    parser.set_defaults(output_dir="simmim-comparison")
    own_parser = HfArgumentParser(ComparisonArguments, allow_abbrev=False, add_help=False)
    with refusing(parser, ValueError, OSError):
        words = known_words(parser, argv)
        parser.parse_known_args(words)  # for --help, and values of the wrong kind
        own, words = own_parser.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
        options = {"output_dir": "simmim-comparison", **normalise(words)}
        budget = {f"budget_{unit}": getattr(own, f"budget_{unit}") for unit in ("tokens", "flops", "seconds")}
        arms = read_arms(own.objectives, own.arms)
        comparison = Comparison(arms, options, options.pop("output_dir"), own.seeds, **budget, tasks=own.tasks)
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


def parse(parser: HfArgumentParser, argv: Sequence[str]) -> tuple:
    """The dataclasses of a parser from options, before which a file of settings may stand.

    Raises:
        ValueError: an option that does not exist, with the nearest that does; or a value of the wrong kind.
    """
    *arguments, left_over = parser.parse_args_into_dataclasses(
        known_words(parser, argv), return_remaining_strings=True, look_for_args_file=False
    )
    if left_over:
        raise ValueError(f"`{' '.join(left_over)}` is not an option; options begin with --.")
    return tuple(arguments)


def known_words(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """The words of a command line with its file of settings written out.

    Raises:
        ValueError: an option that the parser does not have, with the nearest that it has.
    """
    known = {option for action in parser._actions for option in action.option_strings}
    if argv and argv[0].endswith(SETTINGS_FILES):
        argv = [*words_of(read_settings(argv[0])), *argv[1:]]
    for word in argv:
        name = word.split("=")[0]
        if name.startswith("--") and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise ValueError(f"there is no option {name}." + (f" Did you mean {near[0]}?" if near else ""))
    return list(argv)


def read_settings(path: str) -> dict:
    """A YAML or JSON file of options and their values."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no settings file `{path}`.")
    with open(path, encoding="utf-8") as file:
        try:
            settings = yaml.safe_load(file)  # every JSON file is a YAML file
        except yaml.YAMLError as error:
            raise ValueError(f"`{path}` is not valid YAML or JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"`{path}` must hold options and their values, for example `temperature: 0.05`.")
    return settings


def words_of(settings: dict) -> list[str]:
    """Options as they stand on a command line; None is an option that is not given."""
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        if value is not None:
            words += [f"--{name}", *(json.dumps(v) if isinstance(v, (dict, bool)) else str(v) for v in values)]
    return words


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
