"""Every term against its formula, written with plain loops and computed one unpadded sequence at a time."""

import math

import pytest
import torch
from helpers import LENGTHS, batch_of_two_views, ragged_batch, randomize, real_rows, text_config, tiny_model
from torch.autograd import gradcheck
from torch.func import functional_call

from simmim_hf import SimMIMConfig, SimMIMForPreTraining
from simmim_hf.model.configuration_simmim import OBJECTIVES
from simmim_hf.model.losses import (
    alignment,
    contrastive_cross_entropy,
    contrastive_loss,
    global_means,
    linear_cross_entropy,
    similarity_matrix,
    token_cross_entropy,
    uniformity,
)

# The formulas.


def negative_log_probability(logits, target):
    return math.log(sum(math.exp(x) for x in logits)) - logits[target]


def similarity(a, b, kind):
    product = sum(x * y for x, y in zip(a, b, strict=True))
    if kind == "dot":
        return product
    return product / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b)))


def contrast(rows, candidates, hard, form, kind, temperature):
    """Mean over rows; the positive of row i is candidate i, everything else is a negative."""
    total = 0.0
    for i, row in enumerate(rows):
        positive = math.exp(similarity(row, candidates[i], kind) / temperature)
        negatives = [c for j, c in enumerate(candidates) if j != i] + list(hard)
        negatives = sum(math.exp(similarity(row, c, kind) / temperature) for c in negatives)
        total -= math.log(positive / (negatives + positive if form == "info_nce" else negatives))
    return total / len(rows)


# The same quantities, each sequence by itself: no padding, no unpadding, no batch.


def hidden_alone(model, ids, attention_mask, is_causal=False):
    with torch.no_grad():
        return [
            model.base_model(input_ids=row, is_causal=is_causal).last_hidden_state[0]
            for row in real_rows(ids, attention_mask)
        ]


def pooled_alone(model, ids, attention_mask):
    return [hidden.double().mean(0).tolist() for hidden in hidden_alone(model, ids, attention_mask)]


def mlm_alone(model, batch):
    losses = []
    labels = real_rows(batch["labels"], batch["attention_mask"])
    for hidden, row in zip(hidden_alone(model, batch["masked_input_ids"], batch["attention_mask"]), labels):
        logits = model.lm_head(hidden).double().tolist()
        losses += [negative_log_probability(logits[i], t) for i, t in enumerate(row[0].tolist()) if t != -100]
    return sum(losses) / len(losses)


def clm_alone(model, batch):
    losses = []
    rows = real_rows(batch["input_ids"], batch["attention_mask"])
    for hidden, row in zip(hidden_alone(model, batch["input_ids"], batch["attention_mask"], True), rows):
        logits, ids = model.lm_head(hidden).double().tolist(), row[0].tolist()
        losses += [negative_log_probability(logits[t], ids[t + 1]) for t in range(len(ids) - 1)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("family", "side"), [("bert", "left"), ("bert", "right"), ("modernbert", "right"), ("llama", "left")]
)
def test_every_term_is_its_formula(family, side):
    weights = {"mlm_weight": 0.3, "contrastive_weight": 0.7, "clm_weight": 1.1}
    model = tiny_model(family, temperature=0.2, **weights)
    batch = ragged_batch(LENGTHS, side)
    with torch.no_grad():
        out = model(**batch)
    mask = batch["attention_mask"]
    originals, copies = (pooled_alone(model, batch[name], mask) for name in ("input_ids", "masked_input_ids"))
    expected = {
        "mlm_loss": mlm_alone(model, batch),
        "contrastive_loss": contrast(originals, copies, [], "info_nce", "cosine", 0.2),
        "clm_loss": clm_alone(model, batch),
    }
    torch.testing.assert_close(out.original_embeds.double(), torch.tensor(originals).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.masked_embeds.double(), torch.tensor(copies).double(), rtol=0, atol=1e-5)
    for name, value in expected.items():
        assert out[name].item() == pytest.approx(value, abs=1e-5), name
    weighted = sum(w * expected[name.replace("weight", "loss")] for name, w in weights.items())
    assert out.loss.item() == pytest.approx(weighted, abs=1e-5)


