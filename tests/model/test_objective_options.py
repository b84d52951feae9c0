"""What shapes the joint objective beside its weights: other positives, fixed views, schedules, learned weights."""

import numpy as np
import pytest
import torch
from helpers import NO_DROPOUT, assert_same_gradients, gradients, ragged_batch, tiny_model, tiny_tokenizer
from transformers import TrainingArguments

from simmim_hf import DataCollatorForSimMIM, SimMIMConfig, SimMIMTrainer
from simmim_hf.model.losses import contrastive_cross_entropy, similarity_matrix

LENGTHS = [7, 3, 5, 2]
TEXTS = [" ".join(f"w{(i * 7 + j) % 50}" for j in range(4 + i % 9)) for i in range(64)]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def trainer_of(model, folder, steps=8, **options):
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=options.pop("batch_size", 8),
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        gradient_accumulation_steps=options.pop("accumulation", 1),
    )
    collator = DataCollatorForSimMIM(tiny_tokenizer(), positive_view=model.config.positive_view)
    rows = [{"text": text} for text in TEXTS]
    return SimMIMTrainer(model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=collator, **options)


# The other views of the positive.


def test_deleted_copies_are_subsequences():
    tokenizer = tiny_tokenizer()
    batch = DataCollatorForSimMIM(tokenizer, positive_view="deleted", deletion_probability=0.5)(TEXTS)
    plain = DataCollatorForSimMIM(tokenizer)(TEXTS)
    for name, tensor in plain.items():
        assert torch.equal(batch[name], tensor), name  # the masked copy stays what it is
    real, left = 0, 0
    for row, copy, mask in zip(batch["input_ids"], batch["positive_input_ids"], batch["positive_attention_mask"]):
        row, copy = row[row != 0].tolist(), copy[mask.bool()].tolist()
        assert copy[0] == row[0] and copy[-1] == row[-1] and len(copy) > 2
        words = iter(row)
        assert all(word in words for word in copy)
        real, left = real + len(row) - 2, left + len(copy) - 2
    assert 0.4 < left / real < 0.62


def test_crops_are_two_stretches_of_each_text():
    tokenizer = tiny_tokenizer()
    batch = DataCollatorForSimMIM(tokenizer, positive_view="cropped", min_crop_ratio=0.5)(TEXTS)
    different = 0
    for i, text in enumerate(TEXTS):
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        crops = []
        for kind in ("", "positive_"):
            mask = batch[f"{kind}attention_mask" if kind else "attention_mask"][i].bool()
            ids = batch[f"{kind}input_ids"][i][mask].tolist()
            assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
            crop = ids[1:-1]
            assert len(crop) >= len(whole) / 2
            assert any(whole[j : j + len(crop)] == crop for j in range(len(whole)))
            crops.append(crop)
        different += crops[0] != crops[1]
    assert different > len(TEXTS) / 2
    corrupted = batch["labels"] != -100
    assert torch.equal(batch["labels"][corrupted], batch["input_ids"][corrupted])
    assert corrupted.any(1).all() and not corrupted[batch["attention_mask"] == 0].any()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("view", ["deleted", "cropped"])
def test_the_same_batch_has_the_same_copies(view, side):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    one, two = (DataCollatorForSimMIM(tokenizer, positive_view=view)(TEXTS[:6]) for _ in range(2))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    other = DataCollatorForSimMIM(tokenizer, positive_view=view, seed=1)(TEXTS[:6])
    assert not np.array_equal(one["positive_input_ids"].numpy(), other["positive_input_ids"].numpy())


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_the_given_positive_is_compared(family, chunk_size):
    model = tiny_model(family, positive_view="deleted")
    model.chunk_size = chunk_size
    batch, other = ragged_batch(LENGTHS), ragged_batch([4, 2, 6, 3], seed=1)
    positive = {"positive_input_ids": other["input_ids"], "positive_attention_mask": other["attention_mask"]}
    out = model(**batch, **positive)
    rows, copies = (model.simmim(x["input_ids"], x["attention_mask"]).pooler_output for x in (batch, other))
    torch.testing.assert_close(out.original_embeds, rows, **CLOSE)
    torch.testing.assert_close(out.masked_embeds, copies, **CLOSE)
    scores = similarity_matrix(rows, copies) / model.config.temperature
    expected = contrastive_cross_entropy(scores, torch.arange(4)) / 4
    torch.testing.assert_close(out.contrastive_loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.mlm_loss, tiny_model(family)(**batch).mlm_loss, **CLOSE)


