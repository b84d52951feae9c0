"""A killed run resumes with the same losses, and a step that is not finite changes nothing."""

import json
import os
import signal
import traceback
from pathlib import Path

import pytest
import torch
from helpers import run_python
from trainers import (
    METRICS,
    TERMS,
    fixed_batch,
    make_model,
    make_texts,
    make_tokenizer,
    make_trainer,
    rows_with,
    tokenized,
)
from transformers import Trainer, TrainerCallback

from simmim_hf import DataCollatorForSimMIM, SimMIMForPreTraining, SimMIMTrainer

pytestmark = pytest.mark.slow  # it trains

# name -> options of TrainingArguments and of `resumable_trainer`, the step after which the process is killed.
# An epoch has 6 steps, the last one with a short batch; checkpoints are at 4, 8 and 12.
RESUMES = {
    "middle of an epoch": ({}, 10),
    "epoch boundary": ({"train_sampling_strategy": "group_by_length", "save_steps": 6}, 8),
    "accumulation": ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}, 10),
    "workers": ({"train_sampling_strategy": "group_by_length", "dataloader_num_workers": 2}, 10),
    "stream": ({"stream": True}, 10),
}


class Kill(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def resumable_trainer(folder, callbacks=(), stream=False, **options) -> Trainer:
    data = tokenized(make_texts(44 if not stream else 144))
    if stream:
        data, options = data.to_iterable_dataset(), {"max_steps": 12, **options}
    collator = DataCollatorForSimMIM(make_tokenizer())
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 4, **options}
    return make_trainer(
        *(folder, SimMIMTrainer, make_model("fused", dropout=0.1), data, collator),
        callbacks=list(callbacks),
        **options,
    )


def start(function, *args, **kwargs) -> int:
    """The id of a copy of this process that only runs `function`."""
    pid = os.fork()
    if pid == 0:
        try:
            function(*args, **kwargs)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def exit_status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_and_write(folder: Path, run: str, checkpoint: bool, options: dict, callbacks=()) -> None:
    trainer = resumable_trainer(folder / run, callbacks, **options)
    trainer.train(resume_from_checkpoint=checkpoint)
    (folder / f"{run}.json").write_text(json.dumps(trainer.state.log_history))


def run_and_kill_and_resume(folder: Path) -> None:
    """For each of `RESUMES` an unbroken run, and one that is killed and goes on in another process."""
    for name, (options, step) in RESUMES.items():
        where = folder / name
        where.mkdir()
        unbroken = start(run_and_write, where, "unbroken", False, options)
        killed = start(run_and_write, where, "resumed", False, options, [Kill(step)])
        statuses = [exit_status(unbroken), exit_status(killed)]
        statuses.append(exit_status(start(run_and_write, where, "resumed", True, options)))
        (where / "statuses.json").write_text(json.dumps(statuses))


@pytest.fixture(scope="module")
def resumes(tmp_path_factory):
    """Its results; in a process of its own, so that the forks start before torch has threads."""
    folder = tmp_path_factory.mktemp("resumes")
    code = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; import pathlib, torch, test_resuming\n"
    code += f"torch.set_num_threads(1)\ntest_resuming.run_and_kill_and_resume(pathlib.Path({str(folder)!r}))"
    return folder, run_python("-c", code).stderr


@pytest.mark.parametrize("name", RESUMES)
def test_a_killed_run_resumes_with_the_same_losses(resumes, name):
    folder, errors = resumes
    assert json.loads((folder / name / "statuses.json").read_text()) == [0, -signal.SIGKILL, 0], errors
    histories = [json.loads((folder / name / f"{run}.json").read_text()) for run in ("unbroken", "resumed")]
    unbroken, resumed = ([row for row in history if "loss" in row] for history in histories)
    assert [row["step"] for row in unbroken] == [row["step"] for row in resumed] == list(range(1, 13))
    for expected, row in zip(unbroken, resumed):
        for key in ("loss", "learning_rate", *TERMS, *METRICS):
            assert row[key] == pytest.approx(expected[key], abs=1e-6), (key, row["step"])
    assert len({row["loss"] for row in unbroken}) == 12


def test_every_checkpoint_has_the_collator(tmp_path):
    collator = DataCollatorForSimMIM(make_tokenizer(), mlm_probability=0.2, mean_mask_span=2.0, seed=3)
    make_trainer(tmp_path, collator=collator, max_steps=2, save_strategy="steps", save_steps=1).train()
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        assert (folder / "data_collator_config.json").exists()
        loaded = DataCollatorForSimMIM.from_pretrained(folder)
        assert (loaded.mlm_probability, loaded.mean_mask_span, loaded.seed) == (0.2, 2.0, 3)
        fresh = DataCollatorForSimMIM(make_tokenizer(), mlm_probability=0.2, mean_mask_span=2.0, seed=3)
        ours, theirs = loaded(make_texts(5)), fresh(make_texts(5))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class Poison(TrainerCallback):
    """Makes the embeddings, or only their gradient, not-a-number in these steps; keeps what training has before."""

    def __init__(self, steps, gradient: bool = False):
        self.steps, self.gradient = steps, gradient

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        if state.global_step + 1 not in self.steps:
            return
        self.before = training_state(model, optimizer)
        embeddings = model.simmim.encoder.embeddings
        if self.gradient:
            self.hook = embeddings.word_embeddings.weight.register_hook(lambda gradient: gradient * float("nan"))
        else:
            self.hook = embeddings.register_forward_hook(lambda *args: args[-1] * float("nan"))

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        if state.global_step in self.steps:
            self.hook.remove()
            self.after = training_state(model, optimizer)


def training_state(model, optimizer) -> list[torch.Tensor]:
    moments = [tensor for state in optimizer.state.values() for tensor in state.values()]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *moments)]


@pytest.mark.parametrize(("accumulation", "gradient"), [(1, False), (2, False), (1, True)])
def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, accumulation, gradient):
    poison = Poison([4, 5], gradient)
    options = {"max_steps": 8, "gradient_accumulation_steps": accumulation, "logging_steps": 2}
    trainer = make_trainer(tmp_path, callbacks=[poison], **options)
    trainer.train()
    assert all(torch.equal(*pair) for pair in zip(poison.before, poison.after, strict=True))
    assert [row.get("skipped_steps") for row in rows_with(trainer, "loss")] == [None, 1, 1, None]
    assert all(torch.tensor([row["loss"], row["mlm_loss"]]).isfinite().all() for row in rows_with(trainer, "loss"))
    assert not all(torch.equal(a, b) for a, b in zip(poison.after, trainer.model.parameters()))


def test_a_training_that_ends_in_such_steps_is_no_training(tmp_path):
    with pytest.raises(FloatingPointError, match=r"not finite at step 4, nor in the 1 before"):
        make_trainer(tmp_path, callbacks=[Poison([3, 4])], max_steps=4).train()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_too_many_such_steps_stop_before_the_weights_change(tmp_path, accumulation):
    poison = Poison(range(4, 9))
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": accumulation}
    trainer = make_trainer(tmp_path, callbacks=[poison], **options)
    trainer.args.max_skipped_steps = 1
    with pytest.raises(FloatingPointError, match=r"not finite at step 5, nor in the 1 before"):
        trainer.train()
    for ours, theirs in zip(trainer.model.parameters(), poison.before):
        assert torch.equal(ours, theirs)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    loaded = SimMIMForPreTraining.from_pretrained(tmp_path / "checkpoint-4")
    assert loaded(**fixed_batch([5, 7])).loss.isfinite()
