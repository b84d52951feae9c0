"""Options: fields of a dataclass, files of settings, words of a command line; and what is refused of them."""

import argparse
import contextlib
import itertools
import json
import math
import os
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, field, fields, make_dataclass
from numbers import Integral, Real
from typing import Any, NoReturn, Union, get_args, get_origin

import yaml
from transformers import HfArgumentParser

from . import records
from .model.configuration_simmim import REMOVED_OPTIONS, RENAMED_OPTIONS, current_options, current_value, nearest

MODEL_SPELLINGS = ("model", "model_name_or_path")
SETTINGS_FILES = (".yaml", ".yml", ".json")
NOT_GIVEN = object()
REFUSED = 2  # the exit code where the input cannot work, as in argparse
MOST_VALUES = 100_000  # of a settings file; a few aliases of aliases in YAML stand for more than fit into memory
LONGEST_LINE = 1200  # characters of a refusal
LONGEST_REASON = 600  # characters of what a library says in it


class Parser(HfArgumentParser):
    """The parser of a command: an option has its whole name, and a refusal is one line.

    Args:
        arguments: the dataclasses of the options
        sections: what `--help` shows, names of options by title; `--help_all` shows all. Default: all, in the groups
            of the dataclasses
        hidden: options that are refused with the remedy, and no help shows
    """

    def __init__(
        self,
        arguments: type | Sequence[type],
        sections: Mapping[str, Sequence[str]] | None = None,
        hidden: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(arguments, allow_abbrev=False, formatter_class=HelpFormatter, **options)
        self.sections = sections
        self.options_by_name = {action.dest: action for action in self._actions}
        for name in hidden:
            self.options_by_name[name].help = argparse.SUPPRESS
        if sections:
            nothing = {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS}  # it is no option of a dataclass
            self.add_argument("--help_all", "--help-all", nargs=0, action=HelpAll, help=HelpAll.__doc__, **nothing)
            self.epilog = "--help_all lists every option, also those of TrainingArguments of transformers."

    def format_help(self) -> str:
        if not self.sections:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        for title, names in self.sections.items():
            formatter.start_section(title)
            formatter.add_arguments([self.options_by_name[name] for name in names])
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def print_all_help(self) -> None:
        self.sections = None
        self.print_help()

    def error(self, message: str) -> NoReturn:
        self.exit(REFUSED, f"{self.prog}: error: {one_line(message)}\n")
        raise AssertionError("exit does not return")


class HelpAll(argparse.Action):
    """show every option, and exit"""

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
        names = action.option_strings
        values = ""
        if action.choices:
            values = "{" + ",".join(map(str, action.choices)) + "}"
            if action.nargs in ("+", "*"):
                values += " ..."
        elif action.nargs != 0:
            values = self._format_args(action, "VALUE")
        shown = [name for name in names if "-" not in name.lstrip("-")] or names
        return " ".join([", ".join(shown), *filter(None, [values])])


def one_line(message: str) -> str:
    """A message without line breaks and control characters, and without the middle of a very long one: a value may
    be of any length."""
    message = records.printable(" ".join(message.split()))
    if len(message) <= LONGEST_LINE:
        return message
    return f"{message[: LONGEST_LINE - 300]} ... {message[-300:]}"


@contextlib.contextmanager
def error_prefix(what: str) -> Iterator[None]:
    """Makes any error a ValueError of one line that begins with `what`: each library has errors of its own."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What an error says, in one line of bearable length."""
    words = str(error) or type(error).__name__
    if isinstance(error, KeyError):
        words = f"there is no {error}"
    words = " ".join(words.split()).partition(" Exception raised from ")[0]  # torch's own stack
    if len(words) <= LONGEST_REASON:
        return words
    return f"{words[:LONGEST_REASON]} ..."


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
        ends = f"{least:g} to {most:g}"
        if most == math.inf:
            ends = f"{least:g} or more"
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
        kind = _readable(declared.type)
        default = declared.default
        metadata = {"help": declared.metadata["help"]}
        if unset is not None:
            metadata["help"] += f" Default: {unset.get(declared.name, default)}."
            if kind is bool:  # HfArgumentParser makes a flag only of a bool that is not also None
                metadata |= {"nargs": "?", "const": True}
            default = None
        if get_origin(kind) is list and default is not None:
            values = list(default) if isinstance(default, tuple) else [default]
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
    options = current_options(options)
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
    argv = current_words(argv)
    names = option_names(parser.dataclass_types)
    argv = [_in_spelling_of(names, word) for word in argv]
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


def _in_spelling_of(names: Sequence[str], word: str) -> str:
    """`--model` and `--model_name_or_path` are one option, whichever of the two a command has."""
    name, equals, value = word.partition("=")
    for spelling, other in (MODEL_SPELLINGS, MODEL_SPELLINGS[::-1]):
        if name.replace("-", "_") == f"__{spelling}" and spelling not in names and other in names:
            return f"--{other}{equals}{value}"
    return word


def current_words(argv: Sequence[str]) -> list[str]:
    """The words of a command line, with options and values of earlier versions by their names of today."""
    words = []
    option = ""
    for word in argv:
        if word.startswith("--"):
            given, equals, value = word.partition("=")
            name = given[2:].replace("-", "_")
            option = RENAMED_OPTIONS.get(name, name)
            if option != name:
                given = f"--{option}"
            words.append(f"{given}{equals}{current_value(option, value)}")
        else:
            words.append(current_value(option, word))
    return words


def _check_names(given: Iterable[str], names: Sequence[str]) -> None:
    for name in given:
        if name in REMOVED_OPTIONS:
            raise ValueError(f"--{name} is gone: {REMOVED_OPTIONS[name][1]}. Leave it out.")
        if name not in names:
            raise ValueError(f"there is no option --{name}.{nearest(name, names, '--{}')}")


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
        inside = node.value
        if isinstance(node, yaml.MappingNode):
            inside = itertools.chain.from_iterable(node.value)
        known[node] = 1 + sum(_count(part, known) for part in inside)
    return known[node]


def words_of(settings: Mapping) -> list[str]:
    """Options as they stand on a command line; None is an option that is not given.

    Raises:
        ValueError: an option of an earlier version that is gone, at a value that would change something.
    """
    words = []
    for name, value in current_options(settings).items():
        values = value if isinstance(value, list) else [value]
        if value is not None:
            words += [f"--{name}", *(json.dumps(v) if isinstance(v, (dict, bool)) else str(v) for v in values)]
    return words
