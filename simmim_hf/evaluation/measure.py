"""Measuring an encoder on one task: what `simmim evaluate` does for each of its tasks, callable from a script."""

import math
import random
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..data import tokenization
from . import language_modelling, metrics
from .bootstrap import Sampled
from .encoding import encode
from .tasks import Task

# Geometry is that of so many texts at most: it compares all of them with each other.
GEOMETRY_TEXTS = 2000
# A row for each token of each sentence: so many pairs are in memory together.
PAIRS_AT_ONCE = 1000
# Pairs in the top fifth of the scores' range belong together: those above 4 on the scale from 0 to 5, as in
# Gao et al. 2021 (SimCSE).
BELONG_TOGETHER = 0.8


def measure(task: Task, encoder: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, **options) -> dict:
    """The values that `measure_with_samples` finds, with the same arguments."""
    return measure_with_samples(task, encoder, tokenizer, **options)[0]


def measure_with_samples(
    task: Task,
    encoder: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    language_model: language_modelling.LanguageModel | None = None,
    batch_size: int = 64,
    mlm_probability: float = 0.15,
    max_samples: int = 100,
    seed: int = 42,
) -> tuple[dict[str, float | int | None], dict[str, Sampled]]:
    """Everything that a task tells about an encoder. Neither the order of its rows nor the batch size changes a value.

    Args:
        task: see `load_task`
        encoder: see `load_encoder`; also a SimMIM model with a head
        tokenizer: with a padding token
        max_length: longer texts are truncated to this many tokens
        language_model: see `load_language_model`; needed only for plain text and minimal pairs
        batch_size: texts that are read at a time
        mlm_probability: share of corrupted tokens in plain text
        max_samples: texts for the pseudo-perplexity, which reads a text once for each of its tokens; 0: none
        seed: of masks, folds and samples

    Returns:
        The values by their keys in `quantities.QUANTITIES`, None where one is undefined; and by the same keys those
        that can be computed of a sample of the pairs, queries or labelled texts, in the same order for every model.

    Raises:
        ValueError: plain text or minimal pairs without a language model.
        FloatingPointError: the encoder gives vectors that are not finite.
    """
    if task.needs_head and language_model is None:
        raise ValueError(
            f"the task `{task.name}` is plain text or minimal pairs: give a language_model, see `load_language_model`."
        )
    vectors = TextVectors(task.texts(), encoder, tokenizer, max_length, batch_size)
    values, samples = {
        "similarity": partial(_similarity, task, vectors),
        "retrieval": partial(_retrieval, task, vectors),
        "transfer": partial(_transfer, task, vectors, seed),
        "minimal pairs": partial(_minimal_pairs, task, language_model, tokenizer, max_length, batch_size),
        "language modelling": partial(
            _plain_text, task, language_model, tokenizer, max_length, batch_size, mlm_probability, max_samples, seed
        ),
    }[task.kind]()
    values |= _geometry(task, vectors, tokenizer, max_length, seed)
    values = {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}
    return values, samples


class TextVectors:
    """The vectors of texts, by text: the same text has the same vector wherever it stands.

    Args:
        texts: in any order, also repeated
        encoder, tokenizer, max_length, batch_size: see `measure`

    Raises:
        FloatingPointError: a vector that is not finite.
    """

    def __init__(self, texts: Iterable[str], encoder, tokenizer, max_length: int, batch_size: int):
        self.texts = sorted(set(texts))
        self.rows = {text: row for row, text in enumerate(self.texts)}
        options = {"normalize": False, "show_progress": True}
        self.vectors = encode(encoder, self.texts, tokenizer, max_length, batch_size, **options)  # (texts, dim)
        if not np.isfinite(self.vectors).all():
            raise FloatingPointError("the vectors that the model gives are not finite.")

    def __getitem__(self, texts: Iterable[str]) -> np.ndarray:
        """(texts, dim)"""
        return self.vectors[[self.rows[text] for text in texts]]


