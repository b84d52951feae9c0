"""Classification, token classification, question answering and multiple choice on a pre-trained encoder."""

import logging

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    LENGTHS,
    NO_DROPOUT,
    VOCAB,
    assert_same_gradients,
    gradients,
    ragged_batch,
    randomize,
    real_rows,
    text_config,
    tiny_model,
    tiny_tokenizer,
)
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForSequenceClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

from simmim_hf import (
    SimMIMConfig,
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
HEADS = {
    SimMIMForSequenceClassification: "classifier",
    SimMIMForTokenClassification: "classifier",
    SimMIMForQuestionAnswering: "qa_outputs",
    SimMIMForMultipleChoice: "classifier",
}
AUTO = {
    SimMIMForSequenceClassification: AutoModelForSequenceClassification,
    SimMIMForTokenClassification: AutoModelForTokenClassification,
    SimMIMForQuestionAnswering: AutoModelForQuestionAnswering,
    SimMIMForMultipleChoice: AutoModelForMultipleChoice,
}
CLASSES = 3
SAME_DROPOUT = {"bert": NO_DROPOUT, "roberta": NO_DROPOUT, "modernbert": {}, "llama": {}}


def named(value):
    return value.__name__.removeprefix("SimMIMFor") if isinstance(value, type) else str(value)


each_head = pytest.mark.parametrize("head", HEADS, ids=named)
# A head knows nothing of the family below it: all heads on one family, and one head, which reads every token, on all.
each_pair = pytest.mark.parametrize(
    ("head", "family"),
    [*((head, "bert") for head in HEADS), *((SimMIMForTokenClassification, family) for family in FOUR[1:])],
    ids=named,
)


def tiny_head(head, family="bert", attn_implementation=None, backbone=None, **options):
    """A head on random weights without dropout; its own weights are random too."""
    config = SimMIMConfig(
        text_config=text_config(family, **{**SAME_DROPOUT[family], **(backbone or {})}),
        **{"num_labels": CLASSES, **options},
    )
    if attn_implementation:
        config._attn_implementation = attn_implementation
    torch.manual_seed(0)
    return randomize(head(config))


def inputs_of(head, side="right", seed=0):
    """input_ids and attention_mask; two choices a text for multiple choice."""
    batch = {k: v for k, v in ragged_batch(LENGTHS, side, seed=seed).items() if k in ("input_ids", "attention_mask")}
    if head is SimMIMForMultipleChoice:
        return {name: torch.stack([column, column.roll(1, 0)], 1) for name, column in batch.items()}
    return batch


def labels_of(head):
    ids = ragged_batch(LENGTHS)["input_ids"]
    return {
        SimMIMForSequenceClassification: {"labels": torch.tensor([0, 2, 1, 2])},
        SimMIMForTokenClassification: {"labels": (ids % CLASSES).masked_fill(ids == 0, -100)},
        SimMIMForQuestionAnswering: {
            "start_positions": torch.tensor([2, 0, 4, 1]),
            "end_positions": torch.tensor([3, 1, 9, 1]),
        },
        SimMIMForMultipleChoice: {"labels": torch.tensor([0, 1, 1, 0])},
    }[head]


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
        *((head, "auto") for head in (*HEADS, SimMIMForMaskedLM, SimMIMForCausalLM, SimMIMModel)),
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


@pytest.mark.parametrize("size", [VOCAB + 9, VOCAB - 9], ids=["larger", "smaller"])
@pytest.mark.parametrize(
    ("head", "family"),
    [
        *((SimMIMForMaskedLM, family) for family in (*FOUR, "electra")),
        (SimMIMForPreTraining, "bert"),
        *((SimMIMForCausalLM, family) for family in ("bert", "llama")),
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


@pytest.mark.parametrize("how", ["argument", "config"])
@pytest.mark.parametrize("head", [*HEADS, SimMIMForPreTraining])
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
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_text_does_not_see_the_padding_of_its_batch(side, family, head):
    model, batch = tiny_head(head, family), inputs_of(head, side)
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


# Losses.

LOSSES = {
    "single_label_classification": (3, torch.tensor([0, 2, 1, 2]), F.cross_entropy),
    "multi_label_classification": (
        3,
        torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]),
        F.binary_cross_entropy_with_logits,
    ),
    "regression": (1, torch.tensor([0.5, -1.0, 2.0, 0.0]), lambda logits, labels: F.mse_loss(logits[:, 0], labels)),
}


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
@pytest.mark.parametrize("problem_type", LOSSES)
def test_the_problem_type_decides_about_the_loss(problem_type, given, tmp_path):
    num_labels, labels, loss = LOSSES[problem_type]
    options = {"problem_type": problem_type} if given else {}
    model = tiny_head(SimMIMForSequenceClassification, num_labels=num_labels, **options)
    output = model(**inputs_of(SimMIMForSequenceClassification), labels=labels)
    torch.testing.assert_close(output.loss, loss(output.logits, labels))
    assert model.config.problem_type == problem_type
    model.save_pretrained(tmp_path)
    loaded = SimMIMForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.problem_type == problem_type
    torch.testing.assert_close(
        loaded(**inputs_of(SimMIMForSequenceClassification), labels=labels).loss, output.loss, rtol=0, atol=0
    )


def test_several_numbers_are_a_regression_too():
    model = tiny_head(SimMIMForSequenceClassification, num_labels=2, problem_type="regression")
    labels = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    output = model(**inputs_of(SimMIMForSequenceClassification), labels=labels)
    torch.testing.assert_close(output.loss, F.mse_loss(output.logits, labels))


def test_tokens_without_a_label_are_left_out():
    head = SimMIMForTokenClassification
    model, batch, labels = tiny_head(head), inputs_of(head), labels_of(head)["labels"]
    output = model(**batch, labels=labels)
    real = labels != -100
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits[real], labels[real]))
    fewer = labels.clone()
    fewer[0] = -100
    real[0] = False
    torch.testing.assert_close(model(**batch, labels=fewer).loss, F.cross_entropy(output.logits[real], labels[real]))


