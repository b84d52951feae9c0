"""Options: fields of a dataclass, files of settings, words of a command line; and what is refused of them."""

import argparse
import contextlib
import inspect
import itertools
import json
import math
import os
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, field, fields, make_dataclass
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin

import yaml
from transformers import HfArgumentParser

from . import records
from .model.configuration_simmim import REMOVED_OPTIONS, nearest, without_removed

SETTINGS_FILES = (".yaml", ".yml", ".json")
NOT_GIVEN = object()
REFUSED = 2  # the exit code where the input cannot work, as in argparse
MOST_VALUES = 100_000  # of a settings file; a few aliases of aliases in YAML stand for more than fit into memory
LONGEST_LINE, LONGEST_REASON = 1200, 600  # characters of a refusal, and of what a library says in it


class Parser(HfArgumentParser):
    """The parser of a command: an option has its whole name, a refusal is one line, and the help shows the options of
    this package in groups; those of transformers too with `--help_all`."""

    def __init__(self, arguments: type | Sequence[type], **options: Any) -> None:
        super().__init__(arguments, allow_abbrev=False, formatter_class=HelpFormatter, **options)
        self._hidden = {}  # an option of transformers, and its help
        names = set().union(*(_inherited(cls, "transformers.") for cls in self.dataclass_types))
        for action in self._actions:
            if action.dest in names:
                self._hidden[action], action.help = action.help, argparse.SUPPRESS
        if self._hidden:
            nothing = {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS}  # it is no option of a dataclass
            self.add_argument("--help_all", "--help-all", nargs=0, action=HelpAll, help=HelpAll.__doc__, **nothing)
            self.epilog = (
                "All options of TrainingArguments of transformers too, such as --max_steps, --bf16, --seed, "
                "--gradient_accumulation_steps, --resume_from_checkpoint and --push_to_hub: --help_all"
            )

    def print_all_help(self) -> None:
        for action, text in self._hidden.items():
            action.help = text
        self.print_help()

    def error(self, message: str) -> None:
        self.exit(REFUSED, f"{self.prog}: error: {one_line(message)}\n")


class HelpAll(argparse.Action):
    """show the options of transformers too, and exit"""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        parser.print_all_help()
        parser.exit()


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names an option once, and its default where the text does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        says_default = "Default: " in text or action.default in (None, "", [], {}, argparse.SUPPRESS)
        return text if says_default else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names, values = action.option_strings, "" if action.nargs == 0 else self._format_args(action, "VALUE")
        if action.choices:
            values = "{" + ",".join(map(str, action.choices)) + "}" + (" ..." if action.nargs in ("+", "*") else "")
        shown = [name for name in names if "-" not in name.lstrip("-")] or names
        return " ".join([", ".join(shown), *filter(None, [values])])


def _inherited(cls: type, module: str) -> set[str]:
    """The options of a dataclass that were declared in a module or package of this name, and nowhere below."""
    declared: dict[str, str] = {}
    for base in cls.__mro__:
        for name in inspect.get_annotations(base):
            declared.setdefault(name, base.__module__)
    return {field_.name for field_ in fields(cls) if declared[field_.name].startswith(module)}


def one_line(message: str) -> str:
    """A message without line breaks and control characters, and without the middle of a very long one: a value may
    be of any length."""
    message = records.printable(" ".join(message.split()))
    return message if len(message) <= LONGEST_LINE else f"{message[: LONGEST_LINE - 300]} ... {message[-300:]}"


@contextlib.contextmanager
def error_prefix(what: str) -> Iterator[None]:
    """Makes any error a ValueError of one line that begins with `what`: each library has errors of its own."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What an error says, in one line of bearable length."""
    words = f"there is no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
    words = " ".join(words.split()).partition(" Exception raised from ")[0]  # torch's own stack
    return words if len(words) <= LONGEST_REASON else f"{words[:LONGEST_REASON]} ..."


def is_number(value: Any, least: float = -math.inf, most: float = math.inf, kind: type = float) -> bool:
    """Whether a value is a number in a range, whole where `kind` is int; a truth value and nan are none."""
    numbers = Integral if kind is int else Real
    if isinstance(value, bool) or not isinstance(value, numbers):
        return False
    return bool(least <= value <= most)  # type: ignore[operator]  # `Real` is no `float` to mypy


def check_number(name: str, value: Any, least: float = -math.inf, most: float = math.inf, kind: type = float) -> None:
    """Refuses what `is_number` says is none.

    Raises:
        ValueError: the message names the option, its value and the range.
    """
    if not is_number(value, least, most, kind):
        ends = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
        raise ValueError(f"{name}={value!r}: give a {'whole ' if kind is int else ''}number, {ends}.")


def option(default: Any = MISSING, help: str = "", **metadata: Any) -> Any:
    """A dataclass field for the command line; without a default it has to be given."""
    return field(default=default, metadata={"help": help, **metadata})


def options_of(cls: type, leave_out: Sequence[str] = (), unset: Mapping[str, str] | None = None) -> type:
    """A dataclass with the options of another one, as HfArgumentParser reads them: one declaration serves both.

    Args:
        cls: a dataclass whose options have a `help` in their metadata; its other fields are left out
        leave_out: names of options
        unset: make None, for not given, the default of every option; its help then ends with the true default, by
            name in `unset`, or else that of `cls`
    """
    derived = []
    for declared in fields(cls):
        if "help" not in declared.metadata or declared.name in leave_out:
            continue
        kind, default, metadata = _readable(declared.type), declared.default, {"help": declared.metadata["help"]}
        if unset is not None:
            metadata["help"] += f" Default: {unset.get(declared.name, default)}."
            if kind is bool:  # HfArgumentParser makes a flag only of a bool that is not also None
                metadata |= {"nargs": "?", "const": True}
            default = None
        if get_origin(kind) is list and default is not None:
            values = [default] if not isinstance(default, tuple) else list(default)
            made: Any = field(default_factory=values.copy, metadata=metadata)
        else:
            made = field(default=default, metadata=metadata)
        derived.append((declared.name, kind if default is not None else kind | None, made))
    return make_dataclass(f"{cls.__name__}Options", derived)


