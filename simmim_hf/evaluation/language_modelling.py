"""Language modelling as a measurement: masked tokens, pseudo-perplexity (Salazar et al. 2020) and next tokens.

All three predict some positions of a sequence, so each is made of rows: the ids that are read, and the labels.
"""

from dataclasses import dataclass

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

# Token logits that are in memory together.
LOGITS_AT_ONCE = 2**26


@dataclass
class LanguageModel:
    """A model that gives token logits, and what it can be asked for.

    Args:
        model: gives `logits` (batch, length, vocab)
        options: further arguments of its forward for each thing it has learned, `"masked"` or `"causal"`
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
    if config.model_type == SimMIMConfig.model_type:
        is_decoder = "SimMIMForCausalLM" in (config.architectures or ())
        options = {} if config.objective.is_causal else {"masked": {"is_causal": False}}
        if config.clm_weight > 0 or is_decoder:
            options["causal"] = {"is_causal": True}
        auto_class = AutoModelForMaskedLM
    elif auto_class := class_with_head(config):
        options = {"masked": {}} if auto_class is AutoModelForMaskedLM else {"causal": {}}
    else:
        raise ValueError(f"the model `{name_or_path}` is a `{config.model_type}`, which has no language-model head.")
    model, missing = load_with_missing(auto_class, name_or_path)
    if missing:
        raise ValueError(
            f"the checkpoint `{name_or_path}` has no language-model head ({', '.join(missing[:3])} are missing): "
            "leave out the tasks that are plain text, or give a checkpoint with its masked-LM head."
        )
    return LanguageModel(model.to(device), options)


def masked_rows(
    ids: list[list[int]], tokenizer: PreTrainedTokenizerBase, mlm_probability: float, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Corrupted copies and their labels, (length,) each: those of a text depend on it and the seed alone.

    Raises:
        ValueError: a share of corrupted tokens out of range, or a tokenizer without a mask; also where `ids` is empty.
    """
    collator = DataCollatorForSimMIM(tokenizer, mlm_probability=mlm_probability, seed=seed)
    batches = (collator([{"input_ids": row}]) for row in ids)  # one by one: its masks then depend on no other text
    return [(batch["masked_input_ids"][0].numpy(), batch["labels"][0].numpy()) for batch in batches]


def one_mask_rows(ids: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[tuple[np.ndarray, np.ndarray]]:
    """A copy of each text for each of its tokens, with that token masked and to be predicted."""
    special, rows = set(tokenizer.all_special_ids), []
    for row in map(np.asarray, ids):
        for position in (i for i, token in enumerate(row) if token not in special):
            masked, labels = row.copy(), np.full_like(row, IGNORE_INDEX)
            masked[position], labels[position] = tokenizer.mask_token_id, row[position]
            rows.append((masked, labels))
    return rows


def next_token_rows(ids: list[list[int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each text, with its next token to be predicted at each position; texts of one token are left out."""
    return [(np.asarray(row), np.asarray([*row[1:], IGNORE_INDEX])) for row in ids if len(row) > 1]


def predict_tokens(
    model: PreTrainedModel, rows: list[tuple[np.ndarray, np.ndarray]], batch_size: int, desc: str, **options
) -> tuple[float, float]:
    """The mean cross-entropy in nats, and the accuracy, of the tokens that are to be predicted; NaN if there are none.

    Args: see `predict_rows`
    """
    total, correct, count = (column.sum() for column in predict_rows(model, rows, batch_size, desc, **options))
    return (float(total / count), float(correct / count)) if count else (np.nan, np.nan)


@torch.no_grad()
def predict_rows(
    model: PreTrainedModel, rows: list[tuple[np.ndarray, np.ndarray]], batch_size: int, desc: str, **options
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The summed cross-entropy in nats of the tokens of each row that are to be predicted, how many of these are
    predicted right, and how many there are, (rows,) each.

    Args:
        model: gives `logits` (batch, length, vocab)
        rows: input ids and labels, (length,) each; -100 where nothing is to be predicted
        batch_size: fewer rows are read at a time where their logits would take too much memory
        desc: title of the progress bar
        options: further arguments of the model's forward
    """
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row][0]))
    found, start = np.zeros((3, len(rows))), 0
    with logging.tqdm(total=len(rows), desc=desc) as progress:
        while start < len(rows):
            length = len(rows[order[start]][0])
            size = max(1, min(batch_size, LOGITS_AT_ONCE // (length * model.config.vocab_size)))
            read = order[start : start + size]
            batch = [rows[row] for row in read]
            input_ids, mask, labels = np.zeros((3, len(batch), length), dtype=np.int64)  # (batch, length) each
            labels += IGNORE_INDEX
            for i, (row, targets) in enumerate(batch):
                input_ids[i, : len(row)], mask[i, : len(row)], labels[i, : len(row)] = row, 1, targets
            input_ids, mask, labels = (torch.from_numpy(part).to(model.device) for part in (input_ids, mask, labels))
            predicted = labels != IGNORE_INDEX
            logits = model(input_ids=input_ids, attention_mask=mask, **options).logits[predicted]  # (tokens, vocab)
            targets = labels[predicted]  # (tokens,)
            losses = cross_entropy(logits.float(), targets, reduction="none")  # (tokens,)
            for i, of_tokens in enumerate((losses, logits.argmax(-1) == targets, torch.ones_like(losses))):
                of_positions = losses.new_zeros(labels.shape).masked_scatter(predicted, of_tokens.float())
                found[i, read] = of_positions.sum(1).cpu()  # (batch,)
            start += len(batch)
            progress.update(len(batch))
    return tuple(found)


def surprises(
    language_model: LanguageModel, ids: list[list[int]], tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> np.ndarray:
    """How improbable a model finds texts: minus the pseudo-log-likelihood of Salazar et al. 2020, in which each token
    is predicted from all others, or, of a model that reads from left to right only, minus the log-likelihood.

    Args:
        ids: of the texts, special tokens included

    Returns:
        (texts,), in nats
    """
    is_masked = "masked" in language_model.options
    options = language_model.options["masked" if is_masked else "causal"]
    rows_of_texts = [one_mask_rows([row], tokenizer) if is_masked else next_token_rows([row]) for row in ids]
    rows = [row for rows in rows_of_texts for row in rows]
    losses, *_ = predict_rows(language_model.model, rows, batch_size, "Each token predicted", **options)
    owners = np.repeat(np.arange(len(ids)), [len(rows) for rows in rows_of_texts])  # (rows,)
    return np.bincount(owners, weights=losses, minlength=len(ids))


def unigram_cross_entropy(train: Dataset, held_out: Dataset, tokenizer: PreTrainedTokenizerBase) -> float:
    """The MLM loss, in nats a token, of a model that knows only how frequent each token is in the training text.

    Args:
        train, held_out: with a column `input_ids`; special tokens do not count
    """
    train_counts, counts = (
        np.bincount(np.concatenate(text.with_format("numpy")["input_ids"][:]), minlength=len(tokenizer))
        for text in (train, held_out)
    )  # (vocab,) each
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    train_counts, counts = train_counts[ordinary] + 1, counts[ordinary]  # a token that was never seen has a chance
    return float(-(counts * np.log(train_counts / train_counts.sum())).sum() / counts.sum())