@pytest.mark.parametrize("hard", [0, 3], ids=["in-batch", "hard-negatives"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["one-way", "symmetric"])
@pytest.mark.parametrize("kind", ["cosine", "dot"])
@pytest.mark.parametrize("form", ["info_nce", "decoupled"])
def test_contrastive_forms(form, kind, symmetric, hard):
    temperature = 0.2 if kind == "cosine" else 2.0
    options = {"contrastive_loss": form, "similarity": kind, "symmetric": symmetric, "temperature": temperature}
    model = tiny_model("bert", mlm_weight=0, **options)
    batch = ragged_batch(LENGTHS)
    negatives = []
    if hard:
        extra = ragged_batch([13, 4, 6], seed=1)
        batch |= {"negative_input_ids": extra["input_ids"], "negative_attention_mask": extra["attention_mask"]}
        negatives = pooled_alone(model, extra["input_ids"], extra["attention_mask"])
    with torch.no_grad():
        out = model(**batch)
    mask = batch["attention_mask"]
    originals, copies = (pooled_alone(model, batch[name], mask) for name in ("input_ids", "masked_input_ids"))
    expected = contrast(originals, copies, negatives, form, kind, temperature)
    if symmetric:
        expected = (expected + contrast(copies, originals, [], form, kind, temperature)) / 2
    assert out.contrastive_loss.item() == pytest.approx(expected, abs=1e-5)
    assert out.loss.item() == out.contrastive_loss.item()
    # The loss is that of the vectors which the output shows.
    shown = [out.original_embeds.tolist(), out.masked_embeds.tolist()]
    again = contrast(*shown, negatives, form, kind, temperature)
    if symmetric:
        again = (again + contrast(*shown[::-1], [], form, kind, temperature)) / 2
    assert out.contrastive_loss.item() == pytest.approx(again, abs=1e-5)


def test_hard_negatives_need_no_mask():
    model = tiny_model("bert", mlm_weight=0)
    batch, negatives = ragged_batch(LENGTHS), ragged_batch([4, 4], seed=1)["input_ids"]
    with torch.no_grad():
        without = model(**batch, negative_input_ids=negatives)
        given = model(**batch, negative_input_ids=negatives, negative_attention_mask=torch.ones_like(negatives))
    assert without.loss == given.loss


def test_mlm_reads_the_corrupted_positions_only():
    """The target is the original token; labels under padding and uncorrupted positions do not count."""
    model = tiny_model("bert", contrastive_weight=0)
    batch = ragged_batch(LENGTHS)
    with torch.no_grad():
        loss = model(**batch).mlm_loss
        noisy = batch["labels"].masked_fill(batch["attention_mask"] == 0, 9)
        assert model(**{**batch, "labels": noisy}).mlm_loss == loss
        other = torch.where(batch["labels"] == -100, -100, 6)
        assert model(**{**batch, "labels": other}).mlm_loss != loss
        # Without a contrastive term nothing reads the originals.
        assert model(**{**batch, "input_ids": batch["input_ids"].flip(0)}).mlm_loss == loss


def test_mlm_is_the_mean_over_all_positions_not_over_sequences():
    model = tiny_model("bert", contrastive_weight=0)
    batch = ragged_batch([12, 3])
    with torch.no_grad():
        both = model(**batch).mlm_loss
        alone = [model(**{k: v[i : i + 1] for k, v in batch.items()}).mlm_loss for i in range(2)]
    counts = (batch["labels"] != -100).sum(1)
    assert counts[0] != counts[1]
    torch.testing.assert_close(both, (alone[0] * counts[0] + alone[1] * counts[1]) / counts.sum(), rtol=0, atol=1e-5)


def test_nothing_corrupted_gives_zero_and_a_zero_gradient():
    model = tiny_model("bert", contrastive_weight=0)
    batch = ragged_batch(LENGTHS)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = model(**batch).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("form", ["info_nce", "decoupled"])
def test_one_candidate_cannot_be_contrasted(form):
    model = tiny_model("bert", mlm_weight=0, contrastive_loss=form)
    out = model(**ragged_batch([6]))
    out.loss.backward()
    assert out.loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_large_scores_do_not_overflow():
    scores = torch.tensor([[1e4, 0.0, -1e4], [1e4, 1e4, 1e4]])
    for form in ("info_nce", "decoupled"):
        assert contrastive_cross_entropy(scores, torch.tensor([0, 1]), form).isfinite()


# Gradients.


def test_gradient_of_token_cross_entropy():
    logits = torch.randn(5, 7, dtype=torch.double, requires_grad=True)
    assert gradcheck(lambda x: token_cross_entropy(x, torch.tensor([0, 6, 3, 3, 1])), logits)


def test_linear_cross_entropy_in_autocast_and_of_nothing():
    hidden, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((50, 16), (30, 16), (30,)))
    targets = torch.arange(50) % 30
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(hidden, weight, bias, targets, 8)
        expected = token_cross_entropy(torch.nn.functional.linear(hidden, weight, bias), targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
    actual, wanted = (torch.autograd.grad(x, (hidden, weight, bias)) for x in (loss, expected))
    torch.testing.assert_close(actual, wanted, rtol=5e-2, atol=3e-2)
    nothing, correct = linear_cross_entropy(hidden[:0], weight, bias, targets[:0], 8)
    nothing.backward()
    assert nothing == correct == 0 and not weight.grad.any() and not bias.grad.any()


def test_evaluation_makes_no_gradient(monkeypatch):
    hidden, weight = (torch.randn(n, 4, requires_grad=True) for n in (5, 7))
    products, addmm_ = [], torch.Tensor.addmm_
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda *args: products.append(1) or addmm_(*args))
    with torch.no_grad():
        without, _ = linear_cross_entropy(hidden, weight, None, torch.arange(5), 2)
    assert not products
    loss, _ = linear_cross_entropy(hidden, weight, None, torch.arange(5), 2)
    assert products and torch.equal(loss, without)


