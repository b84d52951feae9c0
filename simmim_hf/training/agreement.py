"""Several processes train one model: they begin with the same options, text and weights, and stay together."""

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

from .sharding import is_sharded

# Arguments that are a process's own: where it runs, and what it writes there.
OF_ONE_PROCESS = ("local_rank", "logging_dir", "output_dir", "run_name", "hub_token")
LONGEST_VALUE = 100  # characters of a value in a message

# What gloo, NCCL and the store of torch say where another process is gone; it comes as a plain RuntimeError.
LOST = re.compile(
    r"Connection closed by peer|Connection reset by peer|Broken pipe|Timed out waiting|[Tt]imed out after|NCCL|"
    r"[Ss]ocket [Tt]imeout|Connection was likely closed|Application timeout"
)


class ProcessesDiffer(Exception):
    """The processes of a run do not train the same model."""


class ProcessLost(Exception):
    """Another process of the run ended, or does not answer any more."""


def check_start(trainer: Trainer) -> None:
    """Compares what has to be the same in all processes before the first step.

    Raises:
        ProcessesDiffer: something is not; raised in every process.
    """
    if not is_distributed():
        return
    facts: dict = {}
    for part in trainer.record["meaning"].values():
        facts |= part
    facts |= trainer.args.to_dict()
    for name in OF_ONE_PROCESS:
        facts.pop(name, None)
    facts["first streamed row"] = _first_row(trainer.train_dataset)
    if not is_sharded(trainer):  # where only one process may have loaded them so far
        facts["first weights"] = checksum(trainer.model)
    _compare(facts)


class SameWeights(TrainerCallback):
    """Compares the weights of all processes after the first step: they differ where gradients were not averaged."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.first_step = state.global_step + 1

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if is_distributed() and state.global_step == self.first_step and not is_sharded(self.trainer):
            _compare({f"weights after step {state.global_step}": checksum(self.trainer.model)})


def checksum(model: torch.nn.Module) -> list[int]:
    """The sum of the bits of each parameter, by which equal models are equal and others hardly ever."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = []
    for parameter in model.parameters():
        bits = parameter.detach().contiguous().view(integers[parameter.element_size()])
        sums.append(bits.sum(dtype=torch.int64))
    return torch.stack(sums).tolist()


def leave_store_of_earlier_start() -> None:
    """Lets processes that torchrun has restarted find each other by a store of their own.

    Since torch 2.5 they share one store with the start before, and connect to addresses of processes that are gone
    (pytorch/pytorch#135712). On several machines, whose counts of restarts differ, only the launcher can help:
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not (restart and shares_store and os.environ.get("GROUP_WORLD_SIZE") == "1"):
        return
    shared = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    name = f"simmim_hf/port of restart {restart}"
    if os.environ["RANK"] == "0":
        with socket.socket() as listener:
            listener.bind(("", 0))
            shared.set(name, str(listener.getsockname()[1]))
    os.environ["MASTER_PORT"] = shared.get(name).decode()  # waits for process 0
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextlib.contextmanager
def noticing_lost_processes() -> Iterator[None]:
    """Makes an error of communication a `ProcessLost` of one line."""
    try:
        yield
    except RuntimeError as error:
        if not (is_distributed() and (isinstance(error, dist.DistError) or LOST.search(str(error)))):
            raise
        raise ProcessLost(
            f"process {dist.get_rank()} of {dist.get_world_size()} ends: another one has ended or has not answered "
            "for --ddp_timeout seconds: its own message says why. The same command with --resume_from_checkpoint last "
            "goes on from the last checkpoint."
        ) from error


def _compare(facts: dict) -> None:
    """Raises `ProcessesDiffer` in every process where a fact is not that of process 0."""
    mine = json.loads(json.dumps(facts, default=str))
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    for rank, theirs in enumerate(everyone):
        for name, value in everyone[0].items():
            if theirs.get(name) != value:
                raise ProcessesDiffer(
                    f"process {rank} differs from process 0 in {name}: {_shown(theirs.get(name))} instead of "
                    f"{_shown(value)}. All processes need the same options, the same text and the same versions: "
                    "start them with one command."
                )


def _shown(value) -> str:
    words = str(value)
    if len(words) <= LONGEST_VALUE:
        return words
    return f"{words[:LONGEST_VALUE]} ..."


def _first_row(dataset) -> str | None:
    """What a stream begins with, which has no fingerprint."""
    if not isinstance(dataset, IterableDataset):
        return None
    return str(next(iter(dataset), None))
