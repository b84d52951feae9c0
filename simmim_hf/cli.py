"""The commands of `simmim`: each parses its options, and calls the rest of the package."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from simmim_cli import main

from .options import REFUSED, Parser, one_line, option_names, parse, parse_given

FAILED = 1  # the input was right and the result is not
# A signal came and a checkpoint was saved: EX_TEMPFAIL of sysexits.h, try again. 128 + signal, as of a shell, would
# look like a run that the signal killed.
TRY_AGAIN = 75


def pretrain(argv: list[str]) -> int:
    from .pretraining.options import pretraining_parser
    from .pretraining.pretrain import Pretraining

    return train(Pretraining, pretraining_parser(), argv)


def adapt(argv: list[str]) -> int:
    from .pretraining.adapt import ADAPTATION, ADAPTATION_HELP, NOT_OPTIONS, Adaptation

    parser = parser_of(
        ADAPTATION,
        "adapt [settings.yaml | settings.json] --model_name_or_path MODEL [options]",
        "Adapt a sentence-transformers model, or any encoder, to text of your own without labels. The result is a "
        "model of the same kind, and a table of what it was worth before and is after.",
        sections=ADAPTATION_HELP,
        hidden=NOT_OPTIONS,
    )
    return train(Adaptation, parser, argv)


def train(run_class: type, parser: Parser, argv: list[str]) -> int:
    """A run of training that signals end, of the command that the parser is of."""
    from .data.corpora import DataError
    from .export import ExportError
    from .folders import NotSaved
    from .memory import OutOfMemory
    from .pretraining.pretrain import NotUploaded
    from .training.checkpoints import claimed
    from .training.signals import Interrupted

    with staying_together(parser), contextlib.ExitStack() as claim:
        with ending(parser, REFUSED, ValueError, OSError, ImportError):
            arguments = parse(parser, argv)
            claim.enter_context(claimed(arguments[-1].output_dir))
            run = run_class(*arguments)
        failed = ending(parser, FAILED, FloatingPointError, OutOfMemory, NotSaved, ExportError, NotUploaded)
        interrupted = ending(parser, TRY_AGAIN, Interrupted)
        with failed, interrupted, ending(parser, REFUSED, DataError), run.signals.listening():
            run.run([parser.prog.split()[1], *argv])
    return 0


def evaluate(argv: list[str]) -> int:
    from .evaluation.command import Evaluation, EvaluationArguments
    from .folders import NotSaved
    from .memory import OutOfMemory
    from .training.checkpoints import claimed

    parser = parser_of(
        EvaluationArguments,
        "evaluate [settings.yaml | settings.json] --model MODEL [MODEL ...] --tasks TASK [TASK ...] [options]",
        "Measure encoders: similarity, retrieval, transfer, language modelling, and the geometry of its vectors. "
        "Results go to a table, results.json and results.md.",
    )
    with contextlib.ExitStack() as claim:
        with ending(parser, REFUSED, ValueError, OSError):
            (arguments,) = parse(parser, argv)
            claim.enter_context(claimed(arguments.output_dir))
            run = Evaluation(arguments)
        with ending(parser, FAILED, FloatingPointError, OutOfMemory, NotSaved):
            run.run(["evaluate", *argv])
    return 0


def card(argv: list[str]) -> int:
    from .training.card import CardArguments, write_card

    parser = parser_of(
        CardArguments,
        "card --model FOLDER [options]",
        "Write README.md, the model card, from what a run recorded in its folder: results.json.",
    )
    with ending(parser, REFUSED, ValueError, OSError):
        path = write_card(*parse(parser, argv))
    print(f"Wrote {path}")
    return 0


def export(argv: list[str]) -> int:
    from .export import ExportArguments, ExportError, run
    from .folders import NotSaved

    parser = parser_of(
        ExportArguments,
        "export --model FOLDER --to FORM --output_dir FOLDER [options]",
        "Write a checkpoint in a form that other libraries open, and compare it with its source.",
    )
    failed = ending(parser, FAILED, ExportError, NotSaved)
    with ending(parser, REFUSED, ValueError, OSError, ImportError), failed:
        run(*parse(parser, argv))
    return 0


def compare(argv: list[str]) -> int:
    from .comparison.arms import read_arms
    from .comparison.comparison import Comparison, ComparisonArguments
    from .folders import NotSaved
    from .memory import OutOfMemory
    from .pretraining.options import PRETRAINING
    from .training.signals import Interrupted

    parser = parser_of(
        (ComparisonArguments, *PRETRAINING),
        "compare [settings.yaml | settings.json] [options]",
        "Train arms, which are objectives or any options of `simmim pretrain`, from the same weights on the same text "
        "for the same budget, evaluate them, and write a report. Options of `simmim pretrain` are those of all arms. "
        "Without options: all objectives on the documentation inside Python, torch and transformers.",
        sections={"comparison": option_names([ComparisonArguments]), **COMPARISON_HELP},
    )
    with staying_together(parser):
        failed = ending(parser, FAILED, OutOfMemory, NotSaved)
        with failed, ending(parser, REFUSED, ValueError, OSError):
            options = {"output_dir": "simmim-comparison", **parse_given(parser, argv)}
            own = {name: options.pop(name) for name in option_names([ComparisonArguments]) if name in options}
            arms = read_arms(own.pop("objectives", None), own.pop("arms", None))
            comparison = Comparison(arms, options, options.pop("output_dir"), **own)
            comparison.prepare()
        failed = ending(parser, FAILED, OutOfMemory, NotSaved)
        interrupted = ending(parser, TRY_AGAIN, Interrupted)
        with failed, interrupted, comparison.signals.listening():
            results = comparison.run(["compare", *argv])
    any_finished = any(run["status"] == "finished" for run in results["runs"])
    return 0 if any_finished else FAILED


def parser_of(arguments: type | tuple[type, ...], usage: str, description: str, **options: Any) -> Parser:
    """The parser of a command, whose name is the first word of its usage; `options` are others of `Parser`."""
    name = usage.split()[0]
    return Parser(arguments, prog=f"simmim {name}", usage=f"simmim {usage}", description=description, **options)


@contextlib.contextmanager
def ending(parser: argparse.ArgumentParser, status: int, *errors: type[Exception]) -> Iterator[None]:
    """Ends the command with a status and the message of the error in one line, where one of these is raised."""
    try:
        yield
    except errors as error:
        # A worker of a DataLoader puts its traceback before the message.
        message = one_line(str(error).rpartition("DataError: ")[2])
        parser.exit(status, f"{parser.prog}: {'error: ' if status == REFUSED else ''}{message}\n")


@contextlib.contextmanager
def staying_together(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Ends a command of several processes in one line, where one of them is lost or does something else."""
    from .training.agreement import ProcessesDiffer, ProcessLost, noticing_lost_processes

    lost = ending(parser, FAILED, ProcessLost)
    # The message comes before the wait, in which a launcher may already end this process.
    with letting_threads_end(), lost, ending(parser, REFUSED, ProcessesDiffer), noticing_lost_processes():
        yield


