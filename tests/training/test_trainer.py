"""Training with the plain Trainer, with SimMIMTrainer and in a plain Accelerate loop, on the CPU."""

import json
import os
import random
import signal
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from helpers import run_python
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import BertTokenizer, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from simmim_hf import DataCollatorForSimMIM, SimMIMConfig, SimMIMForPreTraining, SimMIMTrainer
from simmim_hf.training import trainer as trainer_module
from simmim_hf.training.trainer import SimilarLengthSampler, TimeLimit

WORDS = [f"w{i}" for i in range(40)]
TERMS = {"mlm_loss": "mlm_weight", "contrastive_loss": "contrastive_weight", "clm_loss": "clm_weight"}
QUANTITIES = ("mlm_accuracy", "contrastive_accuracy", "alignment", "uniformity")


def make_tokenizer() -> BertTokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})


def make_model(objective: str = "simmim", dropout: float = 0.0, **options) -> SimMIMForPreTraining:
    torch.manual_seed(0)
    text_config = {
        **{"model_type": "bert", "vocab_size": 5 + len(WORDS), "hidden_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 24, "pad_token_id": 0},
        **{"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout},
    }
    return SimMIMForPreTraining(SimMIMConfig.from_objective(objective, text_config=text_config, **options))


def make_texts(count: int = 44, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 16))) for _ in range(count)]


def tokenized(texts: list[str]) -> Dataset:
    ids = make_tokenizer()(texts)["input_ids"]
    return Dataset.from_dict({"input_ids": ids, "length": [len(row) for row in ids]})


def make_trainer(folder, trainer_class=SimMIMTrainer, model=None, dataset=None, collator=None, **options) -> Trainer:
    """A Trainer with 8 sequences in a batch; `options` are those of TrainingArguments, and `callbacks`."""
    callbacks, eval_dataset = options.pop("callbacks", None), options.pop("eval_dataset", None)
    defaults = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    defaults |= {"per_device_train_batch_size": 8, "save_strategy": "no", "logging_steps": 1, "learning_rate": 3e-3}
    return trainer_class(
        model=model or make_model(),
        args=TrainingArguments(**{**defaults, **options}),
        train_dataset=Dataset.from_dict({"text": make_texts()}) if dataset is None else dataset,
        eval_dataset=eval_dataset,
        data_collator=collator or DataCollatorForSimMIM(make_tokenizer()),
        callbacks=callbacks,
    )


def rows_with(trainer: Trainer, key: str) -> list[dict]:
    return [row for row in trainer.state.log_history if key in row]


def losses(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in rows_with(trainer, "loss")]


