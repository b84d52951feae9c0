"""Classification, token classification, question answering and multiple choice on a pre-trained encoder."""

import logging

import pytest
import torch
from heads import CLASSES, HEADS, inputs_of, labels_of, named, tiny_head
from helpers import (
    LENGTHS,
    VOCAB,
    assert_same_gradients,
    gradients,
    ragged_batch,
    randomize,
    real_rows,
    text_config,
    tiny_model,
)
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForSequenceClassification,
)

from simmim_hf import (
    SimMIMForCausalLM,
    SimMIMForMaskedLM,
    SimMIMForMultipleChoice,
    SimMIMForPreTraining,
    SimMIMForQuestionAnswering,
    SimMIMForSequenceClassification,
    SimMIMForTokenClassification,
    SimMIMModel,
)

FOUR = ["bert", "roberta", "modernbert", "llama"]
AUTO = {
    SimMIMForSequenceClassification: AutoModelForSequenceClassification,
    SimMIMForTokenClassification: AutoModelForTokenClassification,
    SimMIMForQuestionAnswering: AutoModelForQuestionAnswering,
    SimMIMForMultipleChoice: AutoModelForMultipleChoice,
}
each_head = pytest.mark.parametrize("head", HEADS, ids=named)
# A head knows nothing of the family below it: all heads on one family, and one head, which reads every token, on all.
each_pair = pytest.mark.parametrize(
    ("head", "family"),
    [*((head, "bert") for head in HEADS), *((SimMIMForTokenClassification, family) for family in FOUR[1:])],
    ids=named,
)


def scores(output):
    """All logits of any head."""
    names = ("logits",) if "logits" in output else ("start_logits", "end_logits")
    return torch.stack([output[name] for name in names])


