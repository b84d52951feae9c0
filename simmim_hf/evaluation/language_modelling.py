"""Language modelling as a measurement: masked tokens, pseudo-perplexity (Salazar et al. 2020) and next tokens.

All three predict some positions of a sequence, so each is made of rows: the ids that are read, and the labels.
"""

import itertools
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.collator import IGNORE_INDEX, DataCollatorForSimMIM
from ..model.backbones import class_with_head
from ..model.configuration_simmim import SimMIMConfig
from .encoding import load_with_missing, text_encoder_config

# The most logits in memory together.
LOGITS_AT_ONCE = 2**26

Row: TypeAlias = tuple[
    np.ndarray, np.ndarray
]  # input ids and labels, (length,) each; -100 where nothing is to be predicted


@dataclass
class LanguageModel:
    """A model that gives token logits, and the directions in which it predicts.

    Args:
        model: gives `logits` (batch, length, vocab)
        options: further arguments of its forward by direction, `"masked"` or `"causal"`, as far as it has learned them
    """

    model: PreTrainedModel
    options: dict[str, dict]


def load_language_model(name_or_path: str, device: str | torch.device = "cpu") -> LanguageModel:
    """The model with its language-model head on a device, and the directions that its checkpoint has learned.

    Raises:
        ValueError: a checkpoint without such a head.
        OSError: there is no such model.
    """
    config = text_encoder_config(name_or_path)
    options: dict[str, dict] = {}
    if config.model_type == SimMIMConfig.model_type:
        auto_class = AutoModelForMaskedLM
        if not config.objective.is_causal:
            options["masked"] = {"is_causal": False}
        if config.clm_weight > 0 or "SimMIMForCausalLM" in (config.architectures or ()):
            options["causal"] = {"is_causal": True}
    else:
        auto_class = class_with_head(config)
        if auto_class is None:
            raise ValueError(
                f"the model `{name_or_path}` is a `{config.model_type}`, which has no language-model head."
            )
        direction = "masked" if auto_class is AutoModelForMaskedLM else "causal"
        options[direction] = {}
    model, missing = load_with_missing(auto_class, name_or_path)
    if missing:
        raise ValueError(
            f"the checkpoint `{name_or_path}` has no language-model head ({', '.join(missing[:3])} are missing): "
            "leave out the tasks that are plain text, or give a checkpoint with its masked-LM head."
        )
    return LanguageModel(model.to(device), options)


def masked_rows(
    ids: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    mlm_probability: float,
    seed: int,
) -> list[Row]:
    """Corrupted copies and their labels, (length,) each: those of a text depend on it and the seed alone.

    Raises:
        ValueError: a share of corrupted tokens out of range, or a tokenizer without a mask; also where `ids` is empty.
    """
    collator = DataCollatorForSimMIM(tokenizer, mlm_probability=mlm_probability, seed=seed)
    rows = []
    for row in ids:
        batch = collator([{"input_ids": row}])  # one by one, so that its masks depend on no other text
        masked = batch["masked_input_ids"][0].numpy()  # (1, length) -> (length,)
        labels = batch["labels"][0].numpy()
        rows.append((masked, labels))
    return rows


