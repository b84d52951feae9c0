"""The metrics of an encoder on one task, for `simmim evaluate` and for scripts."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..data import tokenization
from . import language_modelling, metrics
from .bootstrap import ResamplableMetric
from .encoding import encode
from .language_modelling import LanguageModel
from .tasks import Task

# The geometry metrics compare all texts with each other, so they look at a sample of this size.
GEOMETRY_TEXTS = 2000
# Each token of each sentence makes a row, so only this many pairs are in memory together.
PAIRS_AT_ONCE = 1000
# Pairs in the top fifth of the scores' range are positives: those above 4 on the scale from 0 to 5, as in
# Gao et al. 2021 (SimCSE).
POSITIVE_SCORE = 0.8

Values = dict[str, float | int | None]
Samples = dict[str, ResamplableMetric]
Measured = tuple[Values, Samples]


@dataclass(frozen=True)
class EvalSettings:
    """How texts are read and sampled in an evaluation.

    Args:
        tokenizer: with a padding token
        max_length: longer texts are truncated to this many tokens
        batch_size: texts that are read at a time; it changes no value
        mlm_probability: share of corrupted tokens in plain text
        max_samples: texts for the pseudo-perplexity, which reads a text once for each of its tokens; 0: none
        seed: of masks, folds and samples
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    batch_size: int = 64
    mlm_probability: float = 0.15
    max_samples: int = 100
    seed: int = 42


def measure(
    task: Task,
    encoder: torch.nn.Module,
    settings: EvalSettings,
    language_model: LanguageModel | None = None,
) -> Values:
    """The values that `measure_with_samples` finds, with the same arguments."""
    values, _ = measure_with_samples(task, encoder, settings, language_model)
    return values


def measure_with_samples(
    task: Task,
    encoder: torch.nn.Module,
    settings: EvalSettings,
    language_model: LanguageModel | None = None,
) -> Measured:
    """All metrics of an encoder on a task. Neither the order of its rows nor the batch size changes a value.

    Args:
        task: see `load_task`
        encoder: see `load_encoder`; also a SimMIM model with a head
        settings: see `EvalSettings`
        language_model: see `load_language_model`; needed only for plain text and minimal pairs

    Returns:
        The values by their keys in `metric_catalogue.METRICS`, None where one is undefined; and by the same keys those
        that can be computed of a sample of the pairs, queries or labelled texts, in the same order for every model.

    Raises:
        ValueError: plain text or minimal pairs without a language model.
        FloatingPointError: the encoder gives vectors that are not finite.
    """
    if task.needs_head and language_model is None:
        raise ValueError(
            f"the task `{task.name}` is plain text or minimal pairs: give a language_model, see `load_language_model`."
        )
    vectors = TextVectors(task.texts(), encoder, settings)
    values, samples = MEASURES[task.kind](task, vectors, language_model, settings)
    values |= _geometry(task, vectors, settings)
    for key, value in values.items():
        if value is not None and not math.isfinite(value):
            values[key] = None
    return values, samples


class TextVectors:
    """The vectors of texts, by text: the same text has the same vector in every row.

    Args:
        texts: in any order, also repeated
        encoder: see `measure_with_samples`
        settings: see `EvalSettings`

    Raises:
        FloatingPointError: a vector that is not finite.
    """

    def __init__(self, texts: Iterable[str], encoder: torch.nn.Module, settings: EvalSettings) -> None:
        self.texts = sorted(set(texts))
        self.rows = {text: row for row, text in enumerate(self.texts)}
        self.vectors = encode(
            encoder,
            self.texts,
            settings.tokenizer,
            settings.max_length,
            settings.batch_size,
            normalize=False,
            show_progress=True,
        )  # (texts, dim)
        if not np.isfinite(self.vectors).all():
            raise FloatingPointError("the vectors that the model gives are not finite.")

    def __getitem__(self, texts: Iterable[str]) -> np.ndarray:
        """(texts, dim)"""
        return self.vectors[[self.rows[text] for text in texts]]


def similarity_spearman(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    max_length: int,
) -> float:
    """Spearman correlation x 100 of cosines with human scores.

    Args:
        model, tokenizer, max_length: see `encode`
        pairs: rows with `sentence1`, `sentence2` and `score`

    Raises:
        ValueError: see `metrics.check_scores`.
    """
    first = encode(model, list(pairs["sentence1"]), tokenizer, max_length)  # (pairs, dim)
    second = encode(model, list(pairs["sentence2"]), tokenizer, max_length)  # (pairs, dim)
    return similarity_samples(first, second, pairs["score"][:])["spearman"].value()