@pytest.mark.parametrize("kind", ["cosine", "dot"])
@pytest.mark.parametrize("form", ["info_nce", "decoupled"])
def test_gradient_of_the_contrastive_loss(form, kind):
    rows, candidates = (torch.randn(n, 4, dtype=torch.double, requires_grad=True) for n in (3, 5))
    positives = torch.tensor([0, 1, 2])
    assert gradcheck(
        lambda x, y: contrastive_cross_entropy(similarity_matrix(x, y, kind) / 0.5, positives, form),
        (rows, candidates),
    )


@pytest.mark.parametrize("options", [{}, {"contrastive_loss": "decoupled", "similarity": "dot", "pooling": "cls"}])
def test_gradient_of_the_whole_model(options):
    """Through unpadding, encoder, pooling, heads and all terms, against finite differences in a random direction.

    In double precision a wrong entry shows in almost every direction, for two forwards instead of two an entry.
    """
    small = {"vocab_size": 16, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    small |= {"max_position_embeddings": 8}
    config = SimMIMConfig(
        text_config=text_config("bert", **small),
        temperature=0.5,
        mlm_weight=0.3,
        clm_weight=0.5,
        projection_dim=4,
        **options,
    )
    model = randomize(SimMIMForPreTraining(config).double(), scale=0.3)
    batch = ragged_batch([5, 3, 4])
    for name in ("input_ids", "masked_input_ids", "labels"):
        batch[name] = batch[name].where(batch[name] < 0, batch[name] % 16)
    model(**batch)
    names = [
        "simmim.encoder.embeddings.word_embeddings.weight",  # tied: through input and output
        "simmim.encoder.embeddings.LayerNorm.weight",
        "simmim.encoder.encoder.layer.1.attention.self.query.weight",
        "lm_head.dense.bias",
        "projection.dense.bias",
    ]
    parameters = dict(model.named_parameters())
    for name in names:
        weight = parameters[name].detach().clone().requires_grad_()
        assert gradcheck(
            lambda w, name=name: functional_call(model, {name: w}, kwargs=batch, tie_weights=True).loss,
            weight,
            fast_mode=True,
        ), name


# Diagnostics and precision.


def unit(vector):
    norm = math.sqrt(sum(x * x for x in vector))
    return [x / norm for x in vector]


def test_alignment_and_uniformity():
    x, y = torch.randn(5, 4, dtype=torch.double), torch.randn(5, 4, dtype=torch.double)
    rows, others = ([unit(v) for v in t.tolist()] for t in (x, y))
    squared = lambda a, b: sum((p - q) ** 2 for p, q in zip(a, b))  # noqa: E731
    expected = sum(squared(a, b) for a, b in zip(rows, others)) / 5
    assert alignment(x, y).item() == pytest.approx(expected, abs=1e-10)
    pairs = [math.exp(-2 * squared(rows[i], rows[j])) for i in range(5) for j in range(i + 1, 5)]
    assert uniformity(x).item() == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-10)


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(dtype, autocast):
    logits, rows, others = (torch.randn(6, 9).to(dtype) for _ in range(3))
    targets = torch.arange(6)

    def everything(logits, rows, others):
        scores = similarity_matrix(rows, others)
        return [
            token_cross_entropy(logits, targets),
            scores,
            similarity_matrix(rows, others, "dot"),
            contrastive_cross_entropy(scores / 0.05, targets, "info_nce"),
            contrastive_cross_entropy(scores / 0.05, targets, "decoupled"),
            alignment(rows, others),
            uniformity(rows),
        ]

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual = everything(logits, rows, others)
    for value, expected in zip(actual, everything(logits.float(), rows.float(), others.float())):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


