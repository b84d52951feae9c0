"""The commands on several processes, as users start them: they train the model that one process trains."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import EXAMPLES, TINY, corpus_lines, environment, launch, run_python, torchrun
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from simmim_hf import SimMIMForMaskedLM  # noqa: F401  registers what the saved folders hold

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parents[1] / "launched_commands.py"
FSDP = Path(__file__).parents[1] / "fsdp_on_cpu.py"
COMMAND = ("-m", "simmim_hf.cli")
BACKBONE = json.dumps({**TINY, "model_type": "modernbert", "hidden_size": 32})
# 67 rows in batches of 16: 3 rows are left at the end of a pass, fewer than four processes.
ROWS, BATCH = 67, 16

CASES = {
    "clm": ["--objective", "clm"],
    "mlm": ["--objective", "mlm"],
    "simcse": ["--objective", "simcse", "--dropout", "1e-9"],
    "simmim": ["--objective", "simmim"],
    "fused": ["--objective", "fused"],
    "spans": ["--objective", "spans"],
    "snippets": ["--objective", "snippets"],
    "in chunks": ["--objective", "spans", "--chunk_size", "3"],
    "accumulated": ["--objective", "fused", "--gradient_accumulation_steps", "2"],
    "streamed": ["--objective", "snippets", "--streaming", "--max_steps", "9"],
    "in random order": [
        "--objective",
        "spans",
        "--train_sampling_strategy",
        "random",
        "--dataloader_num_workers",
        "1",
    ],
}
BY_FOUR = ("fused", "snippets", "in chunks", "streamed")
HELD_OUT = (7, 30, 1000)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A folder with the training text, and a held-out text of each number of lines."""
    folder = tmp_path_factory.mktemp("text")
    lines = corpus_lines(ROWS + max(HELD_OUT))
    (folder / "train.txt").write_text("\n".join(lines[:ROWS]))
    for count in HELD_OUT:
        (folder / f"held-out-{count}.txt").write_text("\n".join(lines[ROWS : ROWS + count]))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory, text) -> Path:
    """A sentence-transformers model to adapt."""
    folder = tmp_path_factory.mktemp("source")
    words = pretrain(text, folder / "encoder", "--objective", "mlm", "--max_steps", "1", "--text_config", TINY_BERT)
    run_python(*COMMAND, *words)
    run_python(*COMMAND, "export", "--model", folder / "encoder", "--to", "backbone", "--output_dir", folder / "plain")
    model = Transformer(str(folder / "plain"))
    SentenceTransformer(modules=[model, Pooling(model.get_embedding_dimension())], device="cpu").save(
        str(folder / "st")
    )
    return folder / "st"


TINY_BERT = json.dumps({**TINY, "model_type": "bert", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})


def pretrain(text: Path, output: Path, *more: str, processes: int = 1, held_out: int = 30) -> list[str]:
    files = ["--train_file", text / "train.txt", "--validation_file", text / f"held-out-{held_out}.txt"]
    small = ["--text_config", BACKBONE, "--vocab_size", "300", "--use_cpu", "--report_to", "none"]
    batches = ["--per_device_train_batch_size", BATCH // processes, "--per_device_eval_batch_size", "8"]
    steps = ["--num_train_epochs", "2", "--logging_steps", "1", "--output_dir", output]
    return [*map(str, ["pretrain", *files, *small, *batches, *steps, *more])]


def run_commands(processes: int, folder: Path, commands: list[list[str]], **options) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    (folder / "commands.json").write_text(json.dumps(commands))
    return torchrun(processes, WORKER, folder / "commands.json", folder, timeout=600, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, text, source):
    """A function from a number of processes to the folder of what they trained and measured, each made once."""
    made = {}

    def made_by(processes: int) -> Path:
        if processes not in made:
            folder = tmp_path_factory.mktemp(f"by-{processes}")
            made[processes] = folder
            cases = {4: BY_FOUR, 3: ()}.get(processes, CASES)
            commands = [pretrain(text, folder / case, *CASES[case], processes=processes) for case in cases]
            if processes < 4:
                for rows in HELD_OUT:
                    output = folder / f"measured-{rows}"
                    commands.append(pretrain(text, output, "--max_steps", "1", held_out=rows))
            if processes < 3:
                adapted = pretrain(text, folder / "adapted", processes=processes, held_out=30)[1:]
                del adapted[adapted.index("--text_config") : adapted.index("--use_cpu")]
                commands.append(["adapt", "--model_name_or_path", str(source), *adapted])
            run_commands(processes, folder, commands)
        return made[processes]

    return made_by


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    ("case", "processes"), [*((case, 2) for case in (*CASES, "adapted-simmim")), *((case, 4) for case in BY_FOUR)]
)
def test_processes_train_the_model_of_one(runs, case, processes):
    alone, together = runs(1), runs(processes)
    name = case if "adapted" in case else f"{{folder}}-{case}"
    expected = torch.load(alone / f"{name.format(folder=alone.name)}-0.pt")
    weights = [torch.load(together / f"{name.format(folder=together.name)}-{rank}.pt") for rank in range(processes)]
    for other in weights[1:]:
        assert all(torch.equal(other[key], weights[0][key]) for key in expected), "the processes have other weights"
    assert difference(weights[0], expected) < 1e-5
    folder = case.replace("-", "/")
    ours, theirs = results(together / folder), results(alone / folder)
    assert ours["steps"] == theirs["steps"]
    assert ours["tokens_read"] == theirs["tokens_read"]
    for moment in ("before", "after"):
        assert ours[moment] == pytest.approx(theirs[moment], abs=1e-5)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("rows", HELD_OUT)