def similarity_spearman(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Dataset, max_length: int
) -> float:
    """Spearman correlation x 100 of cosines with human scores.

    Args:
        model, tokenizer, max_length: see `encode`
        pairs: rows with `sentence1`, `sentence2` and `score`

    Raises:
        ValueError: see `metrics.check_scores`.
    """
    first = encode(model, list(pairs["sentence1"]), tokenizer, max_length)  # (pairs, dim)
    second = encode(model, list(pairs["sentence2"]), tokenizer, max_length)
    return metrics.similarity_metrics((first * second).sum(1), pairs["score"][:])["spearman"]


def similarity_samples(first: np.ndarray, second: np.ndarray, scores: Sequence[float]) -> dict[str, Sampled]:
    """`spearman` and `pearson` as functions of the pairs.

    Args:
        first, second: (pairs, dim), on the unit sphere
        scores: (pairs,), of humans

    Raises:
        ValueError: see `metrics.check_scores`.
    """
    columns = (first * second).sum(1, dtype=np.float64), metrics.check_scores(scores)  # (pairs,) each
    return {name: Sampled(correlation, columns) for name, correlation in metrics.CORRELATIONS.items()}


def retrieval_samples(queries: np.ndarray, documents: np.ndarray, **ids) -> dict[str, Sampled]:
    """The metrics of `metrics.retrieval_values`, with the same arguments, as functions of the queries."""
    found = metrics.retrieval_values(queries, documents, **ids)
    return {name: Sampled(np.mean, (of_queries,)) for name, of_queries in found.items()}


def _values(samples: dict[str, Sampled]) -> dict[str, float]:
    return {name: sampled.value() for name, sampled in samples.items()}


def _similarity(task: Task, vectors: TextVectors) -> tuple[dict, dict[str, Sampled]]:
    sides = (metrics.on_the_sphere(vectors[task.test[column]]) for column in ("sentence1", "sentence2"))
    samples = similarity_samples(*sides, task.test["score"][:])
    return {"pairs": len(task.test), **_values(samples)}, samples


def _retrieval(task: Task, vectors: TextVectors) -> tuple[dict, dict[str, Sampled]]:
    queries, documents = task.test["query"][:], task.test["document"][:]
    samples = retrieval_samples(vectors[queries], vectors[documents], query_ids=queries, document_ids=documents)
    return {"queries": len(set(queries)), "documents": len(set(documents)), **_values(samples)}, samples


def _transfer(task: Task, vectors: TextVectors, seed: int) -> tuple[dict, dict[str, Sampled]]:
    parts = [_by_text(rows) for rows in (task.train, task.test) if rows is not None]
    columns = [column for texts, labels in parts for column in (vectors[texts], labels)]
    hits = metrics.transfer_hits(*columns, seed=seed)
    samples = {"accuracy": Sampled(lambda *hits: metrics.accuracy_metrics(*hits)["accuracy"], hits)}
    return {"texts": sum(len(texts) for texts, _ in parts), **metrics.accuracy_metrics(*hits)}, samples


def _minimal_pairs(
    task: Task, language_model, tokenizer, max_length: int, batch_size: int
) -> tuple[dict, dict[str, Sampled]]:
    """How often the model finds the good sentence of a pair more probable, as BLiMP has it (Warstadt et al. 2020)."""

    def surprises(column: str, start: int) -> np.ndarray:
        texts = task.test[column][start : start + PAIRS_AT_ONCE]
        ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        return language_modelling.surprises(language_model, ids, tokenizer, batch_size)

    starts = range(0, len(task.test), PAIRS_AT_ONCE)
    good, bad = (
        np.concatenate([surprises(column, start) for start in starts]) for column in ("sentence_good", "sentence_bad")
    )  # (pairs,) each
    samples = {"minimal_pairs_accuracy": Sampled(np.mean, (100.0 * (good < bad),))}
    return {"pairs": len(task.test), **_values(samples)}, samples


