"""Both views corrupted and both predicted, and negatives of both sides: the objective `spans`."""

import pytest
import torch
from helpers import (
    NO_DROPOUT,
    assert_same_gradients,
    batch_of_two_views,
    gradients,
    ragged_batch,
    real_rows,
    tiny_model,
)

from simmim_hf.model.configuration_simmim import OBJECTIVES
from simmim_hf.model.losses import contrastive_cross_entropy

LENGTHS, OTHER_LENGTHS = [9, 1, 5, 14, 5], [4, 8, 5, 3, 12]


def both_views(pad=0, side="right") -> dict[str, torch.Tensor]:
    return batch_of_two_views(LENGTHS, OTHER_LENGTHS, side, pad)


def spans_model(family="bert", **options):
    backbone = NO_DROPOUT if family == "bert" else {}
    return tiny_model(family, backbone=backbone, **{**OBJECTIVES["spans"], **options})


def nt_xent(one: torch.Tensor, other: torch.Tensor, temperature: float) -> torch.Tensor:
    """Equation 1 of Chen et al. 2020, term by term."""
    z = torch.nn.functional.normalize(torch.cat([one, other]), dim=-1)
    losses, rows = [], len(one)
    for i in range(2 * rows):
        scores = {k: (z[i] @ z[k] / temperature).exp() for k in range(2 * rows) if k != i}
        losses.append(-(scores[(i + rows) % (2 * rows)] / sum(scores.values())).log())
    return sum(losses) / len(losses)


def test_the_loss_is_nt_xent_and_masked_prediction_of_both_views():
    model, batch = spans_model(), both_views()
    outputs = model(**batch)
    expected = nt_xent(outputs.original_embeds, outputs.masked_embeds, model.config.temperature)
    torch.testing.assert_close(outputs.contrastive_loss, expected)
    losses = []
    for ids, mask, labels in (
        ("masked_input_ids", "attention_mask", "labels"),
        ("positive_input_ids", "positive_attention_mask", "positive_labels"),
    ):
        logits = model(input_ids=batch[ids], attention_mask=batch[mask]).logits
        losses.append(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[labels].flatten(), reduction="none")
        )
    losses = torch.cat(losses)
    torch.testing.assert_close(outputs.mlm_loss, losses[losses > 0].mean())
    torch.testing.assert_close(outputs.loss, outputs.mlm_loss + outputs.contrastive_loss)


def test_no_uncorrupted_text_is_read():
    model, batch = spans_model(), both_views()
    names = [view.name for view in model.views(**batch)]
    assert names == ["masked", "positive"]
    expected = model(**batch)
    batch["input_ids"] = torch.randint_like(batch["input_ids"], 5, 60)
    torch.testing.assert_close(model(**batch).loss, expected.loss, rtol=0, atol=0)


def test_counts_are_those_of_both_views():
    model, batch = spans_model(), both_views()
    counts = model.counts(**batch)
    predicted = (batch["labels"] != -100).sum() + (batch["positive_labels"] != -100).sum()
    assert counts["mlm_loss"] == counts["mlm_accuracy"] == predicted
    assert counts["contrastive_loss"] == len(LENGTHS)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("form", ["info_nce", "decoupled"])
@pytest.mark.parametrize("hard_negatives", [False, True])
def test_no_row_is_a_negative_of_its_own(symmetric, form, hard_negatives):
    model = spans_model(symmetric=symmetric, contrastive_loss=form)
    batch = both_views()
    if hard_negatives:
        batch["negative_input_ids"] = ragged_batch([4, 4], seed=3)["input_ids"]
    outputs = model(**batch)
    hard = model.simmim(batch["negative_input_ids"]).pooler_output if hard_negatives else None
    total = []
    for rows, others, extra in (
        (outputs.original_embeds, outputs.masked_embeds, hard),
        (outputs.masked_embeds, outputs.original_embeds, None),
    ):
        candidates = torch.cat([others, rows, *([] if extra is None else [extra])])
        scores = torch.nn.functional.cosine_similarity(rows[:, None], candidates[None], dim=-1) / 0.05
        n = torch.arange(len(rows))
        scores[n, len(rows) + n] = -torch.inf
        positives = scores[n, n]
        if form == "decoupled":
            scores[n, n] = -torch.inf
        total.append((scores.logsumexp(1) - positives).mean())
    expected = sum(total) / 2 if symmetric else total[0]
    torch.testing.assert_close(outputs.contrastive_loss, expected)


