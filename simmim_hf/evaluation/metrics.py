"""Metrics of sentence vectors, as functions of arrays."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_predict
from threadpoolctl import threadpool_limits
from transformers.utils.logging import tqdm

from ..model import losses

FOLDS = 10
QUERIES_AT_ONCE = 256
TIE = 1e-6  # cosines this close are equal: rounding must not decide between documents with the same vector
# SentEval's inverse strengths of the L2 penalty, for cross-validation and for a given test set.
STRENGTHS = [2.0**power for power in range(-2, 4)]
STRENGTHS_FOR_A_SPLIT = [2.0**power for power in range(-1, 6)]
RIDGE_STRENGTHS = np.logspace(-4, 3, 8)


def check_scores(scores: Sequence[float]) -> np.ndarray:
    """The scores as (pairs,) float64.

    Raises:
        ValueError: nothing can be correlated with them: fewer than three, not finite, or all the same.
    """
    values: np.ndarray = np.asarray(scores, dtype=np.float64)
    if len(values) < 3:
        raise ValueError(f"a correlation needs at least 3 scored pairs, and there are {len(values)}.")
    if not np.isfinite(values).all():
        raise ValueError(f"the score of pair {int(np.isfinite(values).argmin()) + 1} is not a finite number.")
    if np.ptp(values) == 0:
        raise ValueError(f"all {len(values)} scores are {values[0]:g}: nothing correlates with a constant.")
    return values


def check_labels(labels: Sequence, needed: int) -> None:
    """
    Raises:
        ValueError: a missing label, one class alone, or a class with fewer than `needed` texts.
    """
    if None in labels:
        raise ValueError(f"row {list(labels).index(None) + 1} has no label.")
    counts = Counter(labels).most_common()
    if len(counts) < 2:
        raise ValueError(f"all {len(labels)} labels are {labels[0]!r}: a classifier needs two classes or more.")
    rarest, count = counts[-1]
    if count < needed:
        raise ValueError(
            f"the label {rarest!r} has only {count} texts and needs at least {needed}: the strength of the penalty is "
            "chosen on parts of the training texts. Add some, or leave the label out."
        )


def on_the_sphere(vectors: np.ndarray) -> np.ndarray:
    """(texts, dim), each divided by its length.

    Raises:
        ValueError: a vector that is not finite.
    """
    vectors = np.asarray(vectors)
    if not np.isfinite(vectors).all():
        raise ValueError("a vector holds numbers that are not finite.")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # (texts, dim) -> (texts, 1)
    return vectors / norms.clip(min=1e-12)


def similarity_metrics(cosines: Sequence[float], scores: Sequence[float]) -> dict[str, float]:
    """Rank (Spearman) and linear (Pearson) correlation x 100 of the cosines of pairs with human scores.

    Args:
        cosines, scores: (pairs,)

    Returns:
        `spearman` and `pearson`, not a number where all cosines are the same.

    Raises:
        ValueError: see `check_scores`.
    """
    columns = (np.asarray(cosines, dtype=np.float64), check_scores(scores))
    return {name: correlation(*columns) for name, correlation in CORRELATIONS.items()}


def _correlation(function: Callable, one: np.ndarray, other: np.ndarray) -> float:
    """A correlation x 100 of two (pairs,), NaN where one of them is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return np.nan
    return 100 * float(function(one, other).statistic)


CORRELATIONS = {"spearman": partial(_correlation, spearmanr), "pearson": partial(_correlation, pearsonr)}


def retrieval_metrics(
    queries: np.ndarray,
    documents: np.ndarray,
    query_ids: Sequence | None = None,
    document_ids: Sequence | None = None,
    k: int = 10,
) -> dict[str, float]:
    """The means over the queries of `retrieval_values`, with the same arguments."""
    values = retrieval_values(queries, documents, query_ids, document_ids, k)  # (queries,) each
    return {name: float(of_queries.mean()) for name, of_queries in values.items()}


