"""The command `simmim` up to the choice of what it does. The package behind it imports torch, which takes seconds."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

COMMANDS = {
    "pretrain": "pre-train an encoder on your text, from scratch or from another encoder",
    "adapt": "adapt a sentence-transformers model, or any encoder, to your text without labels",
    "compare": "train objectives from the same weights for the same budget, and write a report",
    "evaluate": "measure one encoder or several, side by side",
    "card": "write the model card of a run again",
    "export": "write a checkpoint as a plain BERT, for sentence-transformers, or as ONNX",
}

CTRL_C = 130  # as of a shell: nothing is saved


class Output(io.RawIOBase):
    """Standard output or error: what nobody reads, or has no room, is dropped, and the run goes on.

    Args:
        raw: the stream without buffer and encoding
        name: how a warning names it; None for no warning
    """

    def __init__(self, raw: io.RawIOBase, name: str | None) -> None:
        self.raw = raw
        self.name = name

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.raw.fileno()

    def isatty(self) -> bool:
        return self.raw.isatty()

    def write(self, data) -> int | None:
        try:
            return self.raw.write(data)
        except OSError as error:
            self._drop_from_now_on(error)
            return len(data)

    def _drop_from_now_on(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # libraries in C and Rust write there without Python
        os.close(nowhere)
        if self.name and error.errno != errno.EPIPE:  # `| head` closes a pipe on purpose
            print(f"simmim: {self.name} cannot be written ({error.strerror}): it is left out.", file=sys.stderr)


def keep_output_from_ending_the_run() -> None:
    """A closed pipe, a full device or a character that the terminal does not have costs output, and no run."""
    sys.stdout = _lasting(sys.stdout, sys.__stdout__, "standard output")
    sys.stderr = _lasting(sys.stderr, sys.__stderr__, None)


def _lasting(stream: Any, own: Any, name: str | None) -> Any:
    if stream is None or stream is not own:  # closed, or replaced by whoever calls, such as a notebook
        return stream
    buffer = stream.buffer
    raw = Output(getattr(buffer, "raw", buffer), name)  # `python -u` has no buffer
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def main(argv: Sequence[str] | None = None) -> int:
    keep_output_from_ending_the_run()
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
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        parser.print_help()
        return 0
    arguments = parser.parse_args(words)
    try:
        from simmim_hf import cli

        return cli.run(arguments.command, arguments.options)
    except KeyboardInterrupt:
        parser.exit(CTRL_C, f"simmim {arguments.command}: interrupted.\n")


if __name__ == "__main__":
    sys.exit(main())