def similarity_samples(first: np.ndarray, second: np.ndarray, scores: Sequence[float]) -> Samples:
    """`spearman` and `pearson` as functions of the pairs.

    Args:
        first, second: (pairs, dim), on the unit sphere
        scores: (pairs,), of humans

    Raises:
        ValueError: see `metrics.check_scores`.
    """
    cosines = (first * second).sum(1, dtype=np.float64)  # (pairs, dim) -> (pairs,)
    columns = (cosines, metrics.check_scores(scores))
    samples = {}
    for name, correlation in metrics.CORRELATIONS.items():
        samples[name] = ResamplableMetric(correlation, columns)
    return samples


def retrieval_samples(queries: np.ndarray, documents: np.ndarray, **ids) -> Samples:
    """The metrics of `metrics.retrieval_values`, with the same arguments, as functions of the queries."""
    by_metric = metrics.retrieval_values(queries, documents, **ids)
    samples = {}
    for name, of_queries in by_metric.items():
        samples[name] = ResamplableMetric(np.mean, (of_queries,))
    return samples


def _values(samples: Samples) -> dict[str, float]:
    return {name: sampled.value() for name, sampled in samples.items()}


def _similarity(
    task: Task,
    vectors: TextVectors,
    language_model,
    settings: EvalSettings,
) -> Measured:
    first = metrics.on_the_sphere(vectors[task.test["sentence1"]])  # (pairs, dim)
    second = metrics.on_the_sphere(vectors[task.test["sentence2"]])  # (pairs, dim)
    samples = similarity_samples(first, second, task.test["score"][:])
    return {"pairs": len(task.test), **_values(samples)}, samples


def _retrieval(
    task: Task,
    vectors: TextVectors,
    language_model,
    settings: EvalSettings,
) -> Measured:
    queries = task.test["query"][:]
    documents = task.test["document"][:]
    samples = retrieval_samples(vectors[queries], vectors[documents], query_ids=queries, document_ids=documents)
    counts = {"queries": len(set(queries)), "documents": len(set(documents))}
    return {**counts, **_values(samples)}, samples


def _transfer(task: Task, vectors: TextVectors, language_model, settings: EvalSettings) -> Measured:
    texts, labels = _by_text(task.test)
    if task.train is None:
        count = len(texts)
        hits = metrics.transfer_hits(vectors[texts], labels, seed=settings.seed)
    else:
        train_texts, train_labels = _by_text(task.train)
        train_vectors = vectors[train_texts]  # (texts, dim)
        count = len(train_texts) + len(texts)
        hits = metrics.transfer_hits(train_vectors, train_labels, vectors[texts], labels, settings.seed)

    def accuracy(*hits: np.ndarray) -> float:
        return metrics.accuracy_metrics(*hits)["accuracy"]

    values: Values = {"texts": count, **metrics.accuracy_metrics(*hits)}
    return values, {"accuracy": ResamplableMetric(accuracy, hits)}


def _minimal_pairs(
    task: Task,
    vectors: TextVectors,
    language_model: LanguageModel,
    settings: EvalSettings,
) -> Measured:
    """How often the model finds the good sentence of a pair more probable, as BLiMP has it (Warstadt et al. 2020)."""
    good = _surprises(task.test["sentence_good"][:], language_model, settings)  # (pairs,)
    bad = _surprises(task.test["sentence_bad"][:], language_model, settings)  # (pairs,)
    hits = 100.0 * (good < bad)  # (pairs,), in per cent
    samples = {"minimal_pairs_accuracy": ResamplableMetric(np.mean, (hits,))}
    return {"pairs": len(task.test), **_values(samples)}, samples


def _surprises(
    texts: list[str],
    language_model: LanguageModel,
    settings: EvalSettings,
) -> np.ndarray:
    """(texts,), see `language_modelling.surprises`"""
    parts = []
    for start in range(0, len(texts), PAIRS_AT_ONCE):
        part = texts[start : start + PAIRS_AT_ONCE]
        ids = settings.tokenizer(part, truncation=True, max_length=settings.max_length)["input_ids"]
        parts.append(language_modelling.surprises(language_model, ids, settings.tokenizer, settings.batch_size))
    return np.concatenate(parts)


def _plain_text(
    task: Task,
    vectors: TextVectors,
    language_model: LanguageModel,
    settings: EvalSettings,
) -> Measured:
    """The losses and perplexities of each direction that the language model has learned."""
    tokenizer = settings.tokenizer
    rows, _ = tokenization.tokenize(task.test, tokenizer, settings.max_length, long_texts="truncate")
    ids = rows["input_ids"][:]
    whole = tokenizer(task.test["text"][:], verbose=False)["input_ids"]
    values: Values = {
        "texts": len(ids),
        "tokens": sum(map(len, ids)),
        "truncated": sum(len(row) > settings.max_length for row in whole),
    }
    if "masked" in language_model.options:
        values |= _masked_metrics(ids, language_model, settings)
    if "causal" in language_model.options:
        next_tokens = language_modelling.next_token_rows(ids)
        loss, _ = _predict(language_model, "causal", next_tokens, settings.batch_size, "Next tokens")
        values["clm_loss"] = loss
        values["perplexity"] = float(np.exp(loss))
    if task.train is not None:
        train, _ = tokenization.tokenize(task.train, tokenizer, settings.max_length, long_texts="truncate")
        values["unigram_cross_entropy"] = language_modelling.unigram_cross_entropy(train, rows, tokenizer)
    return values, {}


