"""The command `simmim` before it knows what to do: it answers without torch, whose import takes seconds."""

import pytest
from helpers import run_python

import simmim_cli
from simmim_hf import __version__, cli

ASK = "import simmim_cli, sys; assert 'torch' not in sys.modules; simmim_cli.main(sys.argv[1:])"


@pytest.mark.slow
@pytest.mark.parametrize(("option", "said"), [("--help", [*simmim_cli.COMMANDS]), ("--version", [__version__])])
def test_help_and_version(option, said):
    answer = run_python("-X", "importtime", "-c", ASK, option)
    assert all(word in answer.stdout for word in said)
    assert "torch" not in answer.stderr and "transformers" not in answer.stderr


def test_every_command_is_there():
    assert all(callable(getattr(cli, name)) for name in simmim_cli.COMMANDS)
    assert list(cli.COMMANDS) == list(simmim_cli.COMMANDS)


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["pre-train"])
    assert stop.value.code == 2 and "pre-train" in capsys.readouterr().err