def retrieval_values(
    queries: np.ndarray,
    documents: np.ndarray,
    query_ids: Sequence | None = None,
    document_ids: Sequence | None = None,
    k: int = 10,
) -> dict[str, np.ndarray]:
    """How well the document of each query is found among all documents by its cosine.

    A document that scores as high as the right one counts as found before it.

    Args:
        queries, documents: (pairs, dim); row i of one belongs to row i of the other
        query_ids, document_ids: (pairs,), such as the texts: rows with the same id are one query, or one document. So
            a query may have several documents, and a document several queries. Default: all differ.
        k: how far down the list is looked

    Returns:
        (queries,) each, in the order of their ids: `mrr@k`, `recall@1`, `recall@k` and `ndcg@k` (with gains of 0 and
        1). Their means are the metrics of these names.

    Raises:
        ValueError: a vector that is not finite.
    """
    query, queries = _distinct(on_the_sphere(queries), query_ids)  # (pairs, dim) -> (pairs,), (queries, dim)
    document, documents = _distinct(on_the_sphere(documents), document_ids)  # -> (pairs,), (documents, dim)
    numbers = np.stack([query, document], axis=1)  # (pairs, 2)
    pairs = np.unique(numbers, axis=0)  # (distinct pairs, 2), in the order of the queries
    ends: np.ndarray = np.flatnonzero(np.diff(pairs[:, 0])) + 1  # where the next query begins
    relevant = np.split(pairs[:, 1], ends)  # for each query its documents

    values = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        scores = queries[part] @ documents.T  # (queries, dim) @ (dim, documents) -> (queries, documents)
        for of_query, own in zip(scores, relevant[part], strict=True):
            values.append(_values_of_ranks(_ranks(of_query, own), k))
    names = (f"mrr@{k}", "recall@1", f"recall@{k}", f"ndcg@{k}")
    columns = np.array(values).T  # (queries, metrics) -> (metrics, queries)
    return dict(zip(names, columns, strict=True))