def _readable(kind: Any) -> Any:
    """The type that HfArgumentParser reads: `float | int` is a float, `float | tuple[float, float]` a list of them."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    kinds = [part for part in get_args(kind) if part is not type(None)]
    if any(get_origin(part) is tuple for part in kinds):
        return types.GenericAlias(list, (kinds[0],))
    return kinds[0]


def parse(parser: Parser, argv: Sequence[str]) -> tuple:
    """The dataclasses of a parser from options, after a file of settings where there is one.

    Raises:
        ValueError: an option that does not exist, with the nearest that does; or a value of the wrong kind.
    """
    *arguments, left_over = parser.parse_args_into_dataclasses(
        known_words(parser, argv), return_remaining_strings=True, look_for_args_file=False
    )
    _refuse(left_over)
    return tuple(arguments)


def parse_given(parser: Parser, argv: Sequence[str]) -> dict:
    """As `parse`, but only the options that are given, by name."""
    words = known_words(parser, argv)
    if not {"-h", "--help", "--help_all", "--help-all"}.isdisjoint(words):  # which show the defaults
        parser.parse_args(words)
    parser.set_defaults(**dict.fromkeys(option_names(parser.dataclass_types), NOT_GIVEN))
    namespace, left_over = parser.parse_known_args(words)
    _refuse(left_over)
    return {name: value for name, value in vars(namespace).items() if value is not NOT_GIVEN}


def typed(dataclasses: Sequence[type], settings: Mapping) -> dict:
    """Options of a settings file with the values that the command line would read.

    Raises:
        ValueError: an option that does not exist, or a value of the wrong kind.
    """
    parser = Parser(dataclasses, exit_on_error=False)
    try:
        return parse_given(parser, words_of(settings))
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error


def build(dataclasses: Sequence[type], options: Mapping) -> tuple:
    """An instance of each dataclass, from options of all of them by name.

    Raises:
        ValueError: an option that none of them has, with the nearest that one of them has.
    """
    options = without_removed(options)
    _check_names(options, option_names(dataclasses))
    return tuple(
        cls(**{field_.name: options[field_.name] for field_ in fields(cls) if field_.init and field_.name in options})
        for cls in dataclasses
    )


def option_names(dataclasses: Sequence[type]) -> list[str]:
    return [field_.name for cls in dataclasses for field_ in fields(cls) if field_.init]


def known_words(parser: Parser, argv: Sequence[str]) -> list[str]:
    """The words of a command line with its file of settings written out.

    Raises:
        ValueError: an option that the parser does not have, with the nearest that it has.
    """
    if argv and argv[0].endswith(SETTINGS_FILES):
        argv = [*words_of(read_settings(argv[0])), *argv[1:]]
    names = option_names(parser.dataclass_types)
    given = [word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")]
    _check_names(
        [name for name in given if name not in ("help", "help_all") and name.removeprefix("no_") not in names], names
    )
    option = ""
    for word in argv:
        option = word.partition("=")[0] if word.startswith("--") else option
        if word.partition("=")[2] == "--":  # which argparse would make an empty list of
            raise ValueError(f"`{word}` has no value: -- is none.")
        if word.encode(errors="replace").decode() != word:
            raise ValueError(
                f"{option}: {word!a} is not UTF-8, in which results are written: give another name or value."
            )
    return list(argv)


def _check_names(given: Iterable[str], names: Sequence[str]) -> None:
    for name in given:
        if name in REMOVED_OPTIONS:
            raise ValueError(f"--{name} is gone: {REMOVED_OPTIONS[name][1]}. Leave it out.")
        if name not in names:
            raise ValueError(f"there is no option --{name}.{nearest(name, names, '--{}', cutoff=0.5)}")


def _refuse(left_over: Sequence[str]) -> None:
    if left_over:
        raise ValueError(f"`{' '.join(left_over)}` is not an option; options begin with --.")


def read_settings(path: str) -> dict:
    """A YAML or JSON file of options and their values."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no settings file `{path}`.")
    with open(path, encoding="utf-8") as file, error_prefix(f"`{path}` is not valid YAML or JSON"):
        loader = yaml.SafeLoader(file)  # every JSON file is a YAML file
        root = loader.get_single_node()
        if _count(root, {}) > MOST_VALUES:
            raise ValueError(f"with its aliases written out it has more than {MOST_VALUES:,} values; use fewer")
        settings = loader.construct_document(root) if root else None
    if not isinstance(settings, dict):
        raise ValueError(f"`{path}` must hold options and their values, for example `temperature: 0.05`.")
    return settings


def _count(node: yaml.Node | None, known: dict[yaml.Node, float]) -> float:
    """The values of a YAML document with its aliases written out; infinite where one is inside of itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if node not in known:
        known[node] = math.inf
        inside = itertools.chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[node] = 1 + sum(_count(part, known) for part in inside)
    return known[node]


def words_of(settings: Mapping) -> list[str]:
    """Options as they stand on a command line; None is an option that is not given.

    Raises:
        ValueError: an option of an earlier version that is gone, at a value that would change something.
    """
    words = []
    for name, value in without_removed(settings).items():
        values = value if isinstance(value, list) else [value]
        if value is not None:
            words += [f"--{name}", *(json.dumps(v) if isinstance(v, (dict, bool)) else str(v) for v in values)]
    return words