def test_a_missing_positive_is_named():
    with pytest.raises(ValueError, match="positive_input_ids.*positive_view='cropped'"):
        tiny_model(positive_view="cropped")(**ragged_batch(LENGTHS))


# Stop-gradient.


def test_the_gradient_is_the_sum_of_what_goes_through_each_view():
    def encoder_gradients(stop_gradient):
        model = tiny_model(backbone=NO_DROPOUT, mlm_weight=0.0, stop_gradient=stop_gradient)
        loss = model(**ragged_batch(LENGTHS)).loss
        return loss, gradients(model.simmim, loss)

    whole_loss, expected = encoder_gradients(None)
    parts = []
    for view in ("original", "positive"):
        loss, part = encoder_gradients(view)
        torch.testing.assert_close(loss, whole_loss)
        assert any(gradient.any() for gradient in part.values())
        parts.append(part)
    assert_same_gradients({name: parts[0][name] + parts[1][name] for name in expected}, expected)


# Weights that change in training.


@pytest.mark.slow
def test_weights_follow_their_schedule(tmp_path):
    model, seen = tiny_model(), []
    schedule = {"contrastive_weight": [(0, 0), (0.25, 0), (0.75, 1)], "mlm_weight": [(0, 1), (1, 0.5)]}
    trainer = trainer_of(model, tmp_path, weight_schedule=schedule)

    def note(model, args, kwargs):
        if model.training:
            seen.append((kwargs["objective"].contrastive_weight, kwargs["objective"].mlm_weight))

    model.register_forward_pre_hook(note, with_kwargs=True)
    trainer.train()
    assert [round(weight, 6) for weight, _ in seen] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert [round(weight, 6) for _, weight in seen] == [1 - 0.5 * i / 8 for i in range(8)]
    assert model.config.contrastive_weight == model.config.mlm_weight == 1
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert ["contrastive_loss" in entry for entry in logged] == [False] * 3 + [True] * 5
    assert "eval_contrastive_loss" in trainer.evaluate()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"mlm": [(0, 1)]}, "no weight `mlm`.*mlm_weight"),
        ({"clm_weight": [(0, 1)]}, "`clm_weight` is 0 in the configuration"),
        ({"mlm_weight": [(0.5, 1), (0.2, 1)]}, "ascending"),
        ({"mlm_weight": [(0, -1)]}, "0 or above"),
        ({"mlm_weight": [(0, 1), (1.5, 1)]}, "from 0 to 1"),
    ],
)
def test_an_impossible_schedule_is_refused(tmp_path, schedule, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(tiny_model(), tmp_path, weight_schedule=schedule)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="positive_view.*croped.*cropped"):
        SimMIMConfig(positive_view="croped")
    with pytest.raises(ValueError, match="stop_gradient.*masked"):
        SimMIMConfig(stop_gradient="masked")
    with pytest.raises(ValueError, match="positive_view='crop'"):
        DataCollatorForSimMIM(tiny_tokenizer(), positive_view="crop")
    with pytest.raises(ValueError, match="deletion_probability=1"):
        DataCollatorForSimMIM(tiny_tokenizer(), deletion_probability=1)
    with pytest.raises(ValueError, match="min_crop_ratio=0"):
        DataCollatorForSimMIM(tiny_tokenizer(), min_crop_ratio=0)
