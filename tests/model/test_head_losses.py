"""What the heads of downstream tasks learn by: losses, labels that cannot be, and the Trainer."""

import pytest
import torch
import torch.nn.functional as F
from heads import CLASSES, HEADS, inputs_of, labels_of, named, tiny_head
from helpers import VOCAB, tiny_tokenizer
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding, Trainer, TrainingArguments

from simmim_hf import (
    SimMIMForCausalLM,
    SimMIMForMaskedLM,
    SimMIMForMultipleChoice,
    SimMIMForQuestionAnswering,
    SimMIMForSequenceClassification,
    SimMIMForTokenClassification,
)

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


@pytest.mark.parametrize(
    ("head", "wrong"),
    [
        *((SimMIMForSequenceClassification, wrong) for wrong in (CLASSES, -1)),
        *((head, CLASSES) for head in (SimMIMForTokenClassification, SimMIMForMultipleChoice)),
    ],
    ids=named,
)
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
@pytest.mark.parametrize("head", HEADS, ids=named)
def test_the_trainer_lowers_the_loss(head, tmp_path):
    collator = {
        SimMIMForTokenClassification: DataCollatorForTokenClassification(tiny_tokenizer()),
        SimMIMForMultipleChoice: collate_choices,
    }.get(head, DataCollatorWithPadding(tiny_tokenizer()))
    rows = rows_of(head)
    trainer = Trainer(
        model=tiny_head(head).train(),
        args=TrainingArguments(
            tmp_path,
            max_steps=15,
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
