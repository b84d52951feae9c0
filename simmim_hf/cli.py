"""The command `simmim`: parses, and calls the rest of the package."""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Sequence

import yaml
from transformers import HfArgumentParser

SETTINGS_FILES = (".yaml", ".yml", ".json")


def pretrain(argv: list[str]) -> int:
    from .pretraining import DataArguments, ModelArguments, Pretraining, PretrainingArguments

    parser = HfArgumentParser(
        (ModelArguments, DataArguments, PretrainingArguments),
        prog="simmim pretrain",
        usage="simmim pretrain [settings.yaml | settings.json] [options]",
        description="Pre-train a SimMIM encoder. Without options: a small one on the documentation inside Python, "
        "torch and transformers, in a few minutes. Options may also stand in a YAML or JSON file.",
        allow_abbrev=False,
    )
    try:
        arguments = parse(parser, argv)
        run = Pretraining(*arguments)
    except (ValueError, OSError) as error:
        parser.exit(2, f"simmim pretrain: error: {error}\n")
    try:
        run.run()
    except FloatingPointError as error:
        parser.exit(1, f"simmim pretrain: {error}\n")
    return 0


def parse(parser: HfArgumentParser, argv: Sequence[str]) -> tuple:
    """The dataclasses of a parser from options, before which a file of settings may stand.

    Raises:
        ValueError: an option that does not exist, with the nearest that does; or a value of the wrong kind.
    """
    known = {option for action in parser._actions for option in action.option_strings}
    if argv and argv[0].endswith(SETTINGS_FILES):
        argv = [*_options_of_file(argv[0]), *argv[1:]]
    for word in argv:
        name = word.split("=")[0]
        if name.startswith("--") and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise ValueError(f"there is no option {name}." + (f" Did you mean {near[0]}?" if near else ""))
    *arguments, left_over = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if left_over:
        raise ValueError(f"`{' '.join(left_over)}` is not an option; options begin with --.")
    return tuple(arguments)


def _options_of_file(path: str) -> list[str]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no settings file `{path}`.")
    with open(path, encoding="utf-8") as file:
        try:
            settings = yaml.safe_load(file)  # every JSON file is a YAML file
        except yaml.YAMLError as error:
            raise ValueError(f"`{path}` is not valid YAML or JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"`{path}` must hold options and their values, for example `temperature: 0.05`.")
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        if value is not None:
            words += [f"--{name}", *(json.dumps(v) if isinstance(v, (dict, bool)) else str(v) for v in values)]
    return words


COMMANDS = {"pretrain": pretrain}


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