@pytest.mark.parametrize("form", ["info_nce", "decoupled"])
def test_gradient_of_nt_xent(form):
    torch.manual_seed(0)
    scores = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    positives, itself = torch.arange(4), torch.arange(4) + 4
    assert torch.autograd.gradcheck(lambda s: contrastive_cross_entropy(s, positives, form, itself), scores)
    (gradient,) = torch.autograd.grad(contrastive_cross_entropy(scores, positives, form, itself), scores)
    assert (gradient[torch.arange(4), itself] == 0).all()


@pytest.mark.parametrize("form", ["info_nce", "decoupled"])
def test_a_row_without_negatives_gives_zero(form):
    scores = torch.randn(1, 2, requires_grad=True)
    loss = contrastive_cross_entropy(scores, torch.tensor([0]), form, torch.tensor([1]))
    assert loss == 0 and torch.isfinite(torch.autograd.grad(loss, scores)[0]).all()


@pytest.mark.parametrize(
    ("family", "side"),
    [("bert", "right"), *((family, "left") for family in ("bert", "modernbert", "roberta", "llama"))],
)
def test_unpadded_equals_padded(family, side):
    pad = 1 if family == "roberta" else 0
    unpadded, padded = spans_model(family), spans_model(family, attn_implementation="eager")
    batch = both_views(pad, side)
    outputs, expected = unpadded(**batch), padded(**batch)
    for name in ("loss", "mlm_loss", "contrastive_loss", "original_embeds", "masked_embeds"):
        torch.testing.assert_close(outputs[name], expected[name], atol=1e-5, rtol=1e-5)
    assert_same_gradients(gradients(unpadded, outputs.loss), gradients(padded, expected.loss))
    alone = [
        unpadded.simmim(row).pooler_output
        for row in real_rows(batch["positive_input_ids"], batch["positive_attention_mask"])
    ]
    torch.testing.assert_close(outputs.masked_embeds, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("positive_view", "corrupted_views", "chunk_size"),
    [
        *((view, "both", 2) for view in ("masked", "dropout", "span")),
        *((view, "copy", 1) for view in ("dropout", "span")),
    ],
)
def test_chunks_equal_the_whole(positive_view, corrupted_views, chunk_size):
    model = spans_model(positive_view=positive_view, corrupted_views=corrupted_views).train()
    batch = both_views()
    batch["negative_input_ids"] = ragged_batch([4, 4], seed=3)["input_ids"]
    expected = model(**batch)
    model.chunk_size = chunk_size
    outputs = model(**batch)
    torch.testing.assert_close(outputs.loss, expected.loss, atol=1e-5, rtol=1e-5)
    assert_same_gradients(gradients(model, outputs.loss), gradients(model, expected.loss))


@pytest.mark.parametrize("missing", ["positive_input_ids", "positive_labels"])
def test_a_missing_view_is_named(missing):
    batch = both_views()
    del batch[missing]
    with pytest.raises(ValueError, match=f"`{missing}` is missing, .* corrupted_views='both'"):
        spans_model()(**batch)


@pytest.mark.parametrize("negatives", ["other_view", "both_views"])
def test_hard_negatives_count_in_the_accuracy(negatives):
    model = spans_model(corrupted_views="copy", positive_view="masked", negatives=negatives)
    batch = ragged_batch(LENGTHS)
    itself = {"negative_input_ids": batch["input_ids"], "negative_attention_mask": batch["attention_mask"]}
    assert model(**batch).contrastive_accuracy > 0
    assert model(**batch, **itself).contrastive_accuracy == 0  # nothing is nearer to a row than the row