def test_held_out_figures_are_those_of_one_process(runs, processes, rows):
    ours, theirs = (results(runs(count) / f"measured-{rows}")["before"] for count in (processes, 1))
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert ours["contrastive_accuracy"] > 0


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate launch"])
def test_the_command_itself(runs, text, tmp_path, launcher):
    words = [*COMMAND, *pretrain(text, tmp_path / "run", *CASES["snippets"], processes=2)]
    torchrun(2, *words) if launcher == "torchrun" else launch(*words)
    weights, expected = (load_file(run / "model.safetensors") for run in (tmp_path / "run", runs(1) / "snippets"))
    assert difference(weights, expected) < 1e-5


def test_fsdp_trains_the_model_of_one_process(runs, text, tmp_path):
    words = pretrain(text, tmp_path / "run", *CASES["snippets"], processes=2)
    words.remove("--use_cpu")
    torchrun(2, FSDP, *words)
    assert_same_run(tmp_path / "run", runs(1) / "snippets")


def test_a_head_is_not_warmed_up_in_shards(text, source, tmp_path):
    words = pretrain(text, tmp_path / "run", processes=2)[1:]
    del words[words.index("--text_config") : words.index("--use_cpu") + 1]
    process = torchrun(2, FSDP, "adapt", "--model_name_or_path", source, *words, check=False)
    assert "--head_warmup 0.1: FSDP and DeepSpeed prepare a model once" in process.stderr


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_trains_the_model_of_one_process(runs, text, tmp_path, stage):
    pytest.importorskip("deepspeed", reason="needs deepspeed, which is no dependency: pip install deepspeed")
    settings = json.loads((EXAMPLES / "accelerate_configs" / "deepspeed.json").read_text())
    settings["zero_optimization"]["stage"] = stage
    (tmp_path / "zero.json").write_text(json.dumps(settings))
    more = [*CASES["snippets"], "--deepspeed", tmp_path / "zero.json"]
    torchrun(2, *COMMAND, *pretrain(text, tmp_path / "run", *more, processes=2))
    assert_same_run(tmp_path / "run", runs(1) / "snippets")


def assert_same_run(ours: Path, theirs: Path) -> None:
    weights, expected = (load_file(run / "model.safetensors") for run in (ours, theirs))
    assert difference(weights, expected) < 1e-5
    logs = [json.loads((run / "trainer_state.json").read_text())["log_history"] for run in (ours, theirs)]
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for moment in ("before", "after"):
        assert results(ours)[moment] == pytest.approx(results(theirs)[moment], abs=1e-4)


def test_two_processes_resume_exactly(runs, text, tmp_path):
    saved = pretrain(text, tmp_path / "whole", *CASES["snippets"], "--save_steps", "6", processes=2)
    resumed = pretrain(text, tmp_path / "resumed", *CASES["snippets"], "--save_steps", "6", processes=2)
    checkpoint = tmp_path / "whole" / "checkpoint-6"
    more = ["--resume_from_checkpoint", str(checkpoint)]
    run_commands(2, tmp_path / "kept", [saved, [*resumed, *more]])
    weights, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("resumed", "whole"))
    assert difference(weights, expected) == 0
    assert results(tmp_path / "resumed")["before"] == results(tmp_path / "whole")["before"]