def _ranks(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The ranks, from 1 and ascending, of the `own` documents of a query by its scores (documents,) -> (own,)"""
    own_scores = np.sort(scores[own])[::-1]  # (own,), the best first
    others: np.ndarray = np.delete(scores, own)  # (documents - own,)
    # The i-th of the own documents comes after i own ones, and after the others that score as high or higher.
    others_before = (others >= own_scores[:, None] - TIE).sum(1)  # (own, others) -> (own,)
    return 1 + np.arange(len(own)) + others_before


def _values_of_ranks(ranks: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """Reciprocal rank, recall@1, recall@k and nDCG@k of a query whose documents have these ranks (own,)"""
    reciprocal = 1 / ranks[0] if ranks[0] <= k else 0.0
    best_ranks: np.ndarray = 1 + np.arange(min(len(ranks), k))
    is_first = ranks <= 1  # (own,)
    is_in_list = ranks <= k
    gain = (1 / np.log2(1 + ranks[is_in_list])).sum()
    best_gain = (1 / np.log2(1 + best_ranks)).sum()
    return reciprocal, is_first.mean(), is_in_list.mean(), gain / best_gain


def _distinct(vectors: np.ndarray, ids: Sequence | None) -> tuple[np.ndarray, np.ndarray]:
    """For each row the number of its id (rows,), and the vectors of the ids (ids, dim)."""
    given: np.ndarray = np.arange(len(vectors)) if ids is None else np.asarray(ids)
    _, first, numbers = np.unique(given, return_index=True, return_inverse=True)
    return numbers, vectors[first]


def tfidf_reciprocal_rank(queries: list[str], documents: list[str], k: int = 10) -> float:
    """MRR@k of finding document i with query i by weighted word overlap: the baseline that needs no training. The same
    text is one query, or one document, see `retrieval_values`."""
    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english", dtype=np.float32)
    vectorizer.fit(sorted(set(documents)))
    query_vectors = vectorizer.transform(queries).toarray()  # (pairs, words)
    document_vectors = vectorizer.transform(documents).toarray()  # (pairs, words)
    return retrieval_metrics(query_vectors, document_vectors, queries, documents, k)[f"mrr@{k}"]


def geometry_metrics(
    vectors: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, float]:
    """How vectors are spread over the unit sphere.

    - `uniformity`: log mean exp(-2 |x - y|^2) over all pairs (Wang & Isola 2020); lower is more even
    - `mean_cosine`: over all pairs; near 1 where the vectors fill a narrow cone
    - `effective_rank`: exp of the entropy of the singular values divided by their sum (Roy & Vetterli 2007)
    - `alignment`: mean squared distance of the pairs that belong together (Wang & Isola 2020); lower is closer

    Args:
        vectors: (texts, dim), two texts or more; time and memory grow with the square of their number
        pairs: two (pairs, dim); without them there is no `alignment`

    Raises:
        ValueError: a vector that is not finite.
    """
    vectors = on_the_sphere(vectors)
    count = len(vectors)
    total = vectors.sum(0, dtype=np.float64)  # (texts, dim) -> (dim,)
    singular = np.linalg.svd(vectors, compute_uv=False)  # (min(texts, dim),)
    share = singular[singular > 0] / singular.sum()
    entropy = -(share * np.log(share)).sum()
    # The sum of all cosines is the squared length of the sum of the vectors; those with themselves do not count.
    sum_of_cosines = total @ total - np.square(vectors).sum()
    metrics = {
        "uniformity": losses.uniformity(torch.from_numpy(vectors)).item(),
        "mean_cosine": float(sum_of_cosines / (count * (count - 1))),
        "effective_rank": float(np.exp(entropy)),
    }
    if pairs is not None and len(pairs[0]):
        first, second = (torch.from_numpy(on_the_sphere(side)) for side in pairs)  # (pairs, dim) each
        metrics["alignment"] = losses.alignment(first, second).item()
    return metrics


def length_probe(vectors: np.ndarray, lengths: Sequence[int], seed: int = 0) -> float | None:
    """How well the length of a text can be read off the direction of its vector: the R² of a ridge regression on the
    logarithm of the length, in 10-fold cross-validation. 1 is perfectly, 0 or less not at all.

    A contrastive term whose views share their length can tell pairs apart by it alone (Wu et al. 2022, ESimCSE).

    Args:
        vectors: (texts, dim)
        lengths: (texts,) in tokens
        seed: of the folds

    Returns:
        None without anything to predict: fewer than 20 texts, or all of one length.
    """
    logarithms = np.log(np.asarray(lengths, dtype=np.float64))  # (texts,)
    if len(logarithms) < 2 * FOLDS or np.ptp(logarithms) == 0:
        return None
    predicted = _read_off(RidgeCV(RIDGE_STRENGTHS), vectors, logarithms, seed)  # (texts,)
    return float(r2_score(logarithms, predicted))


def source_probe(vectors: np.ndarray, sources: Sequence[str], seed: int = 0) -> float | None:
    """How well the source of a text can be read off the direction of its vector: the accuracy of a ridge classifier in
    10-fold cross-validation, on a scale where 0 is always to guess the most frequent source, and 1 perfect.

    A contrastive term whose batch is of several sources can tell most negatives apart by it alone.

    Args:
        vectors: (texts, dim)
        sources: (texts,)
        seed: of the folds

    Returns:
        None without anything to predict: fewer than 20 texts, or a single source.
    """
    names, source, counts = np.unique(sources, return_inverse=True, return_counts=True)  # source: (texts,)
    if len(source) < 2 * FOLDS or len(names) < 2:
        return None
    predicted = _read_off(RidgeClassifierCV(RIDGE_STRENGTHS), vectors, source, seed)  # (texts,)
    accuracy = (predicted == source).mean()
    guessed = counts.max() / len(source)
    return float((accuracy - guessed) / (1 - guessed))


def _read_off(
    probe: BaseEstimator,
    vectors: np.ndarray,
    targets: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Predictions of a probe for the direction of each vector, fitted to the other folds: (texts, dim) -> (texts,)"""
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    with threadpool_limits(limits=1):
        return cross_val_predict(probe, on_the_sphere(vectors), targets, cv=folds)


def transfer_metrics(
    vectors: np.ndarray,
    labels: Sequence,
    test_vectors: np.ndarray | None = None,
    test_labels: Sequence | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy of a logistic regression on frozen vectors, by the protocol of SentEval (Conneau & Kiela 2018).

    Without test vectors: stratified 10-fold cross-validation, and in each fold another 10-fold cross-validation on its
    training part chooses the strength of the L2 penalty. With them: the strength is chosen on the training vectors.
    Classes of fewer than ten texts get fewer folds.

    Args:
        vectors, test_vectors: (texts, dim), as the encoder gives them, not normalised
        labels, test_labels: (texts,)
        seed: of the folds

    Returns:
        `accuracy` in per cent, and `accuracy_std`: over the folds, or the standard error of the test set's size.

    Raises:
        ValueError: fewer than two classes, or too few texts of a class.
    """
    hits, fold = transfer_hits(vectors, labels, test_vectors, test_labels, seed)
    return accuracy_metrics(hits, fold)


def transfer_hits(
    vectors: np.ndarray,
    labels: Sequence,
    test_vectors: np.ndarray | None = None,
    test_labels: Sequence | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The hits of the classifiers of `transfer_metrics`, with the same arguments, and the fold of each text.

    Returns:
        (texts,) of 0.0 and 1.0, and (texts,) numbers of folds: of the test texts, in fold 0, where they are given,
        else of all.

    Raises:
        ValueError: as `transfer_metrics`.
    """
    classes = np.asarray(labels)
    check_labels(classes.tolist(), needed=3 if test_vectors is None else 2)
    with threadpool_limits(limits=1):  # a second thread slows such small problems down
        if test_vectors is not None:
            classifier = _fit_classifier(vectors, classes, STRENGTHS_FOR_A_SPLIT, seed)
            is_right = classifier.predict(test_vectors) == np.asarray(test_labels)  # (texts,)
            return is_right.astype(float), np.zeros(len(is_right), dtype=int)
        hits = np.empty(len(classes))
        fold: np.ndarray = np.empty(len(classes), dtype=int)
        folds = _folds(classes, seed)
        parts = tqdm(folds.split(vectors, classes), total=folds.n_splits, desc="Cross-validation")
        for number, (train, test) in enumerate(parts):
            classifier = _fit_classifier(vectors[train], classes[train], STRENGTHS, seed)
            hits[test] = classifier.predict(vectors[test]) == classes[test]
            fold[test] = number
    return hits, fold


def accuracy_metrics(hits: np.ndarray, fold: np.ndarray) -> dict[str, float]:
    """The metrics of `transfer_metrics` from the hits and folds of `transfer_hits`, (texts,) each."""
    sizes = np.bincount(fold)  # (folds,)
    is_used = sizes > 0
    accuracies = 100 * np.bincount(fold, hits)[is_used] / sizes[is_used]  # (folds,)
    deviation = np.std(accuracies)
    if len(accuracies) == 1:  # the standard error of a share among so many texts
        accuracy = accuracies[0]
        deviation = np.sqrt(accuracy * (100 - accuracy) / len(hits))
    return {"accuracy": float(np.mean(accuracies)), "accuracy_std": float(deviation)}


def _fit_classifier(
    vectors: np.ndarray,
    labels: np.ndarray,
    strengths: list[float],
    seed: int,
) -> GridSearchCV:
    # With two classes and many more texts than dimensions, three Newton steps do as much as two hundred of L-BFGS.
    is_binary = len(set(labels.tolist())) == 2
    solver = "newton-cholesky" if is_binary else "lbfgs"
    classifier = LogisticRegression(max_iter=1000, solver=solver)
    search = GridSearchCV(classifier, {"C": strengths}, cv=_folds(labels, seed))
    with warnings.catch_warnings():
        # The weakest penalties need not converge: the cross-validation scores the classifier as it is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return search.fit(vectors, labels)


def _folds(labels: np.ndarray, seed: int) -> StratifiedKFold:
    counts = Counter(labels.tolist())
    rarest = min(counts.values())
    return StratifiedKFold(min(FOLDS, rarest), shuffle=True, random_state=seed)