def _plain_text(
    task: Task, language_model, tokenizer, max_length, batch_size, mlm_probability, max_samples, seed
) -> tuple[dict, dict[str, Sampled]]:
    def predict(direction: str, rows: list, desc: str) -> tuple[float, float]:
        options = language_model.options[direction]
        return language_modelling.predict_tokens(language_model.model, rows, batch_size, desc, **options)

    rows, _ = tokenization.tokenize(task.test, tokenizer, max_length, long_texts="truncate")
    truncated = sum(len(whole) > max_length for whole in tokenizer(task.test["text"][:], verbose=False)["input_ids"])
    ids = rows["input_ids"][:]
    values = {"texts": len(ids), "tokens": sum(map(len, ids)), "truncated": truncated}
    if "masked" in language_model.options:
        masked = language_modelling.masked_rows(ids, tokenizer, mlm_probability, seed)
        values["mlm_loss"], values["mlm_accuracy"] = predict("masked", masked, "Masked tokens")
        if max_samples:
            one_by_one = language_modelling.one_mask_rows(_draw(ids, max_samples, seed), tokenizer)
            values["pseudo_perplexity"] = float(np.exp(predict("masked", one_by_one, "Each token masked")[0]))
    if "causal" in language_model.options:
        loss, _ = predict("causal", language_modelling.next_token_rows(ids), "Next tokens")
        values |= {"clm_loss": loss, "perplexity": float(np.exp(loss))}
    if task.train is not None:
        train, _ = tokenization.tokenize(task.train, tokenizer, max_length, long_texts="truncate")
        values["unigram_cross_entropy"] = language_modelling.unigram_cross_entropy(train, rows, tokenizer)
    return values, {}


def _geometry(task: Task, vectors: TextVectors, tokenizer, max_length: int, seed: int) -> dict[str, float | None]:
    """How the vectors of a sample of the texts lie, and whether they tell the length of their text and, where the rows
    have the column `source`, where it is from."""
    sample = _draw(vectors.texts, GEOMETRY_TEXTS, seed)
    if len(sample) < 2:
        return {}
    rows, pairs = task.test, None
    if task.kind == "similarity":
        scores = np.asarray(rows["score"], dtype=np.float64)
        rows = rows.select(np.flatnonzero(scores > scores.min() + BELONG_TOGETHER * np.ptp(scores)))
    if task.kind in ("similarity", "retrieval"):
        pairs = vectors[rows[task.text_columns[0]]], vectors[rows[task.text_columns[1]]]  # (pairs, dim) each
    lengths = [len(ids) for ids in tokenizer(sample, truncation=True, max_length=max_length)["input_ids"]]
    values = metrics.geometry_metrics(vectors[sample], pairs)
    values["length_r2"] = metrics.length_probe(vectors[sample], lengths, seed)
    if "source" in task.test.column_names:
        sources = list(map(str, task.test["source"]))
        of_texts = [zip(task.test[column], sources, strict=True) for column in task.text_columns]
        of_text = dict(sorted(pair for pairs in of_texts for pair in pairs))  # whatever the order of the rows
        known = [text for text in sample if text in of_text]  # none of the training texts of a split
        values["source_probe"] = metrics.source_probe(vectors[known], [of_text[text] for text in known], seed)
    return values


def _by_text(rows: Dataset) -> tuple[list[str], list]:
    """Texts and labels in the order of the texts: folds are then the same whatever the order of the file."""
    pairs = sorted(zip(rows["text"], rows["label"], strict=True), key=lambda pair: (pair[0], str(pair[1])))
    return [text for text, _ in pairs], [label for _, label in pairs]


def _draw(items: Iterable, count: int, seed: int) -> list:
    """At most `count` of the items at random; their order does not matter."""
    items = sorted(items)
    return items if len(items) <= count else random.Random(seed).sample(items, count)