# Loading and saving.


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Family -> (checkpoint, its encoder); made once each, with what only pre-training needs."""
    made = {}

    def get(family):
        if family not in made:
            model = tiny_model(family, projection_dim=8, clm_weight=1)
            made[family] = tmp_path_factory.mktemp(family), model.simmim.state_dict()
            model.save_pretrained(made[family][0])
        return made[family]

    return get


@each_pair
def test_only_the_head_is_new(family, head, pretrained, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    folder, encoder = pretrained(family)
    with caplog.at_level(logging.WARNING):
        model, info = AUTO[head].from_pretrained(folder, num_labels=CLASSES, output_loading_info=True)
    assert type(model) is head
    assert info["missing_keys"] == {f"{HEADS[head]}.weight", f"{HEADS[head]}.bias"}
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert f"{HEADS[head]}.weight" in caplog.text and "MISSING" in caplog.text
    assert "projection" not in caplog.text and "lm_head" not in caplog.text and "UNEXPECTED" not in caplog.text
    assert not model.training
    loaded = model.simmim.state_dict()
    assert loaded.keys() == encoder.keys()
    assert all(torch.equal(loaded[name], encoder[name]) for name in encoder)


@pytest.mark.parametrize("source", [SimMIMModel, SimMIMForMaskedLM], ids=lambda source: source.__name__)
def test_heads_start_from_every_checkpoint(source, pretrained, tmp_path):
    folder, encoder = pretrained("bert")
    source.from_pretrained(folder).save_pretrained(tmp_path)
    model, info = SimMIMForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"} and not info["unexpected_keys"]
    assert all(torch.equal(model.simmim.state_dict()[name], encoder[name]) for name in encoder)


@each_pair
def test_saving_and_loading_keeps_every_bit(family, head, tmp_path):
    model, batch = tiny_head(head, family), inputs_of(head)
    model.save_pretrained(tmp_path)
    loaded, info = head.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(scores(loaded(**batch)), scores(model(**batch)))


@pytest.mark.parametrize("initializer_range", [0.02, 0.5])
def test_a_new_head_follows_the_initializer_range(initializer_range, tmp_path):
    tiny_model("bert", backbone={"initializer_range": initializer_range}).save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = SimMIMForSequenceClassification.from_pretrained(tmp_path, num_labels=100)
    assert model.classifier.weight.std().item() == pytest.approx(initializer_range, rel=0.1)
    assert model.classifier.bias.abs().max() == 0


def test_the_names_of_the_classes_travel(pretrained, tmp_path):
    names = {0: "dull", 1: "fair", 2: "fine"}
    options = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    for folder, kwargs in ((pretrained("bert")[0], options), (tmp_path, {})):
        model = AutoModelForSequenceClassification.from_pretrained(folder, **kwargs)
        assert model.config.id2label == names and model.config.label2id == options["label2id"]
        assert model.num_labels == model.config.num_labels == model.classifier.out_features == 3
        model.save_pretrained(tmp_path)


def test_another_number_of_classes_replaces_the_head_on_request_only(tmp_path):
    tiny_head(SimMIMForSequenceClassification).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch|ignore_mismatched_sizes"):
        SimMIMForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    model = SimMIMForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert model.classifier.out_features == 5


@pytest.mark.parametrize(
    ("head", "device_map"),
    [
        *((head, "auto") for head in (SimMIMForMultipleChoice, SimMIMForCausalLM, SimMIMModel)),
        *((SimMIMForPreTraining, device_map) for device_map in ("auto", "cpu", {"": "cpu"})),
    ],
    ids=named,
)
def test_device_map(head, device_map, pretrained):
    folder, encoder = pretrained("bert")
    model = head.from_pretrained(folder, device_map=device_map)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    loaded = model.base_model.state_dict()
    assert all(torch.equal(loaded[name], encoder[name]) for name in encoder)
    if model.get_output_embeddings() is not None:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model(**inputs_of(head))


# The vocabulary of the classes with a language-model head.


@pytest.mark.parametrize(
    ("head", "family", "size"),
    [
        *((SimMIMForMaskedLM, family, VOCAB + 9) for family in (*FOUR, "electra")),
        (SimMIMForPreTraining, "bert", VOCAB + 9),
        *((SimMIMForCausalLM, family, VOCAB - 9) for family in ("bert", "llama")),
    ],
    ids=named,
)
def test_another_vocabulary_size_keeps_the_tie(head, family, size, tmp_path):
    model = randomize(head(tiny_model(family).config))
    kept = min(size, VOCAB)
    ids = ragged_batch([7], seed=1)["input_ids"] % (VOCAB - 9)
    with torch.no_grad():
        before = model(ids).logits
        model.resize_token_embeddings(size)
        after = model(ids).logits
    torch.testing.assert_close(after[..., :kept], before[..., :kept])
    assert after.shape[-1] == size == model.config.vocab_size == model.config.text_config.vocab_size
    model.save_pretrained(tmp_path)
    loaded = head.from_pretrained(tmp_path)
    for some in (model, loaded):
        assert some.get_output_embeddings().weight is some.get_input_embeddings().weight
        assert some.get_input_embeddings().num_embeddings == some.get_output_embeddings().out_features == size
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, after)
        loaded.get_input_embeddings().weight[kept - 1] += 1
        assert not torch.equal(loaded(ids).logits[..., kept - 1], after[..., kept - 1])


# Forward and backward.


@each_pair
def test_every_parameter_gets_a_gradient(family, head):
    model = tiny_head(head, family)
    model(**inputs_of(head), **labels_of(head)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        # Every choice of a text has the same bias, and every score of a query the same key bias: softmax sees neither.
        unseen = (head is SimMIMForMultipleChoice and name == "classifier.bias") or "key.bias" in name
        assert unseen or parameter.grad.abs().max() > 0, f"the gradient of {name} is zero"


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@each_pair
def test_gradient_checkpointing_changes_nothing_but_the_memory(family, head):
    model = tiny_head(head, family).train()
    linear = next(module for module in model.simmim.encoder.modules() if isinstance(module, torch.nn.Linear))
    calls, runs = [], []
    linear.register_forward_pre_hook(lambda *_: calls.append(1))
    for expected_calls in (1, 2):
        calls.clear()
        loss = model(**inputs_of(head), **labels_of(head)).loss
        runs.append((loss.detach(), gradients(model, loss)))
        assert len(calls) == expected_calls
        model.gradient_checkpointing_enable()
    torch.testing.assert_close(runs[1][0], runs[0][0], rtol=0, atol=1e-6)
    assert_same_gradients(runs[1][1], runs[0][1])


@each_pair
def test_embeddings_instead_of_ids(family, head):
    model, batch = tiny_head(head, family), inputs_of(head)
    with torch.no_grad():
        expected = scores(model(**batch))
        embeds = model.get_input_embeddings()(batch["input_ids"])
        actual = scores(model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]))
    torch.testing.assert_close(actual, expected)


@each_pair
def test_hidden_states_and_attentions(family, head):
    model, batch = tiny_head(head, family, attn_implementation="eager"), inputs_of(head)
    rows, length = batch["input_ids"].flatten(0, -2).shape
    config = model.config
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True, output_attentions=True)
        plain = tiny_head(head, family)(**batch)
    assert [state.shape for state in output.hidden_states] == [(rows, length, config.hidden_size)] * 3
    assert [a.shape for a in output.attentions] == [(rows, config.num_attention_heads, length, length)] * 2
    real = batch["attention_mask"].flatten(0, -2).bool()
    for attention in output.attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
        pairs = real[:, :, None] & ~real[:, None, :]  # a real token and a padded one
        assert attention.transpose(0, 1)[:, pairs].abs().max() == 0, "padding is attended to"
    assert plain.hidden_states is None and plain.attentions is None
    torch.testing.assert_close(real_scores(output, head, batch), real_scores(plain, head, batch))


def real_scores(output, head, batch):
    """The logits that padding has no part in, flat."""
    if head in (SimMIMForTokenClassification, SimMIMForQuestionAnswering):
        return torch.cat([score[batch["attention_mask"].bool()].flatten() for score in scores(output)])
    return scores(output)


@pytest.mark.parametrize(
    ("head", "family"),
    [
        *((head, "bert") for head in (SimMIMForSequenceClassification, SimMIMForMaskedLM, SimMIMForPreTraining)),
        *((SimMIMModel, family) for family in ("bert", "distilbert", "llama")),
        *((SimMIMForCausalLM, family) for family in ("bert", "llama")),
    ],
    ids=named,
)
def test_hidden_states_and_attentions_by_configuration(head, family, tmp_path):
    tiny_model(family).save_pretrained(tmp_path)
    options = {"output_hidden_states": True, "output_attentions": True, "attn_implementation": "eager"}
    model, batch = head.from_pretrained(tmp_path, **options), inputs_of(head)
    output = model(**batch)
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2
    output = model(**batch, output_hidden_states=False, output_attentions=False)
    assert output.hidden_states is None and not output.attentions


@each_head
def test_attentions_with_sdpa_are_as_in_transformers(head, caplog):
    """There are none to show; transformers says so and gives an empty tuple."""
    native = BertForSequenceClassification(text_config()).eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "output_attentions": True}
    expected = native(**inputs).attentions
    inputs["input_ids"] = inputs["input_ids"].expand(2, 2, -1) if head is SimMIMForMultipleChoice else [[5, 6, 7]]
    inputs["input_ids"] = torch.as_tensor(inputs["input_ids"])
    model = tiny_head(head)
    assert model(**inputs).attentions == expected == ()
    with pytest.raises(ValueError, match="eager"):
        model.config.output_attentions = True


@pytest.mark.parametrize(
    ("head", "how"),
    [
        *((head, "argument") for head in HEADS),
        *((head, "config") for head in (SimMIMForSequenceClassification, SimMIMForQuestionAnswering)),
        *((SimMIMForPreTraining, how) for how in ("argument", "config")),
    ],
    ids=named,
)
def test_tuples_on_request(head, how):
    model, batch = tiny_head(head), inputs_of(head)
    if head in HEADS:
        batch |= labels_of(head)
    expected = model(**batch).to_tuple()
    if how == "config":
        model.config.return_dict = False
        actual = model(**batch)
    else:
        actual = model(**batch, return_dict=False)
    assert isinstance(actual, tuple) and len(actual) == len(expected)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected))


@each_pair
def test_half_precision(family, head, pretrained):
    model = head.from_pretrained(pretrained(family)[0], num_labels=CLASSES, dtype=torch.bfloat16).train()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    output = model(**inputs_of(head), **labels_of(head))
    assert scores(output).dtype == torch.bfloat16
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.bfloat16}


@each_pair
def test_a_text_does_not_see_the_padding_of_its_batch(family, head):
    model, batch = tiny_head(head, family), inputs_of(head, side="right" if family == "roberta" else "left")
    mask = batch["attention_mask"]
    with torch.no_grad():
        together = scores(model(**batch))
        for row in range(len(LENGTHS)):
            if head is SimMIMForMultipleChoice:
                alone = torch.cat(
                    [scores(model(ids[None]))[0] for ids in real_rows(batch["input_ids"][row], mask[row])], 1
                )
                torch.testing.assert_close(together[:, row][None].flatten(), alone.flatten(), rtol=1e-5, atol=1e-5)
                continue
            alone = scores(model(batch["input_ids"][row][mask[row].bool()][None]))[:, 0]
            ours = together[:, row]
            if head is not SimMIMForSequenceClassification:
                ours = ours[:, mask[row].bool()]
            torch.testing.assert_close(ours, alone, rtol=1e-5, atol=1e-5)
