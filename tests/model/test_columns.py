"""The columns of a batch belong together: what is of another shape or type is refused by its name."""

import pytest
import torch
from heads import inputs_of, labels_of, tiny_head
from helpers import LENGTHS, batch_of_two_views, causal_model, ragged_batch, tiny_model

from simmim_hf import (
    SimMIMForCausalLM,
    SimMIMForMaskedLM,
    SimMIMForMultipleChoice,
    SimMIMForQuestionAnswering,
    SimMIMForSequenceClassification,
    SimMIMForTokenClassification,
    SimMIMModel,
)

BATCH = {**batch_of_two_views(LENGTHS, [5, 3, 4, 4])}
BATCH |= {f"negative_{name}": ragged_batch([4, 6])[name] for name in ("input_ids", "attention_mask")}
BATCH["token_type_ids"] = torch.zeros_like(BATCH["input_ids"])


@pytest.fixture(scope="module")
def model():
    return tiny_model(positive_view="span", corrupted_views="both")


@pytest.mark.parametrize("name", sorted(BATCH.keys() - {"input_ids", "negative_input_ids", "positive_input_ids"}))
@pytest.mark.parametrize("change", [lambda x: x[:, :-1], lambda x: x.T, lambda x: x[:1], lambda x: x[..., None]])
def test_a_column_of_another_shape_is_refused(model, name, change):
    model(**BATCH)
    with pytest.raises(ValueError, match=f"`{name}` has the shape .*: it must be .*, as `.*input_ids` has"):
        model(**{**BATCH, name: change(BATCH[name])})


def test_each_sequence_has_one_positive(model):
    for change in (lambda x: x[:-1], lambda x: torch.cat([x, x])):
        changed = {name: change(column) for name, column in BATCH.items() if name.startswith("positive")}
        with pytest.raises(ValueError, match="`positive_input_ids` has . rows: give as many as `input_ids` has, 4"):
            model(**{**BATCH, **changed})


@pytest.mark.parametrize("name", [name for name in BATCH if not name.endswith("mask")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_what_is_no_integer_is_no_id(model, name, dtype):
    with pytest.raises(ValueError, match=f"`{name}` is {dtype}: it must hold integers"):
        model(**{**BATCH, name: BATCH[name].to(dtype)})


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bool])
def test_a_mask_is_of_any_type(model, dtype):
    expected = model(**BATCH).loss
    masks = {name: column.to(dtype) for name, column in BATCH.items() if name.endswith("mask")}
    torch.testing.assert_close(model(**{**BATCH, **masks}).loss, expected)


def test_ids_without_labels_are_integers_too(model):
    ids = BATCH["input_ids"].float()
    for reader in (model, SimMIMModel(model.config).eval(), causal_model()):
        with pytest.raises(ValueError, match="`input_ids` is torch.float32"):
            reader(input_ids=ids)


def transposed(labels):
    return labels.T.contiguous()


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        (SimMIMForMaskedLM, (transposed, torch.flatten)),
        (SimMIMForCausalLM, (transposed, torch.flatten)),
        (SimMIMForTokenClassification, (transposed, torch.flatten)),
        (SimMIMForSequenceClassification, (lambda labels: labels[None], lambda labels: labels[:-1])),
        (SimMIMForMultipleChoice, (lambda labels: labels[:, None], lambda labels: labels[:-1])),
        (SimMIMForQuestionAnswering, (lambda labels: labels[None], lambda labels: labels[:-1])),
    ],
)
def test_labels_of_another_shape_or_type_are_refused(head, changes):
    model, batch = tiny_head(head), inputs_of(head)
    predicts_tokens = head in (SimMIMForMaskedLM, SimMIMForCausalLM)
    labels = {"labels": batch["input_ids"]} if predicts_tokens else labels_of(head)
    assert model(**batch, **labels).loss.isfinite()
    name = next(iter(labels))
    for change in changes:
        with pytest.raises(ValueError, match=f"`{name}` has the shape .*: it must be"):
            model(**batch, **{**labels, name: change(labels[name])})
    if head is not SimMIMForSequenceClassification:  # which has a loss for numbers
        with pytest.raises(ValueError, match=f"`{name}` is torch.float32"):
            model(**batch, **{**labels, name: labels[name].float()})