def test_answers_beyond_the_text_are_left_out():
    head = SimMIMForQuestionAnswering
    model, batch, labels = tiny_head(head), inputs_of(head), labels_of(head)
    output = model(**batch, **labels)
    start, end = labels["start_positions"], labels["end_positions"]
    expected = (F.cross_entropy(output.start_logits, start) + F.cross_entropy(output.end_logits, end)) / 2
    torch.testing.assert_close(output.loss, expected)
    both = model.qa_outputs(model.simmim(**batch).last_hidden_state)  # the first is the start, as in transformers
    assert torch.equal(both, torch.stack([output.start_logits, output.end_logits], -1))
    far = end.clone()
    far[2] = 1000
    rest = torch.tensor([0, 1, 3])
    expected = F.cross_entropy(output.start_logits, start) + F.cross_entropy(output.end_logits[rest], end[rest])
    torch.testing.assert_close(model(**batch, start_positions=start, end_positions=far).loss, expected / 2)
    assert model(**batch, start_positions=start).loss is None


def test_the_loss_of_a_choice():
    head = SimMIMForMultipleChoice
    output = tiny_head(head)(**inputs_of(head), **labels_of(head))
    assert output.logits.shape == (4, 2)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels_of(head)["labels"]))


# Errors.


@pytest.mark.parametrize("head", [h for h in HEADS if h is not SimMIMForQuestionAnswering])
@pytest.mark.parametrize("wrong", [CLASSES, -1])
def test_a_class_that_does_not_exist_is_refused(head, wrong):
    labels = labels_of(head)["labels"].clone()
    labels.flatten()[1] = wrong
    with pytest.raises(ValueError, match=rf"`labels` holds {wrong}, .*`num_labels=`"):
        tiny_head(head)(**inputs_of(head), labels=labels)


def test_a_column_of_classes_is_checked_too():
    model, batch = tiny_head(SimMIMForSequenceClassification), inputs_of(SimMIMForSequenceClassification)
    labels = torch.tensor([[0], [2], [1], [2]])
    torch.testing.assert_close(model(**batch, labels=labels).loss, model(**batch, labels=labels[:, 0]).loss)
    with pytest.raises(ValueError, match="`labels` holds 7"):
        model(**batch, labels=labels.masked_fill(labels == 1, 7))


@pytest.mark.parametrize("head", [*HEADS, SimMIMForMaskedLM, SimMIMForCausalLM])
def test_nothing_to_read_is_refused(head):
    with pytest.raises(ValueError, match="`input_ids` or `inputs_embeds`"):
        tiny_head(head)()


def test_without_a_padding_token_a_batch_needs_its_mask():
    """What the user of a decoder such as Llama meets, whose tokenizer cannot pad: every step says what is missing."""
    head, tokenizer = SimMIMForSequenceClassification, tiny_tokenizer()
    model = tiny_head(head, "llama", backbone={"pad_token_id": None})
    rows = [{"input_ids": [5, 6, 7], "label": 0}, {"input_ids": [8], "label": 1}]
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="pad"):
        DataCollatorWithPadding(tokenizer)(rows)

    tokenizer.pad_token = tokenizer.sep_token
    batch = DataCollatorWithPadding(tokenizer)(rows)
    output = model(**batch)
    assert output.loss.isfinite()
    alone = torch.cat([model(torch.tensor([row["input_ids"]])).logits for row in rows])
    torch.testing.assert_close(output.logits, alone)

    with pytest.raises(ValueError, match="attention_mask.*pad_token_id"):
        model(batch["input_ids"])
    with pytest.raises(ValueError, match="attention_mask.*pad_token_id"):
        model(inputs_embeds=model.get_input_embeddings()(batch["input_ids"]))
    model.config.pad_token_id = tokenizer.pad_token_id
    model(batch["input_ids"][:1])


# As they are used.