class Spy(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(gradients_of(model))


def gradients_of(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def furthest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of gradients."""
    assert ours.keys() == theirs.keys() and len(theirs)
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


# ------------------------------------------------------------------------------------------------- the plain Trainer


@pytest.mark.slow
def test_plain_trainer_learns_evaluates_and_saves(tmp_path):
    data = tokenized(make_texts(8) * 4)
    trainer = make_trainer(tmp_path, Trainer, dataset=data, eval_dataset=data, max_steps=40, eval_strategy="epoch")
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < before - 0.5
    assert sum(losses(trainer)[-5:]) < sum(losses(trainer)[:5]) - 2.5
    trainer.save_model()
    loaded = SimMIMForPreTraining.from_pretrained(tmp_path)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name
    batch = fixed_batch([5, 9])
    with torch.no_grad():
        assert loaded(**batch).loss == trainer.model.eval()(**batch).loss


@pytest.mark.parametrize("trainer_class", [Trainer, SimMIMTrainer])
def test_evaluation_gathers_no_outputs_of_the_model(tmp_path, trainer_class):
    data = tokenized(make_texts(12))
    trainer = make_trainer(tmp_path, trainer_class, make_model("fused"), eval_dataset=data)
    output = trainer.evaluation_loop(trainer.get_eval_dataloader(), "evaluation")
    assert output.predictions is None or len(output.predictions) == 0


# --------------------------------------------------------------------------------------------------- what is logged


@pytest.mark.parametrize("objective", ["clm", "mlm", "simcse", "simmim", "fused"])
def test_every_term_is_logged_and_the_loss_is_their_weighted_sum(tmp_path, objective):
    weights = {"mlm_weight": 0.5, "contrastive_weight": 2.0, "clm_weight": 0.25}
    preset = SimMIMConfig.from_objective(objective)
    weights = {name: weight for name, weight in weights.items() if getattr(preset, name)}
    terms = [term for term, weight in TERMS.items() if weight in weights]
    expected = [*terms, *(["mlm_accuracy"] if "mlm_loss" in terms else [])]
    expected += QUANTITIES[1:] if "contrastive_loss" in terms else []
    trainer = make_trainer(
        *(tmp_path, SimMIMTrainer, make_model(objective, dropout=0.1, **weights)),
        **{"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 8},
        eval_dataset=Dataset.from_dict({"text": make_texts(8, seed=1)}),
    )
    trainer.train()
    rows = rows_with(trainer, "loss")
    assert len(rows) == 4
    for row in rows:
        assert set(expected) <= row.keys() and row["tokens_per_second"] > 0
        assert set(row).isdisjoint({*TERMS, *QUANTITIES} - set(expected))
        assert row["loss"] == pytest.approx(sum(weights[TERMS[term]] * row[term] for term in terms), abs=1e-5)
    evaluations = rows_with(trainer, "eval_loss")
    assert len(evaluations) == 2
    for row in evaluations:
        assert {f"eval_{name}" for name in expected} <= row.keys()
        total = sum(weights[TERMS[term]] * row[f"eval_{term}"] for term in terms)
        assert row["eval_loss"] == pytest.approx(total, abs=1e-5)


def test_the_logged_quantities_are_those_of_the_batch(tmp_path):
    model, batch = make_model(), DataCollatorForSimMIM(make_tokenizer())(make_texts(8))
    with torch.no_grad():
        outputs = model(**batch)
    x = torch.nn.functional.normalize(outputs.original_embeds, dim=-1)
    y = torch.nn.functional.normalize(outputs.masked_embeds, dim=-1)
    distances = torch.pdist(x).square()
    trainer = ready_trainer(tmp_path, [batch], model=model)
    trainer.train()
    row = rows_with(trainer, "loss")[0]
    expected = {"alignment": (x - y).square().sum(-1).mean(), "uniformity": (-2 * distances).exp().mean().log()}
    expected |= {name: outputs[name] for name in ("loss", "mlm_loss", "contrastive_loss", "mlm_accuracy")}
    for name, value in expected.items():
        assert row[name] == pytest.approx(value.item(), abs=1e-4), name


def test_terms_and_evaluation_are_in_tensorboard(tmp_path):
    data = Dataset.from_dict({"text": make_texts(16)})
    options = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "report_to": "tensorboard"}
    trainer = make_trainer(tmp_path, model=make_model("fused"), dataset=data, eval_dataset=data, **options)
    trainer.train()
    files = list(tmp_path.rglob("events.out.tfevents*"))
    tags = {}
    for file in files:
        events = EventAccumulator(str(file)).Reload()
        tags |= {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for name in ("loss", *TERMS, *QUANTITIES):
        assert len(tags[f"train/{name}"]) == len(tags[f"eval/{name}"]) == 2, name
        logged = [row[name] for row in rows_with(trainer, "loss")]
        assert [event.value for event in tags[f"train/{name}"]] == pytest.approx(logged, rel=1e-5)
    assert len(tags["train/tokens_per_second"]) == 2


def test_log_intervals_average_over_things_and_not_over_batches(tmp_path):
    batches = [fixed_batch([4, 4]), fixed_batch([9, 9, 9], corrupted=5, seed=5)]
    trainer = ready_trainer(tmp_path, batches, max_steps=2, logging_steps=2, learning_rate=0.0)
    trainer.train()
    outputs = [make_model()(**batch) for batch in batches]
    row = rows_with(trainer, "loss")[0]
    mean = sum(output.mlm_loss * (batch["labels"] != -100).sum() for output, batch in zip(outputs, batches))
    assert row["mlm_loss"] == pytest.approx(mean.item() / (2 * 1 + 3 * 5), abs=1e-5)
    mean = (2 * outputs[0].contrastive_loss + 3 * outputs[1].contrastive_loss) / 5
    assert row["contrastive_loss"] == pytest.approx(mean.item(), abs=1e-5)


# ---------------------------------------------------------------------------------------------------- kinds of data


def test_hard_negatives_from_a_dataset_of_strings(tmp_path):
    seen = []
    model = make_model()
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    data = Dataset.from_dict({"text": make_texts(16), "negative": make_texts(16, seed=2), "unused": [1] * 16})
    make_trainer(tmp_path, model=model, dataset=data, max_steps=1).train()
    assert {"negative_input_ids", "negative_attention_mask"} <= seen[0]


@pytest.mark.parametrize("trainer_class", [Trainer, SimMIMTrainer])
def test_streaming(tmp_path, trainer_class):
    def rows():
        for text in make_texts(20):
            yield {"text": text}

    stream = IterableDataset.from_generator(rows)
    trainer = make_trainer(tmp_path, trainer_class, dataset=stream, max_steps=5, remove_unused_columns=False)
    trainer.train()
    assert len(losses(trainer)) == 5


@pytest.mark.slow
def test_workers(tmp_path):
    here = make_trainer(tmp_path / "0", max_steps=7, train_sampling_strategy="sequential")
    workers = make_trainer(
        *(tmp_path / "2",), max_steps=7, train_sampling_strategy="sequential", dataloader_num_workers=2
    )
    here.train(), workers.train()
    assert losses(here) == pytest.approx(losses(workers), abs=1e-6)


def test_bfloat16(tmp_path):
    trainer = make_trainer(tmp_path, model=make_model("fused", dropout=0.1), bf16=True, max_steps=3)
    trainer.train()
    assert len(losses(trainer)) == 3 and all(torch.tensor(losses(trainer)).isfinite())
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_gradient_checkpointing_recomputes_and_changes_nothing(tmp_path):
    batch, runs = fixed_batch(range(4, 12)), {}
    for checkpointing in (False, True):
        model, calls, spy = make_model("fused"), [], Spy()
        layer = model.simmim.encoder.encoder.layer[0].attention
        layer.register_forward_hook(lambda *args, calls=calls: calls.append(1))
        options = {"gradient_checkpointing": checkpointing, "max_steps": 1, "callbacks": [spy], "max_grad_norm": 0.0}
        ready_trainer(tmp_path, [batch], model=model, **options).train()
        runs[checkpointing] = spy.gradients[0], len(calls)
    assert furthest(runs[True][0], runs[False][0]) < 1e-6
    assert runs[True][1] >= runs[False][1] + 2  # the siamese pass and the causal one, once more each


# -------------------------------------------------------------------------------------------- gradient accumulation


def fixed_batch(lengths, corrupted: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of these lengths, each with the same number of corrupted positions."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(list(lengths))
    mask = (torch.arange(lengths.max()) < lengths[:, None]).long()
    ids = torch.randint(5, 5 + len(WORDS), mask.shape, generator=generator) * mask
    chosen = (torch.arange(lengths.max()) < corrupted).expand(mask.shape) & mask.bool()
    labels = ids.masked_fill(~chosen, -100)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "masked_input_ids": ids.masked_fill(chosen, 4),
    }


def first_feature(features: list[dict]) -> dict:
    """The collator of ready batches."""
    return features[0]


def ready_trainer(folder, batches, trainer_class=SimMIMTrainer, model=None, **options) -> Trainer:
    """Trains on ready batches in their order."""
    options = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 1, "max_steps": 1, **options}
    return make_trainer(folder, trainer_class, model, dataset=list(batches), collator=first_feature, **options)


def join(batches: list[dict]) -> dict[str, torch.Tensor]:
    """Several batches as one."""
    length = max(batch["input_ids"].shape[1] for batch in batches)
    fill = {"labels": -100}
    return {
        name: torch.cat(
            [
                torch.nn.functional.pad(batch[name], (0, length - batch[name].shape[1]), value=fill.get(name, 0))
                for batch in batches
            ]
        )
        for name in batches[0]
    }


EQUAL = [fixed_batch([4, 6, 8, 6], 2, seed) for seed in range(4)]
UNEQUAL = [
    *(fixed_batch([3, 12], 1, 0), fixed_batch([5, 5, 6, 7, 8, 9], 4, 1)),
    *(fixed_batch([12, 4, 5], 2, 2), fixed_batch([7, 11, 9, 8, 10], 3, 3)),
]


def reference(objective: str, batches: list[dict]) -> tuple[dict[str, torch.Tensor], float]:
    """The gradients and loss of all batches at once; only the negatives stay those of each batch."""
    model = make_model(objective).train()
    config, whole = model.config, join(batches)
    loss = 0.0
    if config.contrastive_weight:
        total = sum(model(**batch).contrastive_loss * len(batch["input_ids"]) for batch in batches)
        loss = loss + config.contrastive_weight * total / len(whole["input_ids"])
    if config.mlm_weight:
        loss = loss + config.mlm_weight * model(**whole).mlm_loss
    if config.clm_weight:
        loss = loss + config.clm_weight * model(**whole).clm_loss
    loss.backward()
    return gradients_of(model), loss.item()


def accumulated(folder, trainer_class, objective: str, batches: list[dict]) -> tuple[dict[str, torch.Tensor], float]:
    """The gradients that a Trainer gives to its optimizer, and the loss it logs."""
    spy = Spy()
    options = {"gradient_accumulation_steps": len(batches), "max_grad_norm": 0.0, "callbacks": [spy]}
    trainer = ready_trainer(folder, batches, trainer_class, make_model(objective), **options)
    trainer.train()
    assert len(spy.gradients) == 1
    return spy.gradients[0], losses(trainer)[0]


@pytest.mark.parametrize(
    ("trainer_class", "objective"),
    [(Trainer, "fused"), *((SimMIMTrainer, objective) for objective in ("mlm", "clm", "simmim", "fused"))],
)
def test_accumulation_over_equal_batches_is_exact(tmp_path, trainer_class, objective):
    gradients, loss = reference(objective, EQUAL)
    ours, logged = accumulated(tmp_path, trainer_class, objective, EQUAL)
    assert furthest(ours, gradients) < 1e-5
    assert logged == pytest.approx(loss, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mlm", "clm", "simcse", "simmim", "fused"])
def test_accumulation_over_unequal_batches_is_exact_in_simmim_trainer_only(tmp_path, objective):
    gradients, loss = reference(objective, UNEQUAL)
    ours, logged = accumulated(tmp_path / "ours", SimMIMTrainer, objective, UNEQUAL)
    plain, _ = accumulated(tmp_path / "plain", Trainer, objective, UNEQUAL)
    assert furthest(ours, gradients) < 1e-5
    assert logged == pytest.approx(loss, abs=1e-5)
    assert furthest(plain, gradients) > 1e-3


def test_a_short_last_accumulation_is_exact(tmp_path):
    spy = Spy()
    options = {"gradient_accumulation_steps": 4, "num_train_epochs": 1, "max_steps": -1, "max_grad_norm": 0.0}
    batches = [*EQUAL, *UNEQUAL[:2]]
    ready_trainer(tmp_path, batches, model=make_model(), learning_rate=0.0, callbacks=[spy], **options).train()
    assert len(spy.gradients) == 2
    assert furthest(spy.gradients[1], reference("simmim", UNEQUAL[:2])[0]) < 1e-5


def test_accumulation_in_an_accelerate_loop_is_exact(fresh_accelerator):
    accelerator = Accelerator(gradient_accumulation_steps=4, cpu=True)
    model = accelerator.prepare(make_model())
    steps = []
    for batch in EQUAL:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            if accelerator.sync_gradients:
                steps.append(gradients_of(model))
    assert len(steps) == 1
    assert furthest(steps[0], reference("simmim", EQUAL)[0]) < 1e-5


# ----------------------------------------------------------------------------------------- checkpoints and resuming

# name -> options of TrainingArguments and of `resumable_trainer`, the step after which the process is killed.
# An epoch has 6 steps, the last one with a short batch; checkpoints are at 4, 8, 12 and 16.
RESUMES = {
    "random": ({}, 10),
    "group_by_length": ({"train_sampling_strategy": "group_by_length"}, 10),
    "schedule": ({"mlm_probability": (0.15, 0.5)}, 10),
    "schedule, epoch boundary": (
        {"mlm_probability": (0.15, 0.5), "train_sampling_strategy": "group_by_length"},
        14,
    ),
    "schedule, accumulation": (
        {"mlm_probability": (0.15, 0.5), "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        10,
    ),
    "schedule, workers": ({"mlm_probability": (0.15, 0.5), "dataloader_num_workers": 2}, 10),
    "schedule, stream": ({"mlm_probability": (0.15, 0.5), "stream": True}, 10),
}


class Kill(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def resumable_trainer(folder, callbacks=(), mlm_probability=0.3, stream=False, **options) -> Trainer:
    data = tokenized(make_texts(44 if not stream else 144))
    if stream:
        data, options = data.to_iterable_dataset(), {"max_steps": 18, **options}
    collator = DataCollatorForSimMIM(make_tokenizer(), mlm_probability=mlm_probability)
    options = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 4, **options}
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
    code = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; import pathlib, torch, test_trainer\n"
    code += f"torch.set_num_threads(1)\ntest_trainer.run_and_kill_and_resume(pathlib.Path({str(folder)!r}))"
    return folder, run_python("-c", code).stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMES)
def test_a_killed_run_resumes_with_the_same_losses(resumes, name):
    folder, errors = resumes
    assert json.loads((folder / name / "statuses.json").read_text()) == [0, -signal.SIGKILL, 0], errors
    histories = [json.loads((folder / name / f"{run}.json").read_text()) for run in ("unbroken", "resumed")]
    unbroken, resumed = ([row for row in history if "loss" in row] for history in histories)
    assert [row["step"] for row in unbroken] == [row["step"] for row in resumed] == list(range(1, 19))
    for expected, row in zip(unbroken, resumed):
        for key in ("loss", "learning_rate", *TERMS, *QUANTITIES):
            assert row[key] == pytest.approx(expected[key], abs=1e-6), (key, row["step"])
    assert len({row["loss"] for row in unbroken}) == 18


def test_every_checkpoint_has_the_collator(tmp_path):
    collator = DataCollatorForSimMIM(make_tokenizer(), mlm_probability=(0.2, 0.4), mean_span_length=2.0, seed=3)
    make_trainer(tmp_path, collator=collator, max_steps=2, save_strategy="steps", save_steps=1).train()
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        assert (folder / "data_collator_config.json").exists()
        loaded = DataCollatorForSimMIM.from_pretrained(folder)
        assert (loaded.mlm_probability, loaded.mean_span_length, loaded.seed) == ((0.2, 0.4), 2.0, 3)
        fresh = DataCollatorForSimMIM(make_tokenizer(), mlm_probability=(0.2, 0.4), mean_span_length=2.0, seed=3)
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


# ---------------------------------------------------------------------------------------- sampling, schedule, limit


@pytest.mark.parametrize("rows, batch_size", [(103, 8), (96, 8), (5, 8), (8, 8), (1, 4), (500, 3)])
def test_similar_length_sampler_gives_every_index_once(rows, batch_size):
    lengths = random.Random(0).choices(range(3, 60), k=rows)
    sampler = SimilarLengthSampler(batch_size, lengths, seed=7)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert sorted(epochs[-1]) == list(range(rows)) and len(sampler) == rows
        assert list(sampler) == epochs[-1]
        again = SimilarLengthSampler(batch_size, lengths, seed=7)
        again.set_epoch(epoch)
        assert list(again) == epochs[-1]
    other = SimilarLengthSampler(batch_size, lengths, seed=100)
    if rows > batch_size:
        assert len({tuple(epoch) for epoch in [*epochs, list(other)]}) == 4


def test_similar_length_sampler_puts_like_to_like():
    rng = random.Random(0)
    lengths = rng.choices(range(3, 60), k=803)
    sampler = SimilarLengthSampler(8, lengths, seed=0)

    def spread(order):
        batches = [[lengths[i] for i in order[start : start + 8]] for start in range(0, 800, 8)]
        return sum(max(batch) - min(batch) for batch in batches) / len(batches), [max(batch) for batch in batches]

    order = list(sampler)
    grouped, longest = spread(order)
    assert grouped < spread(rng.sample(range(803), 803))[0] / 4
    assert longest[0] == max(lengths)
    assert longest != sorted(longest, reverse=True)  # batches come in random order
    # A short batch is the last one: the batches before it are the groups, not parts of two.
    batches = [[lengths[i] for i in order[start : start + 8]] for start in range(0, 803, 8)]
    assert len(batches[-1]) == 3


def test_group_by_length_uses_the_sampler(tmp_path):
    options = {"train_sampling_strategy": "group_by_length", "max_steps": 1, "data_seed": 5}
    trainer = make_trainer(tmp_path, dataset=tokenized(make_texts()), **options)
    sampler = trainer._get_train_sampler()
    assert type(sampler) is SimilarLengthSampler and sampler.seed == 5 and sampler.batch_size == 8
    assert type(sampler.lengths) is list  # a column of a dataset gives its numbers one by one in minutes
    trainer.train()
    assert len(losses(trainer)) == 1


def test_time_limit(tmp_path):
    trainer = make_trainer(tmp_path / "short", callbacks=[TimeLimit(0.0)], max_steps=5)
    trainer.train()
    assert trainer.state.global_step == 1
    trainer = make_trainer(tmp_path / "long", callbacks=[TimeLimit(60.0)], max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("seconds_a_step", [1.0, 5.0], ids=["fast enough", "too slow"])
def test_schedules_end_with_the_time(tmp_path, monkeypatch, seconds_a_step):
    """20 steps and 30 seconds, of a clock that steps move: schedules of steps, or all of them within the time."""
    now, weights = [0.0], []
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            weights.append(trainer.current_objective().contrastive_weight)
            now[0] += seconds_a_step

    trainer = make_trainer(tmp_path, callbacks=[Clock(), TimeLimit(0.5)], lr_scheduler_type="linear", max_steps=20)
    trainer.args.weight_schedule = {"contrastive_weight": [(0, 0.1), (0.5, 0.1), (1, 1)]}
    trainer.train()
    rates = [row["learning_rate"] / 3e-3 for row in rows_with(trainer, "learning_rate")]
    if seconds_a_step == 1:
        assert rates == pytest.approx([1 - step / 20 for step in range(20)])
        assert weights == pytest.approx([max(0.1, 0.1 + 0.9 * (step / 10 - 1)) for step in range(20)])
    else:  # six steps; from a fifth of the time on they stand where the time stands, the rate a step behind
        assert rates == pytest.approx([1, 0.95, 0.9, 0.65, 0.45, 0.3])
        assert weights == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.37, 0.64])


def test_the_time_limit_leaves_out_what_it_is_told_to():
    limit, control = TimeLimit(1 / 60), TrainerControl()
    args = TrainingArguments("unused", use_cpu=True)
    state = TrainerState(max_steps=10)
    limit.on_train_begin(args, state, control)
    limit.extend(-2)
    limit.extend(2.5)
    limit.on_step_end(args, state, control)
    assert not control.should_training_stop
    limit.extend(-3)
    limit.on_step_end(args, state, control)
    assert control.should_training_stop


def test_several_gpus_without_a_launcher_are_one(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=8, report_to="none")
    args._n_gpu = 2  # as transformers sets it where there are two and one process
    trainer = SimMIMTrainer(make_model(), args, DataCollatorForSimMIM(make_tokenizer()))
    assert trainer.args.n_gpu == 1 and trainer._train_batch_size == 8


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_conflict_of_the_terms_is_logged_on_cuda(tmp_path):
    model, args = make_model(), TrainingArguments(str(tmp_path), max_steps=2, logging_steps=1, report_to="none")
    trainer = SimMIMTrainer(
        model,
        args,
        DataCollatorForSimMIM(make_tokenizer()),
        Dataset.from_dict({"text": make_texts()}),
        conflict_steps=1,
    )
    trainer.train()
    assert all(-1 <= row["gradient_cosine"] <= 1 for row in rows_with(trainer, "gradient_cosine"))
    assert len(rows_with(trainer, "gradient_cosine")) == 2


class Shares(DataCollatorForSimMIM):
    """Keeps the share of the words that it corrupts in each batch."""

    def __post_init__(self):
        super().__post_init__()
        self.shares = []

    def __call__(self, features):
        batch = super().__call__(features)
        words = batch["input_ids"] >= 5
        self.shares.append(((batch["labels"] != -100).sum() / words.sum()).item())
        return batch


@pytest.mark.slow
def test_the_mask_schedule_runs_from_start_to_end_and_evaluation_uses_the_end(tmp_path):
    data = Dataset.from_dict({"text": [" ".join(WORDS[:16])] * 48})
    runs = {}
    for name, options in (("plain", {}), ("evaluated", {"eval_strategy": "steps", "eval_steps": 1})):
        collator = Shares(make_tokenizer(), mlm_probability=(0.1, 0.9))
        options = {"num_train_epochs": 2, "eval_dataset": data, **options}
        trainer = make_trainer(tmp_path / name, dataset=data, collator=collator, **options)
        trainer.train()
        runs[name] = losses(trainer)
        expected = [0.1 + 0.8 * step / 12 for step in range(12)]
        assert collator.shares == pytest.approx(expected, abs=0.04)
        for batch in trainer.get_eval_dataloader():
            share = (batch["labels"] != -100).sum() / (batch["input_ids"] >= 5).sum()
            assert share.item() == pytest.approx(0.9, abs=0.04)
        assert len(collator.shares) == 12
    assert runs["plain"] == pytest.approx(runs["evaluated"], abs=1e-6)


def test_prediction_leaves_the_mask_schedule_alone(tmp_path):
    data = Dataset.from_dict({"text": [" ".join(WORDS[:16])] * 16})
    collator = Shares(make_tokenizer(), mlm_probability=(0.1, 0.9))
    trainer = make_trainer(tmp_path, dataset=data, collator=collator)
    for batch in trainer.get_test_dataloader(data):
        share = (batch["labels"] != -100).sum() / (batch["input_ids"] >= 5).sum()
        assert share.item() == pytest.approx(0.9, abs=0.04)
    assert not collator.shares
