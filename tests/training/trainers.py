"""What tests of the Trainer share: a tiny model, texts, ready batches, and Trainers of them."""

import random

import torch
from datasets import Dataset
from transformers import BertTokenizer, Trainer, TrainerCallback, TrainingArguments

from simmim_hf import DataCollatorForSimMIM, SimMIMConfig, SimMIMForPreTraining, SimMIMTrainer

WORDS = [f"w{i}" for i in range(40)]
TERMS = {"mlm_loss": "mlm_weight", "contrastive_loss": "contrastive_weight", "clm_loss": "clm_weight"}
METRICS = ("mlm_accuracy", "contrastive_accuracy", "alignment", "uniformity")


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
