"""What sentence vectors are worth: similarity against human scores, retrieval, nearest neighbours."""

import numpy as np
import torch
from datasets import Dataset, load_dataset
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

logger = logging.get_logger(__name__)


@torch.no_grad()
def encode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    max_length: int,
    batch_size: int = 128,
) -> np.ndarray:
    """Sentence vectors on the unit sphere, by the model's own pooling.

    Args:
        model: a `SimMIMModel`, or anything with one as `base_model`
        texts: in any order; they are read in batches of similar length
        max_length: longer texts are truncated to this many tokens

    Returns:
        (texts, hidden), float32.
    """
    encoder, was_training = model.base_model, model.training
    encoder.eval()
    ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    order = np.argsort([-len(row) for row in ids], kind="stable")
    vectors = np.empty((len(texts), encoder.config.hidden_size), dtype=np.float32)
    for start in range(0, len(texts), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt").to(encoder.device)
        pooled = encoder(**batch).pooler_output.float()
        vectors[rows] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
    model.train(was_training)
    return vectors


def mean_reciprocal_rank(queries, documents, k: int = 10) -> float:
    """MRR@k of finding document i with query i among all documents, by the inner product.

    A document that scores as high as the right one counts as found before it.

    Args:
        queries, documents: (pairs, dim), dense or scipy sparse, normalised
    """
    scores = queries @ documents.T
    scores = scores.toarray() if hasattr(scores, "toarray") else scores
    ranks = (scores >= scores.diagonal()[:, None]).sum(1)
    return float(np.where(ranks <= k, 1 / ranks, 0).mean())


def tfidf_reciprocal_rank(queries: list[str], documents: list[str], k: int = 10) -> float:
    """MRR@k of the same search by weighted word overlap, the baseline that needs no training."""
    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit(documents)
    return mean_reciprocal_rank(vectorizer.transform(queries), vectorizer.transform(documents), k)


def similarity_spearman(model, tokenizer, pairs: Dataset, max_length: int) -> float:
    """Spearman correlation x 100 of cosines with human scores. `pairs` has `sentence1`, `sentence2` and `score`."""
    first, second = (
        encode(model, tokenizer, list(pairs[column]), max_length) for column in ("sentence1", "sentence2")
    )
    return 100 * float(spearmanr((first * second).sum(1), pairs["score"]).statistic)


def unigram_cross_entropy(train: Dataset, held_out: Dataset, tokenizer: PreTrainedTokenizerBase) -> float:
    """The MLM loss, in nats a token, of a model that knows only how frequent each token is in the training text.

    Args:
        train, held_out: with a column `input_ids`; special tokens do not count
    """
    train_counts, counts = (
        np.bincount(np.concatenate(data.with_format("numpy")["input_ids"][:]), minlength=len(tokenizer))
        for data in (train, held_out)
    )
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    train_counts, counts = train_counts[ordinary] + 1, counts[ordinary]
    return float(-(counts * np.log(train_counts / train_counts.sum())).sum() / counts.sum())


def load_scored_pairs(file: str) -> Dataset:
    """A .jsonl or .csv file (also .gz, .xz, .zst) with the columns `sentence1`, `sentence2` and `score`.

    Raises:
        ValueError: a column is missing; the message names those there are.
    """
    kind = "csv" if ".csv" in file else "json"
    pairs = load_dataset(kind, data_files=file, split="train")
    missing = {"sentence1", "sentence2", "score"} - set(pairs.column_names)
    if missing:
        raise ValueError(f"`{file}` has no column {sorted(missing)}; it has {pairs.column_names}.")
    return pairs