def test_the_model_under_autocast_has_float32_losses():
    model, batch = tiny_model("bert", clm_weight=1.0, temperature=0.5), ragged_batch(LENGTHS)
    with torch.no_grad():
        expected = model(**batch)
        with torch.autocast("cpu", torch.bfloat16):
            actual = model(**batch)
    for name in ("loss", "mlm_loss", "contrastive_loss", "clm_loss"):
        assert actual[name].dtype == torch.float32
        torch.testing.assert_close(actual[name], expected[name], rtol=0.03, atol=0.03)


def test_global_means_on_one_process():
    total = torch.tensor(6.0, requires_grad=True)
    means = global_means({"a": (total, 3), "b": (torch.tensor(0.0), 0), "c": (torch.tensor(4.0), torch.tensor(2))})
    assert {name: value.item() for name, value in means.items()} == {"a": 2.0, "b": 0.0, "c": 2.0}
    means["a"].backward()
    torch.testing.assert_close(total.grad, torch.tensor(1 / 3))


def test_accuracies():
    model, batch = tiny_model("bert"), ragged_batch(LENGTHS)
    with torch.no_grad():
        out = model(**batch)
        logits = model(input_ids=batch["masked_input_ids"], attention_mask=batch["attention_mask"]).logits
    predicted = batch["labels"] != -100
    hits = logits.argmax(-1)[predicted] == batch["labels"][predicted]
    torch.testing.assert_close(out.mlm_accuracy, hits.float().mean())
    nearest = torch.nn.functional.cosine_similarity(out.original_embeds[:, None], out.masked_embeds[None], dim=-1)
    torch.testing.assert_close(out.contrastive_accuracy, (nearest.argmax(1) == torch.arange(4)).float().mean())


@pytest.mark.parametrize("form", ["info_nce", "decoupled"])
@pytest.mark.parametrize("kind", ["cosine", "dot"])
@pytest.mark.parametrize("negatives", ["other_view", "both_views"])
def test_the_contrastive_loss_without_a_model_is_the_formula(form, kind, negatives):
    torch.manual_seed(0)
    anchors, positives, hard = torch.randn(4, 3), torch.randn(4, 3), torch.randn(2, 3)
    options = {"similarity": kind, "form": form, "temperature": 0.7, "negatives": negatives}
    sums = contrastive_loss(anchors, positives, hard, **options)
    both_ways = contrastive_loss(anchors, positives, hard, symmetric=True, **options)

    def one_way(rows, candidates, hard):
        total = 0.0
        for i, row in enumerate(rows):
            others = [other for j, other in enumerate(rows) if j != i] if negatives == "both_views" else []
            pair = [candidates[i], *candidates[:i], *candidates[i + 1 :]]
            total += contrast([row], pair, [*others, *hard], form, kind, 0.7)
        return total

    anchors, positives, hard = anchors.tolist(), positives.tolist(), hard.tolist()
    forwards, backwards = one_way(anchors, positives, hard), one_way(positives, anchors, [])
    assert sums.num_anchors == 4
    assert sums.loss_sum.item() == pytest.approx(forwards, rel=1e-5)
    assert both_ways.loss_sum.item() == pytest.approx((forwards + backwards) / 2, rel=1e-5)
    scores = [[similarity(row, candidate, kind) for candidate in positives + hard] for row in anchors]
    assert sums.num_correct == sum(row.index(max(row)) == i for i, row in enumerate(scores))


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_the_output_has_the_counts_and_the_tokens_of_its_views(objective):
    model = tiny_model("bert", **OBJECTIVES[objective])
    batch = batch_of_two_views(LENGTHS, LENGTHS[::-1])
    out = model(**batch)
    assert out.counts == model.counts(**batch)
    assert out.counts.keys() == {name for name in out if name.endswith(("_loss", "_accuracy"))}
    assert out.num_tokens == sum(view.attention_mask.sum() for view in model.views(**batch))
    assert {"counts", "num_tokens"} <= set(model.config.keys_to_ignore_at_inference)