def rows_of(head, count=8):
    """A rule that is read from the first word of a text."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        answer, length = number % 2, 4 + number % 3
        ids = torch.randint(10, VOCAB, (length,), generator=generator).tolist()
        ids[0] = 5 + answer
        row = {"input_ids": ids, "attention_mask": [1] * length}
        if head is SimMIMForSequenceClassification:
            row["label"] = answer
        elif head is SimMIMForTokenClassification:
            row["labels"] = [-100] + [answer] * (length - 1)
        elif head is SimMIMForQuestionAnswering:
            row |= {"start_positions": 1 + answer, "end_positions": 2 + answer}
        else:
            other = [5 + 1 - answer, *ids[1:]]
            row = {"input_ids": [ids, other], "attention_mask": [[1] * length] * 2, "labels": answer}
        rows.append(row)
    return rows


def collate_choices(rows):
    choices = [{k: row[k][i] for k in ("input_ids", "attention_mask")} for row in rows for i in range(2)]
    batch = tiny_tokenizer().pad(choices, return_tensors="pt")
    batch = {name: column.unflatten(0, (len(rows), 2)) for name, column in batch.items()}
    return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


@pytest.mark.slow
@each_head
def test_the_trainer_lowers_the_loss(head, pretrained, tmp_path):
    collator = {
        SimMIMForTokenClassification: DataCollatorForTokenClassification(tiny_tokenizer()),
        SimMIMForMultipleChoice: collate_choices,
    }.get(head, DataCollatorWithPadding(tiny_tokenizer()))
    rows = rows_of(head)
    trainer = Trainer(
        model=head.from_pretrained(pretrained("bert")[0]),
        args=TrainingArguments(
            tmp_path,
            max_steps=25,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=0,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collator,
        compute_metrics=lambda predicted: {"arrays": len(predicted.predictions)},
    )
    assert not trainer.model_accepts_loss_kwargs
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before / 3, f"{before} -> {after['eval_loss']}"
    assert after["eval_arrays"] == (2 if head is SimMIMForQuestionAnswering else len(rows))
    trainer.save_model()
    assert torch.equal(
        head.from_pretrained(tmp_path).simmim.encoder.get_input_embeddings().weight,
        trainer.model.get_input_embeddings().weight,
    )


def save_with_tokenizer(model, folder):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_text_classification_pipeline(tmp_path):
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    model = tiny_head(SimMIMForSequenceClassification, num_labels=2, **names)
    classify = pipeline("text-classification", model=save_with_tokenizer(model, tmp_path))
    texts = ["w1 w2 w3", "w4", "w5 w6"]
    answers = classify(texts, batch_size=3, top_k=None)
    for text, answer in zip(texts, answers, strict=True):
        expected = model(**tiny_tokenizer()(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        assert {a["label"]: pytest.approx(a["score"], abs=1e-5) for a in answer} == dict(
            zip(("bad", "good"), expected)
        )


def test_zero_shot_classification_pipeline(tmp_path):
    names = {0: "entailment", 1: "neutral", 2: "contradiction"}
    options = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    model = tiny_head(SimMIMForSequenceClassification, num_labels=3, **options)
    classify = pipeline("zero-shot-classification", model=save_with_tokenizer(model, tmp_path))
    answer = classify("w1 w2 w3", candidate_labels=["w4", "w5"], hypothesis_template="w6 {}")
    assert set(answer["labels"]) == {"w4", "w5"} and sum(answer["scores"]) == pytest.approx(1)
    pairs = [tiny_tokenizer()("w1 w2 w3", f"w6 {label}", return_tensors="pt") for label in answer["labels"]]
    expected = torch.cat([model(**pair).logits[:, 0] for pair in pairs]).softmax(0)
    torch.testing.assert_close(torch.tensor(answer["scores"]), expected.detach())


def test_token_classification_pipeline(tmp_path):
    names = {"id2label": {0: "O", 1: "B-PER"}, "label2id": {"O": 0, "B-PER": 1}}
    model = tiny_head(SimMIMForTokenClassification, num_labels=2, **names)
    tag = pipeline("token-classification", model=save_with_tokenizer(model, tmp_path), ignore_labels=[])
    answer = tag("w1 w2 w3")
    assert [token["word"] for token in answer] == ["w1", "w2", "w3"]
    labels = model(**tiny_tokenizer()("w1 w2 w3", return_tensors="pt")).logits[0, 1:-1].argmax(-1).tolist()
    assert [token["entity"] for token in answer] == [names["id2label"][label] for label in labels]


def test_a_classifier_still_gives_features(tmp_path):
    """A fine-tuned checkpoint opens as a bare encoder too."""
    model = tiny_head(SimMIMForSequenceClassification)
    extract = pipeline("feature-extraction", model=save_with_tokenizer(model, tmp_path), return_tensors=True)
    expected = model.simmim(**tiny_tokenizer()("w1 w2", return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(extract("w1 w2"), expected)


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_fill_mask_pipeline(family, tmp_path):
    model = tiny_model(family)
    fill = pipeline("fill-mask", model=save_with_tokenizer(model, tmp_path), top_k=3)
    ids = tiny_tokenizer()("w1 [MASK] w3", return_tensors="pt")
    expected = model(**ids).logits[0, 2].softmax(-1).topk(3)
    answer = fill("w1 [MASK] w3")
    assert [a["token"] for a in answer] == expected.indices.tolist()
    torch.testing.assert_close(torch.tensor([a["score"] for a in answer]), expected.values.detach())
