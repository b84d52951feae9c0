"""Chunks of a batch give what the whole batch gives: loss, gradients and dropout."""

import pytest
import torch
from helpers import NO_DROPOUT, batch_of_two_views, ragged_batch, tiny_model
from torch.utils._pytree import tree_leaves
from transformers import TrainingArguments

from simmim_hf import SimMIMTrainer
from simmim_hf.model.configuration_simmim import OBJECTIVES

LENGTHS = [9, 1, 5, 14, 5, 7, 2]


def loss_and_gradients(model, batch, chunk_size=None):
    model.chunk_size = chunk_size
    model.zero_grad()
    outputs = model(**batch)
    outputs.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return outputs, gradients


def assert_same(one, other, tolerance=1e-5):
    (outputs, gradients), (expected, expected_gradients) = one, other
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name], value, atol=tolerance, rtol=tolerance, msg=name)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize(
    ("objective", "chunk_size"),
    [*((objective, 3) for objective in OBJECTIVES), *(("fused", chunk_size) for chunk_size in (1, 7, 100))],
)
def test_chunks_equal_the_whole(objective, chunk_size):
    model = tiny_model(backbone=NO_DROPOUT, **OBJECTIVES[objective]).train()
    batch = batch_of_two_views(LENGTHS, LENGTHS[::-1])
    assert_same(loss_and_gradients(model, batch, chunk_size), loss_and_gradients(model, batch))


@pytest.mark.parametrize("family", ["modernbert", "llama", "mpnet"])
def test_chunks_equal_the_whole_for_other_backbones(family):
    options = {"attention_dropout": 0.0} if family == "llama" else {}
    model = tiny_model(family, backbone=options, projection_dim=8).eval()
    negatives = {"negative_input_ids": batch_of_negatives(), "negative_attention_mask": None}
    batch = {**ragged_batch(LENGTHS, side="left"), **negatives}
    assert_same(loss_and_gradients(model, batch, 2), loss_and_gradients(model, batch))


def batch_of_negatives():
    return ragged_batch([4, 4, 4], seed=3)["input_ids"]


def test_chunks_work_with_gradient_checkpointing_and_autocast():
    model = tiny_model(backbone=NO_DROPOUT).train()
    batch = ragged_batch(LENGTHS)
    expected = loss_and_gradients(model, batch)
    model.gradient_checkpointing_enable()
    assert_same(loss_and_gradients(model, batch, 2), expected)
    model.gradient_checkpointing_disable()
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(loss_and_gradients(model, batch, 2), loss_and_gradients(model, batch), tolerance=3e-2)


def test_dropout_is_replayed_in_backward(monkeypatch):
    model = tiny_model().train()
    batch = ragged_batch(LENGTHS)
    torch.manual_seed(1)
    replayed = loss_and_gradients(model, batch, 2)
    # The same chunks without the second forward, so with one set of dropout masks only.
    monkeypatch.setattr("simmim_hf.model.objective.checkpoint", lambda read, view, use_reentrant: read(view))
    torch.manual_seed(1)
    assert_same(replayed, loss_and_gradients(model, batch, 2))
    torch.manual_seed(2)
    assert not torch.allclose(replayed[0].loss, loss_and_gradients(model, batch, 2)[0].loss)


def test_the_tensors_of_a_chunk_are_positional(monkeypatch):
    """`checkpoint` saves the random state of the devices that it finds among the positional arguments only: on a GPU
    the dropout of a chunk would not be replayed otherwise."""
    devices = []

    def spy(read, *arguments, use_reentrant):
        devices.append({leaf.device for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)})
        return read(*arguments)

    monkeypatch.setattr("simmim_hf.model.objective.checkpoint", spy)
    loss_and_gradients(tiny_model().train(), ragged_batch(LENGTHS), 4)
    assert devices == [{torch.device("cpu")}] * 2


def test_the_trainer_sets_the_chunk(tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    assert SimMIMTrainer(tiny_model(), arguments, chunk_size=2).model.chunk_size == 2
    assert SimMIMTrainer(tiny_model(), arguments).model.chunk_size is None
    with pytest.raises(ValueError, match="chunk_size=0"):
        SimMIMTrainer(tiny_model(), arguments, chunk_size=0)


def test_a_chunk_is_computed_twice_and_only_its_results_are_kept():
    model, calls = tiny_model().train(), []
    model.simmim.encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    one = torch.ones(1, 3, dtype=torch.long)
    model.simmim.token_states(one, one)  # first-use trials
    calls.clear()
    loss_and_gradients(model, ragged_batch(LENGTHS), 2)
    assert len(calls) >= 2 * 4  # 7 sequences in chunks of 2


def test_logits_of_many_tokens_never_exist_together(monkeypatch):
    model = tiny_model(backbone=NO_DROPOUT, **OBJECTIVES["fused"]).train()
    batch, linear, sizes = ragged_batch(LENGTHS), torch.nn.functional.linear, []
    expected = loss_and_gradients(model, batch)

    def spy(hidden, weight, bias=None):
        if len(weight) == model.config.vocab_size:
            sizes.append(len(hidden))
        return linear(hidden, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", spy)
    monkeypatch.setattr("simmim_hf.model.objective.LOGITS_AT_ONCE_CPU", 3 * model.config.vocab_size)
    assert_same(loss_and_gradients(model, batch), expected)
    assert max(sizes) == 3
    assert_same(loss_and_gradients(model, batch, 2), expected)


def test_another_projection_than_a_linear_layer_is_called():
    """As peft's adapters are: its own forward must not be passed by."""
    model = tiny_model(backbone=NO_DROPOUT).train()
    expected, projection = loss_and_gradients(model, ragged_batch(LENGTHS)), model.lm_head.decoder
    projection.__class__ = type("Adapted", (torch.nn.Linear,), {})
    assert_same(loss_and_gradients(model, ragged_batch(LENGTHS)), expected)