def test_an_elastic_restart_ends_with_the_weights_of_the_unbroken_run(runs, text, tmp_path):
    more = [*CASES["snippets"], "--save_steps", "2", "--resume_from_checkpoint", "last_if_any"]
    (tmp_path / "kept").mkdir()
    variables = {"KILL_AT": "5", "SIGNAL": "SIGKILL", "MARK": str(tmp_path / "mark")}
    command = pretrain(text, tmp_path / "run", *more, processes=2)
    run_commands(2, tmp_path / "kept", [command], launcher=["--max-restarts", "1"], variables=variables)
    assert (tmp_path / "mark").exists()
    assert results(tmp_path / "run")["resumed_at_step"] == 4
    weights, expected = (load_file(run / "model.safetensors") for run in (tmp_path / "run", runs(1) / "snippets"))
    assert difference(weights, expected) < 1e-5


class Processes:
    """Two processes of a command without a launcher, as slurm.sh starts them; each has its own command line."""

    def __init__(self, folder: Path, commands: list[list[str]], **variables):
        self.folder = folder
        self.processes = []
        for rank, command in enumerate(commands):
            (folder / f"{rank}.json").write_text(json.dumps([command]))
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port(folder))}
            words = [sys.executable, WORKER, folder / f"{rank}.json", folder]
            with open(folder / f"{rank}.log", "w") as log:
                env = environment(GLOO_SOCKET_IFNAME="lo", **place, **variables)
                self.processes.append(subprocess.Popen(words, env=env, stdout=log, stderr=log))

    def end(self, rank: int) -> tuple[int, str]:
        """The exit code of a process and the line of the command's own in what it wrote."""
        try:
            code = self.processes[rank].wait(timeout=120)
        finally:
            for process in self.processes:
                if process is not self.processes[rank] and rank == 0 and process.poll() is None:
                    process.send_signal(signal.SIGCONT)
                    process.kill()
        lines = (self.folder / f"{rank}.log").read_text().replace("\r", "\n").splitlines()
        assert not any("Traceback" in line for line in lines)
        return code, next(line for line in lines if "simmim pretrain:" in line)


def free_port(folder: Path) -> int:
    """One port for all processes of a folder."""
    import socket

    file = folder / "port"
    if not file.exists():
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            file.write_text(str(listener.getsockname()[1]))
    return int(file.read_text())


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_a_lost_process_ends_the_others_in_one_line(text, tmp_path, name):
    command = pretrain(text, tmp_path / "run", "--ddp_timeout", "5", processes=2)
    started = time.monotonic()
    both = Processes(tmp_path, [command] * 2, KILL_AT="5", SIGNAL=name, MARK=str(tmp_path / "mark"))
    code, said = both.end(0)
    assert code == 1
    assert "another one has ended or has not answered for --ddp_timeout seconds" in said
    assert time.monotonic() - started < 120


@pytest.mark.parametrize("what", ["options", "text"])
def test_processes_that_differ_are_told_before_the_first_step(text, tmp_path, what):
    command = pretrain(text, tmp_path / "run", processes=2)
    (tmp_path / "other.txt").write_text("\n".join(corpus_lines(ROWS)[::-1]))
    more = {"options": ["--learning_rate", "0.1"], "text": ["--train_file", str(tmp_path / "other.txt")]}
    both = Processes(tmp_path, [command, [*command, *more[what]]])
    ends = [both.end(rank) for rank in (1, 0)]
    difference_of = {"options": "in learning_rate: 0.1 instead of 0.0005", "text": "in training: "}
    said = f"process 1 differs from process 0 {difference_of[what]}"
    for code, line in ends:
        assert code in (1, 2)
        assert said in line or "another one has ended" in line
    assert any(said in line for _, line in ends)


def test_evaluate_runs_once(source, tmp_path):
    rows = [{"sentence1": line, "sentence2": line, "score": i} for i, line in enumerate(corpus_lines(4))]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["evaluate", "--model", source, "--tasks", tmp_path / "pairs.jsonl", "--output_dir", tmp_path / "out"]
    process = torchrun(2, *COMMAND, *words)
    assert process.stdout.count("Spearman") == 1, process.stdout
    assert results(tmp_path / "out")
