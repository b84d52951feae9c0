"""Sentence vectors, the figures that are made of them, language modelling, and what a run shows."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import tiny_model, tiny_tokenizer
from matplotlib import image
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ndcg_score
from sklearn.model_selection import StratifiedKFold
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, EvalPrediction

from simmim_hf import SimMIMConfig, SimMIMForMaskedLM, SimMIMForPreTraining, losses, metrics, reporting
from simmim_hf.corpora import load_tokenizer, tokenize, train_tokenizer
from simmim_hf.encoders import load_encoder
from simmim_hf.evaluation import (
    encode,
    load_scored_pairs,
    mean_reciprocal_rank,
    similarity_spearman,
    tfidf_reciprocal_rank,
    unigram_cross_entropy,
)
from simmim_hf.language_modelling import (
    load_language_model,
    masked_rows,
    next_token_rows,
    one_mask_rows,
    predict_tokens,
)

TEXTS = [
    "the river runs",
    "a bird",
    "the stone bridge over the quiet river holds",
    "birds sing in the morning",
    "stone",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, vocab_size=120, show_progress=False)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    return SimMIMForPreTraining(SimMIMConfig(text_config=BertConfig(**size, vocab_size=len(tokenizer))))


def test_vectors_are_the_pooled_ones_in_the_order_of_the_texts(model, tokenizer):
    model.train()
    vectors = encode(model, tokenizer, TEXTS, max_length=16, batch_size=2)
    assert model.training, "encoding must not change the mode"
    model.eval()
    for text, vector in zip(TEXTS, vectors, strict=True):
        pooled = model.base_model(**tokenizer(text, return_tensors="pt")).pooler_output[0].detach()
        np.testing.assert_allclose(vector, pooled / pooled.norm(), atol=1e-6)


def test_reciprocal_rank_counts_ties_against_the_right_document():
    queries = np.eye(3)
    documents = np.array([[1.0, 0, 0], [0, 0.5, 0], [0, 0.5, 0.2]])
    assert mean_reciprocal_rank(queries, documents) == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert mean_reciprocal_rank(queries, documents, k=1) == pytest.approx(2 / 3)
    assert mean_reciprocal_rank(queries, np.zeros((3, 3)), k=2) == 0


def test_word_overlap_finds_the_document_that_shares_words():
    assert tfidf_reciprocal_rank(["green apples", "fast cars"], ["apples grow green", "cars drive fast"]) == 1


def test_unigram_cross_entropy_is_that_of_the_counted_tokens(tokenizer):
    train, _ = tokenize(Dataset.from_dict({"text": TEXTS}), tokenizer, 16)
    held_out, _ = tokenize(Dataset.from_dict({"text": ["the bird", "river birds"]}), tokenizer, 16)
    ordinary = set(range(len(tokenizer))) - set(tokenizer.all_special_ids)
    seen = [token for row in train["input_ids"] for token in row if token in ordinary]
    total, count = 0.0, 0
    for token in (token for row in held_out["input_ids"] for token in row if token in ordinary):
        total -= math.log((seen.count(token) + 1) / (len(seen) + len(ordinary)))
        count += 1
    assert unigram_cross_entropy(train, held_out, tokenizer) == pytest.approx(total / count)


def test_similarity_is_one_hundred_for_scores_in_the_order_of_the_cosines(model, tokenizer, tmp_path):
    first, second = TEXTS[:4], TEXTS[1:]
    cosines = (encode(model, tokenizer, first, 16) * encode(model, tokenizer, second, 16)).sum(1)
    rows = [
        {"sentence1": a, "sentence2": b, "score": float(c)} for a, b, c in zip(first, second, cosines, strict=True)
    ]
    file = tmp_path / "pairs.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert similarity_spearman(model, tokenizer, load_scored_pairs(str(file)), 16) == pytest.approx(100)


def test_scored_pairs_without_a_column_name_what_they_have(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"sentence1": "a", "text": "b"}\n')
    with pytest.raises(ValueError, match=r"score.*sentence2.*it has \['sentence1', 'text'\]"):
        load_scored_pairs(str(file))
    with pytest.raises(FileNotFoundError, match="no-such"):
        load_scored_pairs(str(tmp_path / "no-such.jsonl"))


def test_static_vectors_of_real_words_beat_chance(tmp_path):
    """The published reference point: real pairs through the whole path."""
    data = Path(__file__).parents[2] / "shared/data"
    if not data.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the project")
    tokenizer = load_tokenizer(str(data / "tokenizers/bert-base-uncased"))
    torch.manual_seed(0)
    size = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    model = SimMIMForPreTraining(SimMIMConfig(text_config=BertConfig(**size)))
    pairs = load_scored_pairs(str(data / "stsb_en/dev.jsonl.gz"))
    assert len(pairs) == 1500
    assert 40 < similarity_spearman(model, tokenizer, pairs, 64) < 65  # word overlap alone, for random weights


def test_the_table_shows_what_was_measured_and_its_baselines():
    table = reporting.before_after_table({"mlm_loss": 9.5}, {"mlm_loss": 4.25}, {"mlm_loss": 7.0})
    assert "MLM loss   9.500  4.250     7.000  token frequencies" in table
    assert "Spearman" not in table


def test_the_picture_is_drawn_from_the_log(tmp_path):
    history = [{"step": i, "loss": 5 - i, "mlm_loss": 4 - i, "mlm_accuracy": i / 5} for i in range(1, 4)]
    reporting.plot_training(
        [*history, {"step": 3, "eval_mlm_loss": 1.5}, {"step": 3, "train_loss": 2}], tmp_path / "a.png"
    )
    pixels = image.imread(tmp_path / "a.png")
    assert pixels.shape[0] > 300 and pixels[..., :3].std() > 0.05


# ---------------------------------------------------------------------------------------------- figures of vectors


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_correlations_are_those_of_scipy_in_any_order(generator):
    cosines, scores = generator.normal(size=40), generator.integers(0, 6, size=40)
    figures = metrics.similarity_figures(cosines, scores)
    assert figures["spearman"] == pytest.approx(100 * spearmanr(cosines, scores).statistic)
    assert figures["pearson"] == pytest.approx(100 * pearsonr(cosines, scores).statistic)
    order = generator.permutation(40)
    assert metrics.similarity_figures(cosines[order], scores[order]) == pytest.approx(figures)
    assert math.isnan(metrics.similarity_figures(np.ones(40), scores)["spearman"])


@pytest.mark.parametrize(
    ("scores", "said"), [([1, 2], "3 scored pairs"), ([2, 2, 2], "are 2"), ([1, math.nan, 2], "pair 2")]
)
def test_scores_that_nothing_correlates_with_are_refused(scores, said):
    with pytest.raises(ValueError, match=said):
        metrics.similarity_figures([0.1, 0.2, 0.3][: len(scores)], scores)


def slow_retrieval(queries, documents, query_ids, document_ids, k=10):
    """The same figures by sorting lists."""
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
    figures = metrics.retrieval_figures(3 * queries, documents, query_ids, document_ids, k)
    expected = slow_retrieval(queries, documents, query_ids, document_ids, k)
    assert list(figures) == [f"mrr@{k}", "recall@1", f"recall@{k}", f"ndcg@{k}"]
    np.testing.assert_allclose(list(figures.values()), expected, atol=1e-6)
    order = generator.permutation(30)
    shuffled = ([ids[i] for i in order] for ids in (query_ids, document_ids))
    again = metrics.retrieval_figures(queries[order], documents[order], *shuffled, k)
    assert again == pytest.approx(figures)


def test_repeated_documents_are_one_document():
    queries, documents = np.eye(3)[[0, 1, 2]], np.eye(3)[[0, 0, 2]]
    queries[1] = [0.9, 0.1, 0]
    assert metrics.retrieval_figures(queries, documents)["recall@1"] == pytest.approx(1 / 3)  # ties count against it
    assert metrics.retrieval_figures(queries, documents, document_ids=["a", "a", "b"])["recall@1"] == 1


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
    assert metrics.geometry_figures(vectors, (vectors[:8], vectors[1:])) == pytest.approx(expected, rel=1e-5)
    assert "alignment" not in metrics.geometry_figures(vectors)


def test_effective_rank_is_the_number_of_equal_directions():
    assert metrics.geometry_figures(np.tile(np.eye(6)[:4], (3, 1)))["effective_rank"] == pytest.approx(4)
    collapsed = metrics.geometry_figures(np.ones((5, 6)))
    assert collapsed["effective_rank"] == pytest.approx(1, abs=1e-4) and collapsed["mean_cosine"] == pytest.approx(1)


def test_length_probe_reads_a_length_that_is_there_and_no_other(generator):
    lengths = generator.integers(3, 60, size=200)
    noise = generator.normal(size=(200, 8))
    told = np.concatenate([noise, np.log(lengths)[:, None] - np.log(lengths).mean()], axis=1)
    assert metrics.length_probe(told, lengths) > 0.5
    assert metrics.length_probe(noise, lengths) < 0.1
    assert metrics.length_probe(told, [7] * 200) is None
    assert metrics.length_probe(told[:19], lengths[:19]) is None


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
    figures = metrics.transfer_figures(vectors, labels, seed=7)
    assert figures == pytest.approx({"accuracy": np.mean(accuracies), "accuracy_std": np.std(accuracies)})


def test_transfer_to_a_given_test_set(generator):
    train, test = labelled_vectors(generator, 60), labelled_vectors(generator, 200)
    figures = metrics.transfer_figures(*train, *test)
    share = figures["accuracy"] / 100
    assert 0.5 < share < 0.9
    assert figures["accuracy_std"] == pytest.approx(100 * math.sqrt(share * (1 - share) / 200))
    with pytest.raises(ValueError, match=r"all 60 labels are 'x'"):
        metrics.transfer_figures(train[0], ["x"] * 60)
    with pytest.raises(ValueError, match=r"the label 'rare' stands at 2"):
        metrics.transfer_figures(train[0], ["x"] * 29 + ["y"] * 29 + ["rare"] * 2)


def test_metrics_of_the_evaluate_library_fit_compute_metrics(generator):
    first, second = generator.normal(size=(2, 12, 4)).astype(np.float32)
    scores = generator.normal(size=12)
    prediction = EvalPrediction(predictions=first[:, 0], label_ids=scores)
    computed = metrics.Similarity().compute(predictions=prediction.predictions, references=prediction.label_ids)
    assert computed == pytest.approx(metrics.similarity_figures(first[:, 0], scores))

    retrieval = metrics.Retrieval()
    for half in (slice(0, 5), slice(5, 12)):
        retrieval.add_batch(predictions=first[half], references=second[half])
    names = [f"d{i // 2}" for i in range(12)]
    assert retrieval.compute(document_ids=names, k=5) == pytest.approx(
        metrics.retrieval_figures(first, second, document_ids=names, k=5)
    )
    computed = metrics.Geometry().compute(predictions=first, references=second)
    assert computed == pytest.approx(metrics.geometry_figures(first, (first, second)), rel=1e-5)
    assert computed["uniformity"] == pytest.approx(losses.uniformity(torch.from_numpy(first)).item())


# ---------------------------------------------------------------------------------------------- language modelling


@pytest.fixture(scope="module")
def ids():
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(5, 64, (length,), generator=generator).tolist() for length in (9, 3, 1, 6, 12)]
    return [[2, *row, 3] for row in rows]


def test_masked_loss_is_the_mean_over_fixed_positions(ids):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    masked_lm = SimMIMForMaskedLM(model.config).eval()
    masked_lm.load_state_dict(model.state_dict())
    rows = masked_rows(ids, tokenizer, 0.3, seed=1)
    total, right, count = 0.0, 0, 0
    for row, labels in rows:
        logits = model(input_ids=torch.tensor(row)[None]).logits[0].detach()
        for position in np.flatnonzero(labels != -100):
            total -= logits[position].log_softmax(-1)[labels[position]].item()
            right += logits[position].argmax().item() == labels[position]
            count += 1
    for batch_size in (1, 2, 64):
        loss, accuracy = predict_tokens(masked_lm, rows, batch_size, "")
        assert loss == pytest.approx(total / count, rel=1e-5) and accuracy == right / count
    assert count >= len(ids)


def test_masks_depend_on_the_text_and_the_seed_alone(ids):
    def by_text(order, seed=1):
        rows = masked_rows([ids[i] for i in order], tiny_tokenizer(), 0.3, seed)
        return {i: (row.tolist(), labels.tolist()) for i, (row, labels) in zip(order, rows, strict=True)}

    assert by_text([0, 1, 2, 3, 4]) == by_text([4, 2, 0, 1, 3])
    assert by_text([0, 3]).items() <= by_text([0, 1, 2, 3, 4]).items()
    assert by_text([0, 1, 2, 3, 4]) != by_text([0, 1, 2, 3, 4], seed=2)


def test_pseudo_perplexity_masks_each_token_in_turn(ids):
    model, tokenizer = SimMIMForMaskedLM(tiny_model().config).eval(), tiny_tokenizer()
    total = 0.0
    for row in ids:
        for position in range(1, len(row) - 1):
            masked = torch.tensor([*row[:position], tokenizer.mask_token_id, *row[position + 1 :]])
            total -= model(input_ids=masked[None]).logits[0, position].log_softmax(-1)[row[position]].item()
    rows = one_mask_rows(ids, tokenizer)
    assert len(rows) == sum(len(row) - 2 for row in ids)
    assert predict_tokens(model, rows, 7, "")[0] == pytest.approx(total / len(rows), rel=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_next_tokens_are_read_from_left_to_right(family, ids, tmp_path):
    tiny_model(family, clm_weight=1.0).save_pretrained(tmp_path)
    language_model = load_language_model(str(tmp_path))
    assert list(language_model.options) == ["masked", "causal"]
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    total = 0.0
    for row in ids:
        row = torch.tensor(row)
        total += decoder(input_ids=row[None], labels=row[None]).loss.item() * (len(row) - 1)
    options = language_model.options["causal"]
    loss, _ = predict_tokens(language_model.model, next_token_rows(ids), 3, "", **options)
    assert loss == pytest.approx(total / sum(len(row) - 1 for row in ids), rel=1e-4)


def test_few_logits_at_a_time_change_nothing(ids, monkeypatch):
    model = SimMIMForMaskedLM(tiny_model().config).eval()
    rows = one_mask_rows(ids, tiny_tokenizer())
    whole = predict_tokens(model, rows, 64, "")
    monkeypatch.setattr("simmim_hf.language_modelling.LOGITS_AT_ONCE", 1000)
    assert predict_tokens(model, rows, 64, "") == pytest.approx(whole, rel=1e-5)


# ---------------------------------------------------------------------------------------------- other encoders


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_a_plain_encoder_gives_what_it_gives_inside_simmim(tmp_path, pooling):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    BertForMaskedLM(BertConfig(**size, vocab_size=64)).eval().save_pretrained(tmp_path)
    texts = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w1 w2", "w3 w3"]
    plain = load_encoder(str(tmp_path), pooling)
    simmim = SimMIMForPreTraining.from_backbone(str(tmp_path), pooling=pooling)
    expected = encode(simmim, tiny_tokenizer(), texts, 16)
    for batch_size in (1, 3, 64):
        vectors = encode(plain, tiny_tokenizer(), texts, 16, batch_size)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    longer = encode(plain, tiny_tokenizer(), texts, 16, normalize=False)
    np.testing.assert_allclose(longer / np.linalg.norm(longer, axis=1, keepdims=True), expected, atol=1e-5)


def test_a_checkpoint_keeps_its_own_pooling(tmp_path):
    tiny_model("roberta", pooling="max").save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path)).config.pooling == "max"
    assert load_encoder(str(tmp_path), "cls").config.pooling == "cls"
    assert load_encoder(str(tmp_path)).max_length == 62