def one_mask_rows(ids: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """A copy of each text for each of its tokens, with that token masked and to be predicted."""
    special = set(tokenizer.all_special_ids)
    rows = []
    for row in map(np.asarray, ids):
        for position, token in enumerate(row):
            if token in special:
                continue
            masked = row.copy()
            masked[position] = tokenizer.mask_token_id
            labels = np.full_like(row, IGNORE_INDEX)
            labels[position] = token
            rows.append((masked, labels))
    return rows


def next_token_rows(ids: list[list[int]]) -> list[Row]:
    """Each text, with its next token to be predicted at each position; texts of one token are left out."""
    rows = []
    for row in ids:
        if len(row) > 1:
            labels = [*row[1:], IGNORE_INDEX]
            rows.append((np.asarray(row), np.asarray(labels)))
    return rows


def predict_tokens(
    model: PreTrainedModel,
    rows: list[Row],
    batch_size: int,
    desc: str,
    **options,
) -> tuple[float, float]:
    """The mean cross-entropy in nats, and the accuracy, of the tokens that are to be predicted; NaN if there are none.

    Args: see `predict_rows`
    """
    losses, hits, counts = predict_rows(model, rows, batch_size, desc, **options)
    count = counts.sum()
    if not count:
        return np.nan, np.nan
    return float(losses.sum() / count), float(hits.sum() / count)


@torch.no_grad()
def predict_rows(
    model: PreTrainedModel,
    rows: list[Row],
    batch_size: int,
    desc: str,
    **options,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The summed cross-entropy in nats of the tokens of each row that are to be predicted, how many of these are
    predicted right, and how many there are, (rows,) each.

    Args:
        model: gives `logits` (batch, length, vocab)
        rows: of `masked_rows`, `one_mask_rows` or `next_token_rows`
        batch_size: fewer rows are read at a time where their logits would take too much memory
        desc: title of the progress bar
        options: further arguments of the model's forward
    """
    losses = np.zeros(len(rows))
    hits = np.zeros(len(rows))
    counts = np.zeros(len(rows))
    lengths = [len(ids) for ids, _ in rows]
    order = sorted(range(len(rows)), key=lambda row: -lengths[row])  # the longest first: little padding
    start = 0
    with logging.tqdm(total=len(rows), desc=desc) as progress:
        while start < len(rows):
            length = lengths[order[start]]
            fitting = LOGITS_AT_ONCE // (length * model.config.vocab_size)
            size = max(1, min(batch_size, fitting))
            read = order[start : start + size]  # the rows of this batch
            input_ids, mask, labels = _pad([rows[row] for row in read], length, model.device)  # (batch, length) each
            predicted = labels != IGNORE_INDEX
            logits = model(input_ids=input_ids, attention_mask=mask, **options).logits[predicted]  # (tokens, vocab)
            targets = labels[predicted]  # (tokens,)
            token_losses = cross_entropy(logits.float(), targets, reduction="none")  # (tokens,)
            token_hits = logits.argmax(-1) == targets  # (tokens,)
            losses[read] = _sum_by_row(token_losses, predicted)  # (tokens,) -> (batch,)
            hits[read] = _sum_by_row(token_hits, predicted)
            counts[read] = predicted.sum(1).cpu()
            start += len(read)
            progress.update(len(read))
    return losses, hits, counts


def _pad(
    rows: list[Row],
    length: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input ids, attention mask and labels of rows, (batch, length) each."""
    shape = (len(rows), length)
    input_ids: np.ndarray = np.zeros(shape, dtype=np.int64)
    mask: np.ndarray = np.zeros(shape, dtype=np.int64)
    labels: np.ndarray = np.full(shape, IGNORE_INDEX, dtype=np.int64)
    for i, (ids, targets) in enumerate(rows):
        input_ids[i, : len(ids)] = ids
        mask[i, : len(ids)] = 1
        labels[i, : len(ids)] = targets
    return tuple(torch.from_numpy(array).to(device) for array in (input_ids, mask, labels))


def _sum_by_row(of_tokens: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Values of the predicted tokens (tokens,) summed over each row (batch,)"""
    of_positions = torch.zeros(predicted.shape, dtype=torch.float32, device=predicted.device)  # (batch, length)
    return of_positions.masked_scatter(predicted, of_tokens.float()).sum(1).cpu()


def surprises(
    language_model: LanguageModel,
    ids: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
) -> np.ndarray:
    """The surprise of a model at texts: minus the pseudo-log-likelihood of Salazar et al. 2020, in which each token
    is predicted from all others, or, of a model that reads from left to right only, minus the log-likelihood.

    Args:
        ids: of the texts, special tokens included

    Returns:
        (texts,), in nats
    """
    if "masked" in language_model.options:
        options = language_model.options["masked"]
        rows_of_texts = [one_mask_rows([row], tokenizer) for row in ids]
    else:
        options = language_model.options["causal"]
        rows_of_texts = [next_token_rows([row]) for row in ids]
    rows = list(itertools.chain.from_iterable(rows_of_texts))
    losses, _, _ = predict_rows(language_model.model, rows, batch_size, "Each token predicted", **options)  # (rows,)
    counts = [len(rows) for rows in rows_of_texts]
    text_of_row: np.ndarray = np.repeat(np.arange(len(ids)), counts)  # (texts,) -> (rows,)
    return np.bincount(text_of_row, weights=losses, minlength=len(ids))  # (rows,) -> (texts,)


def unigram_cross_entropy(
    train: Dataset,
    held_out: Dataset,
    tokenizer: PreTrainedTokenizerBase,
) -> float:
    """The MLM loss, in nats a token, of a model that knows only how frequent each token is in the training text.

    Args:
        train, held_out: with a column `input_ids`; special tokens do not count
    """
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    counts = _token_counts(held_out, len(tokenizer))[ordinary]  # (ordinary tokens,)
    train_counts = _token_counts(train, len(tokenizer))[ordinary] + 1  # smoothed: an unseen token has a chance
    log_probabilities = np.log(train_counts / train_counts.sum())
    return float(-(counts * log_probabilities).sum() / counts.sum())


def _token_counts(text: Dataset, vocab_size: int) -> np.ndarray:
    """(vocab,)"""
    ids = np.concatenate(text.with_format("numpy")["input_ids"][:])
    return np.bincount(ids, minlength=vocab_size)