def _masked_metrics(
    ids: list[list[int]],
    language_model: LanguageModel,
    settings: EvalSettings,
) -> dict[str, float]:
    """`mlm_loss` and `mlm_accuracy`, and of a sample of the texts `pseudo_perplexity`."""
    batch_size = settings.batch_size
    masked = language_modelling.masked_rows(ids, settings.tokenizer, settings.mlm_probability, settings.seed)
    loss, accuracy = _predict(language_model, "masked", masked, batch_size, "Masked tokens")
    values = {"mlm_loss": loss, "mlm_accuracy": accuracy}
    if settings.max_samples:
        sample = _draw(ids, settings.max_samples, settings.seed)
        one_by_one = language_modelling.one_mask_rows(sample, settings.tokenizer)
        loss, _ = _predict(language_model, "masked", one_by_one, batch_size, "Each token masked")
        values["pseudo_perplexity"] = float(np.exp(loss))
    return values


def _predict(
    language_model: LanguageModel,
    direction: str,
    rows: list,
    batch_size: int,
    desc: str,
) -> tuple[float, float]:
    options = language_model.options[direction]
    return language_modelling.predict_tokens(language_model.model, rows, batch_size, desc, **options)


# How a task of each kind is measured.
MEASURES: dict[str, Callable[..., Measured]] = {
    "similarity": _similarity,
    "retrieval": _retrieval,
    "transfer": _transfer,
    "minimal pairs": _minimal_pairs,
    "language modelling": _plain_text,
}


def _geometry(task: Task, vectors: TextVectors, settings: EvalSettings) -> Values:
    """How the vectors of a sample of the texts are spread, and whether the length of a text and, where the rows have
    the column `source`, its source can be read from its vector."""
    sample = _draw(vectors.texts, GEOMETRY_TEXTS, settings.seed)
    if len(sample) < 2:
        return {}
    sampled = vectors[sample]  # (texts, dim)
    values: Values = {**metrics.geometry_metrics(sampled, _positive_pairs(task, vectors))}
    ids = settings.tokenizer(sample, truncation=True, max_length=settings.max_length)["input_ids"]
    lengths = [len(row) for row in ids]
    values["length_r2"] = metrics.length_probe(sampled, lengths, settings.seed)
    if "source" in task.test.column_names:
        source_of = _source_by_text(task)
        known = [text for text in sample if text in source_of]  # none of the training texts of a split
        sources = [source_of[text] for text in known]
        values["source_probe"] = metrics.source_probe(vectors[known], sources, settings.seed)
    return values


def _positive_pairs(task: Task, vectors: TextVectors) -> tuple[np.ndarray, np.ndarray] | None:
    """The vectors of texts that belong together, (pairs, dim) each; None for a task without pairs."""
    if task.kind not in ("similarity", "retrieval"):
        return None
    rows = task.test
    if task.kind == "similarity":
        scores = np.asarray(rows["score"], dtype=np.float64)  # (pairs,)
        least = scores.min() + POSITIVE_SCORE * np.ptp(scores)
        rows = rows.select(np.flatnonzero(scores > least))
    first, second = task.text_columns
    return vectors[rows[first]], vectors[rows[second]]


def _source_by_text(task: Task) -> dict[str, str]:
    sources = list(map(str, task.test["source"]))
    pairs: list[tuple[str, str]] = []
    for column in task.text_columns:
        pairs += zip(task.test[column], sources, strict=True)
    return dict(sorted(pairs))  # sorted: a text of two sources gets the same one in any order of the rows


def _by_text(rows: Dataset) -> tuple[list[str], list]:
    """Texts and labels in the order of the texts: folds are then the same whatever the order of the file."""
    pairs = list(zip(rows["text"], rows["label"], strict=True))
    pairs.sort(key=lambda pair: (pair[0], str(pair[1])))  # labels of different types have no order
    texts = [text for text, _ in pairs]
    labels = [label for _, label in pairs]
    return texts, labels


def _draw(items: Iterable, count: int, seed: int) -> list:
    """At most `count` of the items at random, whatever their order."""
    ordered = sorted(items)
    if len(ordered) <= count:
        return ordered
    return random.Random(seed).sample(ordered, count)
