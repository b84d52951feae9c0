"""What is made of sentence vectors, against the same by other means."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ndcg_score
from sklearn.model_selection import StratifiedKFold
from transformers import EvalPrediction

from simmim_hf.evaluation import evaluate_metrics, metrics
from simmim_hf.model import losses


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_correlations_are_those_of_scipy_in_any_order(generator):
    cosines, scores = generator.normal(size=40), generator.integers(0, 6, size=40)
    values = metrics.similarity_metrics(cosines, scores)
    assert values["spearman"] == pytest.approx(100 * spearmanr(cosines, scores).statistic)
    assert values["pearson"] == pytest.approx(100 * pearsonr(cosines, scores).statistic)
    order = generator.permutation(40)
    assert metrics.similarity_metrics(cosines[order], scores[order]) == pytest.approx(values)
    assert math.isnan(metrics.similarity_metrics(np.ones(40), scores)["spearman"])


@pytest.mark.parametrize(
    ("scores", "said"), [([1, 2], "3 scored pairs"), ([2, 2, 2], "are 2"), ([1, math.nan, 2], "pair 2")]
)
def test_scores_that_nothing_correlates_with_are_refused(scores, said):
    with pytest.raises(ValueError, match=said):
        metrics.similarity_metrics([0.1, 0.2, 0.3][: len(scores)], scores)


def slow_retrieval(queries, documents, query_ids, document_ids, k=10):
    """The same metrics by sorting lists."""
    vector_of = dict(zip(document_ids, documents, strict=True))
    totals = np.zeros(4)
    for name in dict.fromkeys(query_ids):
        relevant = {d for q, d in zip(query_ids, document_ids, strict=True) if q == name}
        query = queries[query_ids.index(name)]
        ranking = sorted(vector_of, key=lambda d: (-round(float(query @ vector_of[d]), 9), d in relevant))
        gains = np.array([d in relevant for d in ranking], dtype=float)
        first = gains.argmax() + 1
        ndcg = ndcg_score([gains], [-np.arange(len(gains))], k=k)
        totals += [
            1 / first if first <= k else 0,
            gains[:1].sum() / len(relevant),
            gains[:k].sum() / len(relevant),
            ndcg,
        ]
    return totals / len(set(query_ids))


@pytest.mark.parametrize("k", [3, 10])
def test_retrieval_equals_sorting_with_shared_documents_and_queries(generator, k):
    document_ids = [f"d{i}" for i in generator.integers(0, 20, size=30)]
    query_ids = [f"q{i}" for i in generator.integers(0, 25, size=30)]
    points = {
        name: generator.integers(-2, 3, size=3) + 0.01 for name in sorted({*document_ids, *query_ids})
    }  # many ties
    unit = {name: point / np.linalg.norm(point) for name, point in points.items()}
    queries, documents = (np.array([unit[name] for name in ids]) for ids in (query_ids, document_ids))
    values = metrics.retrieval_metrics(3 * queries, documents, query_ids, document_ids, k)
    expected = slow_retrieval(queries, documents, query_ids, document_ids, k)
    assert list(values) == [f"mrr@{k}", "recall@1", f"recall@{k}", f"ndcg@{k}"]
    np.testing.assert_allclose(list(values.values()), expected, atol=1e-6)
    order = generator.permutation(30)
    shuffled = ([ids[i] for i in order] for ids in (query_ids, document_ids))
    again = metrics.retrieval_metrics(queries[order], documents[order], *shuffled, k)
    assert again == pytest.approx(values)


def test_ties_count_against_the_right_document():
    queries = np.eye(3)
    documents = np.array([[1.0, 0, 0], [0, 0.5, 0], [0, 0.5, 0]])
    assert metrics.retrieval_metrics(queries, documents, k=10)["mrr@10"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert metrics.retrieval_metrics(queries, documents, k=1)["mrr@1"] == pytest.approx(1 / 3)
    assert metrics.retrieval_metrics(queries, np.zeros((3, 3)), k=2)["mrr@2"] == 0


def test_repeated_documents_are_one_document():
    queries, documents = np.eye(3)[[0, 1, 2]], np.eye(3)[[0, 0, 2]]
    queries[1] = [0.9, 0.1, 0]
    assert metrics.retrieval_metrics(queries, documents)["recall@1"] == pytest.approx(1 / 3)  # ties count against it
    assert metrics.retrieval_metrics(queries, documents, document_ids=["a", "a", "b"])["recall@1"] == 1


def test_word_overlap_finds_the_document_that_shares_words():
    assert metrics.tfidf_reciprocal_rank(["green apples", "fast cars"], ["apples grow green", "cars drive fast"]) == 1
    # A query with two documents is one query: the right document that is found first counts.
    queries, documents = ["green apples", "green apples", "fast cars"], ["apples grow green", "apples", "cars drive"]
    assert metrics.tfidf_reciprocal_rank(queries, documents) == 1


def test_geometry_equals_loops(generator):
    vectors = generator.normal(size=(9, 4)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(9) for j in range(i)]
    singular = np.linalg.svd(unit, compute_uv=False)
    share = singular / singular.sum()
    expected = {
        "uniformity": np.log(np.mean([np.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i, j in pairs])),
        "mean_cosine": np.mean([unit[i] @ unit[j] for i, j in pairs]),
        "effective_rank": np.exp(-sum(p * np.log(p) for p in share)),
        "alignment": np.mean([((unit[i] - unit[i + 1]) ** 2).sum() for i in range(8)]),
    }
    assert metrics.geometry_metrics(vectors, (vectors[:8], vectors[1:])) == pytest.approx(expected, rel=1e-5)
    assert "alignment" not in metrics.geometry_metrics(vectors)


def test_effective_rank_is_the_number_of_equal_directions():
    assert metrics.geometry_metrics(np.tile(np.eye(6)[:4], (3, 1)))["effective_rank"] == pytest.approx(4)
    collapsed = metrics.geometry_metrics(np.ones((5, 6)))
    assert collapsed["effective_rank"] == pytest.approx(1, abs=1e-4) and collapsed["mean_cosine"] == pytest.approx(1)


def test_length_probe_reads_a_length_that_is_there_and_no_other(generator):
    lengths = generator.integers(3, 60, size=200)
    noise = generator.normal(size=(200, 8))
    told = np.concatenate([noise, np.log(lengths)[:, None] - np.log(lengths).mean()], axis=1)
    assert metrics.length_probe(told, lengths) > 0.5
    assert metrics.length_probe(noise, lengths) < 0.1
    assert metrics.length_probe(told, [7] * 200) is None
    assert metrics.length_probe(told[:19], lengths[:19]) is None


def test_source_probe_reads_a_source_that_is_there_and_no_other(generator):
    sources = generator.choice(["wiki", "books"], p=[0.8, 0.2], size=200)
    noise = generator.normal(size=(200, 8))
    told = np.concatenate([noise, np.where(sources == "wiki", 3.0, -3.0)[:, None]], axis=1)
    assert metrics.source_probe(told, sources) > 0.9
    assert metrics.source_probe(noise, sources) < 0.1
    assert metrics.source_probe(told, ["wiki"] * 200) is None
    assert metrics.source_probe(told[:19], sources[:19]) is None


def labelled_vectors(generator, count):
    labels = generator.integers(0, 3, size=count)
    return generator.normal(size=(count, 5)) + 0.8 * np.eye(5)[labels], np.array(["x", "y", "z"])[labels]


def test_transfer_is_nested_cross_validation(generator, monkeypatch):
    assert metrics.FOLDS == 10
    monkeypatch.setattr(metrics, "FOLDS", 3)  # a tenth of the time
    vectors, labels = labelled_vectors(generator, 75)
    vectors *= 0.1  # so short that much depends on the strength of the penalty
    accuracies = []
    for train, test in StratifiedKFold(3, shuffle=True, random_state=7).split(vectors, labels):
        means = []
        for strength in (0.25, 0.5, 1, 2, 4, 8):
            inner = StratifiedKFold(3, shuffle=True, random_state=7).split(vectors[train], labels[train])
            classifier = LogisticRegression(C=strength, max_iter=1000)
            scores = [
                classifier.fit(vectors[train][a], labels[train][a]).score(vectors[train][b], labels[train][b])
                for a, b in inner
            ]
            means.append(np.mean(scores))
        classifier = LogisticRegression(C=2.0 ** (np.argmax(means) - 2), max_iter=1000)
        accuracies.append(100 * classifier.fit(vectors[train], labels[train]).score(vectors[test], labels[test]))
    values = metrics.transfer_metrics(vectors, labels, seed=7)
    assert values == pytest.approx({"accuracy": np.mean(accuracies), "accuracy_std": np.std(accuracies)})


def test_transfer_to_a_given_test_set(generator):
    train, test = labelled_vectors(generator, 60), labelled_vectors(generator, 200)
    values = metrics.transfer_metrics(*train, *test)
    share = values["accuracy"] / 100
    assert 0.5 < share < 0.9
    assert values["accuracy_std"] == pytest.approx(100 * math.sqrt(share * (1 - share) / 200))
    with pytest.raises(ValueError, match=r"all 60 labels are 'x'"):
        metrics.transfer_metrics(train[0], ["x"] * 60)
    with pytest.raises(ValueError, match=r"the label 'rare' has only 2 texts"):
        metrics.transfer_metrics(train[0], ["x"] * 29 + ["y"] * 29 + ["rare"] * 2)


def test_metrics_of_the_evaluate_library_fit_compute_metrics(generator):
    first, second = generator.normal(size=(2, 12, 4)).astype(np.float32)
    scores = generator.normal(size=12)
    prediction = EvalPrediction(predictions=first[:, 0], label_ids=scores)
    computed = evaluate_metrics.Similarity().compute(
        predictions=prediction.predictions, references=prediction.label_ids
    )
    assert computed == pytest.approx(metrics.similarity_metrics(first[:, 0], scores))

    retrieval = evaluate_metrics.Retrieval()
    for half in (slice(0, 5), slice(5, 12)):
        retrieval.add_batch(predictions=first[half], references=second[half])
    names = [f"d{i // 2}" for i in range(12)]
    assert retrieval.compute(document_ids=names, k=5) == pytest.approx(
        metrics.retrieval_metrics(first, second, document_ids=names, k=5)
    )
    computed = evaluate_metrics.Geometry().compute(predictions=first, references=second)
    assert computed == pytest.approx(metrics.geometry_metrics(first, (first, second)), rel=1e-5)
    assert computed["uniformity"] == pytest.approx(losses.uniformity(torch.from_numpy(first)).item())
