"""The command `simmim` before it knows what to do: it answers without torch, whose import takes seconds."""

import contextlib
import json
import os
import subprocess
import sys

import pytest
from helpers import TINY, environment, refused, run_python
from torch import distributed

import simmim_cli
from simmim_hf import __version__, cli
from simmim_hf.training.signals import Interrupted

ASK = "import simmim_cli, sys; assert 'torch' not in sys.modules; simmim_cli.main(sys.argv[1:])"


@pytest.mark.slow
@pytest.mark.parametrize(("option", "said"), [("--help", [*simmim_cli.COMMANDS]), ("--version", [__version__])])
def test_help_and_version(option, said):
    answer = run_python("-X", "importtime", "-c", ASK, option)
    assert all(word in answer.stdout for word in said)
    assert "torch" not in answer.stderr and "transformers" not in answer.stderr


def test_help_shows_what_a_newcomer_needs_and_help_all_everything(capsys):
    shown = {}
    for word in ("--help", "--help_all", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            cli.main(["pretrain", word])
        assert stop.value.code == 0
        shown[word] = capsys.readouterr().out
    short, long = shown["--help"], shown["--help_all"]
    titles = ["text:", "model:", "training:", "evaluation:"]
    assert [line for line in short.splitlines() if line in titles] == titles
    assert "\n  --train_file " in short and "\n  --learning_rate " in short
    assert short.count("\n  --") == 25
    assert "--max-steps" not in short, "every option is shown in one spelling"
    assert "\n  --adam_beta1 " in long and "\n  --deletion_probability " in long and long == shown["--help-all"]


def test_the_help_of_adapt_speaks_of_adapting(capsys):
    with pytest.raises(SystemExit):
        cli.main(["adapt", "--help_all"])
    shown = capsys.readouterr().out
    assert not {"--text_config", "--num_hidden_layers", "--vocab_size"} & set(shown.split())


def test_without_a_command_there_is_help(capsys):
    assert cli.main([]) == 0
    assert "commands:" in capsys.readouterr().out


def test_a_model_has_two_spellings_everywhere(capsys, tmp_path):
    missing = str(tmp_path / "no-such-model")
    for command in ("evaluate --tasks docstrings", "card", "export --to onnx --output_dir out", "adapt", "pretrain"):
        said = [
            refused(capsys, *command.split(), spelling, missing) for spelling in ("--model", "--model_name_or_path")
        ]
        assert said[0] == said[1] and missing in said[0], command


def test_only_what_is_near_is_suggested(capsys):
    assert refused(capsys, "pretrain", "--temprature", "1").endswith("Did you mean --temperature?")
    assert refused(capsys, "pretrain", "--gpu", "1").endswith("there is no option --gpu.")


@pytest.mark.parametrize("word", ["--help", "--help_all"])
def test_every_command_of_training_has_both(word, capsys):
    for command in ("adapt", "compare"):
        with pytest.raises(SystemExit):
            cli.main([command, word])
        assert ("--adam_beta1" in capsys.readouterr().out) == (word == "--help_all"), command


def test_every_command_is_there():
    assert all(callable(getattr(cli, name)) for name in simmim_cli.COMMANDS)
    assert list(cli.COMMANDS) == list(simmim_cli.COMMANDS)


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["pre-train"])
    assert stop.value.code == 2 and "pre-train" in capsys.readouterr().err


@pytest.mark.parametrize("error", [None, Interrupted, FloatingPointError])
def test_threads_of_several_processes_have_time_to_end(error, monkeypatch):
    waits = []
    monkeypatch.setattr(cli.time, "sleep", waits.append)
    with pytest.raises(error) if error else contextlib.nullcontext(), cli.letting_threads_end():
        if error:
            raise error
    assert not waits, "one process has no such threads"
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(error) if error else contextlib.nullcontext(), cli.letting_threads_end():
            if error:
                raise error
    finally:
        distributed.destroy_process_group()
    assert waits == [1]


PRINT = "import simmim_cli; simmim_cli.keep_output_from_ending_the_run(); print('河' * 100_000); print('the end')"


@pytest.mark.parametrize("options", [[], ["-u"]])
@pytest.mark.parametrize("full", [True, False])
def test_output_that_nobody_can_read_ends_nothing(options, full):
    if full and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "wb") if full else open(writing, "wb") as output:
        command = [sys.executable, *options, "-c", PRINT]
        ended = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, env=environment(), text=True)
    warning = "simmim: standard output cannot be written (No space left on device): it is left out.\n"
    assert (ended.returncode, ended.stderr) == (0, warning if full else "")


def test_a_character_that_the_terminal_does_not_have_is_escaped():
    ended = run_python("-c", PRINT, env=environment(PYTHONIOENCODING="ascii"))
    assert ended.stdout.startswith(r"\u6cb3\u6cb3") and ended.stdout.endswith("the end\n")


@pytest.mark.slow
def test_a_run_keeps_its_model_and_its_exit_code_where_nothing_can_be_printed(tmp_path):
    """The tokenizer prints from Rust, and aborted; the texts of neighbours have characters that ASCII has not."""
    river = "老河在小石桥下流过绿色的鸟在安静的水面上歌唱"
    lines = [river[i % 20 :] + river[: i % 7] + str(i) for i in range(60)]
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    backbone = json.dumps({"model_type": "bert", **TINY})
    words = ["--train_file", tmp_path / "text.txt", "--text_config", backbone, "--vocab_size", 100, "--max_steps", 1]
    words += ["--per_device_train_batch_size", 4, "--use_cpu", "--output_dir", tmp_path / "run"]
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:
        command = [sys.executable, "-m", "simmim_hf.cli", "pretrain", *map(str, words)]
        environ = environment(PYTHONIOENCODING="ascii")
        ended = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, env=environ, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run/model.safetensors").exists() and (tmp_path / "run/README.md").exists()
