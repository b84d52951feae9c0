"""Vectors of earlier batches as negatives: `queue_embeds` of the forward."""

import pytest
import torch
from helpers import NO_DROPOUT, assert_same_gradients, batch_of_two_views, gradients, tiny_model

from simmim_hf.model.configuration_simmim import OBJECTIVES

LENGTHS = [9, 1, 5, 14, 5]
FORMS = [
    ("simmim", {}),
    ("simmim", {"contrastive_loss": "decoupled", "symmetric": True}),
    ("simcse", {"similarity": "dot", "temperature": 2.0}),
    ("spans", {"contrastive_loss": "decoupled", "projection_dim": 5}),
    ("snippets", {}),
]


def term_by_term(config, rows, positives, queue) -> torch.Tensor:
    """The contrastive loss of one direction; `queue` (queue, 2, dim) has rows and positives that came before."""
    total = 0.0
    for i, row in enumerate(rows):
        others = [x for j, x in enumerate(positives) if j != i] + [pair[1] for pair in queue]
        if config.negatives == "both_views":
            others += [x for j, x in enumerate(rows) if j != i] + [pair[0] for pair in queue]
        similarity = torch.nn.functional.cosine_similarity if config.similarity == "cosine" else torch.dot
        scores = [
            (similarity(row, x, *([0] if config.similarity == "cosine" else [])) / config.temperature).exp()
            for x in (positives[i], *others)
        ]
        total -= (scores[0] / sum(scores[config.contrastive_loss == "decoupled" :])).log()
    return total / len(rows)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize(("objective", "options"), FORMS)
def test_the_loss_with_a_queue_is_that_of_its_definition(objective, options, chunk_size):
    model = tiny_model(backbone=NO_DROPOUT, **{**OBJECTIVES[objective], **options}).train()
    model.chunk_size, config = chunk_size, model.config
    earlier = model(**batch_of_two_views([4, 7, 6, 3, 2, 8, 5], [2] * 7))
    queue = torch.stack([earlier.original_embeds, earlier.masked_embeds], dim=1).detach()
    batch = batch_of_two_views(LENGTHS, LENGTHS[::-1])
    outputs = model(**batch, queue_embeds=queue)
    rows, positives = outputs.original_embeds, outputs.masked_embeds
    expected = term_by_term(config, rows, positives, queue)
    if config.symmetric:
        expected = (expected + term_by_term(config, positives, rows, queue.flip(1))) / 2
    torch.testing.assert_close(outputs.contrastive_loss, expected)
    found = torch.autograd.grad(outputs.contrastive_loss, [rows, positives], retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected, [rows, positives]), rtol=1e-4, atol=1e-6)
    without = model(**batch)
    assert outputs.contrastive_accuracy == without.contrastive_accuracy
    assert (outputs.contrastive_loss - without.contrastive_loss).abs() > 1e-3


def test_an_empty_queue_changes_nothing():
    model, batch = tiny_model(), batch_of_two_views(LENGTHS, LENGTHS)
    empty = torch.zeros(0, 2, model.config.hidden_size)
    outputs, expected = model(**batch, queue_embeds=empty), model(**batch)
    assert torch.equal(outputs.loss, expected.loss)
    assert_same_gradients(gradients(model, outputs.loss), gradients(model, expected.loss))