@contextlib.contextmanager
def letting_threads_end() -> Iterator[None]:
    """Waits a moment where several processes end: threads of gloo let go of the tensors of the last collective.

    One that still holds some aborts the process when Python ends, with an exit code that is not the run's
    (pytorch/pytorch#179291). Destroying the process group instead can hang: a reducer of DDP, which holds it too, then
    waits for such a thread, and the thread for the GIL.
    """
    from torch import distributed

    try:
        yield
    finally:
        if distributed.is_initialized():
            time.sleep(1)  # without the GIL


COMMANDS = {
    "pretrain": pretrain,
    "adapt": adapt,
    "compare": compare,
    "evaluate": evaluate,
    "card": card,
    "export": export,
}


# What `simmim compare --help` shows beside the options of a comparison: what all arms share.
COMPARISON_HELP = {
    "text": ["train_file", "validation_file", "dataset_name", "text_column", "text_unit", "max_seq_length"],
    "model": ["model_name_or_path", "text_config", "tokenizer_name", "vocab_size"],
    "training": ["output_dir", "per_device_train_batch_size", "chunk_size", "learning_rate", "bf16", "seed"],
}
OF_ONE_PROCESS = ("evaluate", "card", "export")  # what the first one does alone, however many a launcher starts


def run(command: str, options: list[str]) -> int:
    """Runs a command with the words behind its name; the exit code."""
    if command in OF_ONE_PROCESS and int(os.environ.get("RANK", 0)) > 0:
        return 0  # several processes would write the same files
    return COMMANDS[command](options)


if __name__ == "__main__":
    sys.exit(main())
