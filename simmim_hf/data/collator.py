"""Text to pairs of an original and a corrupted copy, for siamese masked language modelling.

A batch goes through five steps: features are padded (`_pad_rows`), two views are made of each (`_make_VIEW`),
positions are joined to units (tokens, words or spans; `_unit_starts`), units are drawn (`draw_units`), and the drawn
units are corrupted as in BERT (Devlin et al. 2019; `_corrupt`). All steps work on numpy arrays of the whole batch.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..model.configuration_simmim import (
    PASSAGES,
    CorruptedViews,
    PositiveView,
    SimMIMConfig,
    choices_of,
    described,
    takes_old_names,
)
from ..model.losses import IGNORE_INDEX
from ..options import is_number, option
from .row_random import RowGenerator
from .words import ALONE, CONTINUES, build_word_tables, ends_of_sentences, inside_han_word, shift_right

CONFIG_NAME = "data_collator_config.json"
FEATURE_KEYS = [
    "text",
    "input_ids",
    "attention_mask",
    "special_tokens_mask",
    "token_type_ids",
    "negative",
    "negative_input_ids",
    "draw",
]
TOKEN_KEYS = {"input_ids", "attention_mask", "special_tokens_mask", "token_type_ids"}  # a value for each token


class Rows(NamedTuple):
    """The sequences of a batch, (batch, length) each: ids, real tokens, tokens open to corruption, token types."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    eligible: np.ndarray
    token_type_ids: np.ndarray


def _is_share(value) -> bool:
    return is_number(value, 0, 1) and 0 < value < 1


def _is_ratio(value) -> bool:
    if isinstance(value, tuple):
        return len(value) == 2 and all(map(_is_share, value))
    return _is_share(value)


# `allows` says which values an option takes, `choose` what to take instead of another.
PROBABILITY = {"allows": lambda value: is_number(value, 0, 1), "choose": "a probability from 0 to 1"}


@takes_old_names
@described
@dataclass
class DataCollatorForSimMIM:
    """Makes batches of original and corrupted sequences from strings, `text` columns or tokenised features.

    A share `mlm_probability` of the tokens of each sequence, at least one, is corrupted. They are drawn as units:
    tokens (BERT), whole words, or spans (SpanBERT, Joshi et al. 2020). A unit is replaced by mask tokens, by random
    tokens, or left as it is, and is predicted in all three cases.

    A batch of the same sequences in the same order is always corrupted alike; shuffling makes other batches, and other
    corruptions, in each epoch. Features with a number `draw`, such as that of the epoch, are corrupted one by one:
    alike for the same number, whatever else is in the batch. `SimMIMTrainer` gives it, so that several processes
    corrupt a text as one process does.

    Args:
        tokenizer: needs a mask and a padding token; whole words need a `tokenizers` backend.
        {options}

    Raises:
        ValueError: a tokenizer without a mask or padding token, or a setting outside its range.
    """

    tokenizer: PreTrainedTokenizerBase
    mlm_probability: float = option(
        0.3, "Share of corrupted tokens.", allows=_is_share, choose="a number between 0 and 1, such as 0.3"
    )
    mask_replace_prob: float = option(0.8, "Share of the corrupted units that become mask tokens.", **PROBABILITY)
    random_replace_prob: float = option(
        0.1, "Share of the corrupted units that become random tokens; the rest stays as it is.", **PROBABILITY
    )
    whole_word_mask: bool = option(
        False,
        "Corrupt whole words; Chinese characters are joined to words by jieba, where it is installed.",
        allows=lambda value: isinstance(value, bool),
        choose="True or False",
    )
    mean_mask_span: float | None = option(
        None,
        "Corrupt spans with geometric lengths of this mean, in tokens or, with whole_word_mask, words.",
        allows=lambda value: value is None or is_number(value, 1, 4096),
        choose="a number from 1 to 4096 (SpanBERT: 3.8), or None",
    )
    max_length: int | None = option(
        None,
        "Truncate text to this many tokens, special tokens included; with positive_view span each of the two spans.",
        allows=lambda value: value is None or is_number(value, 3, kind=int),
        choose="3 or more, which leaves room for text",
    )
    pad_to_multiple_of: int | None = option(
        None,
        "Round the padded length up to a multiple of this.",
        allows=lambda value: value is None or is_number(value, 1, 4096, int),
        choose="a whole number from 1 to 4096, such as 8, or None",
    )
    seed: int = option(
        0,
        "Another seed gives other corruptions of the same batches.",
        allows=lambda value: is_number(value, kind=int),
        choose="a whole number",
    )
    positive_view: PositiveView = option("masked", "As in `SimMIMConfig`.")
    deletion_probability: float = option(
        0.2,
        "With positive_view deleted: the probability that a token is deleted.",
        allows=_is_share,
        choose="a number between 0 and 1, such as 0.2",
    )
    min_crop_ratio: float = option(
        0.5,
        "With positive_view cropped: the shortest of the two stretches, as a share of the sequence.",
        allows=lambda value: is_number(value, 0, 1) and value > 0,
        choose="a share above 0, up to 1, such as 0.5",
    )
    corrupted_views: CorruptedViews = option("copy", "As in `SimMIMConfig`.")
    min_view_length: int = option(
        4,
        "With positive_view span or snippet: tokens of the shortest stretch. A text too short for two of them gives "
        "two views of all of it.",
        allows=lambda value: is_number(value, 1, 1_000_000, int),
        choose="a number from 1 to 1,000,000, such as 4",
    )
    first_sentence_probability: float = option(
        0.0,
        "With positive_view span or snippet: the probability that one view is the first sentence of the text, often a "
        "title or a summary, and the other the rest; with span, as much of it as max_length has room for.",
        **PROBABILITY,
    )
    snippet_ratio: float | tuple[float, float] = option(
        (0.1, 0.5),
        "With positive_view snippet: its length as a share of the text; two numbers: drawn between them.",
        allows=_is_ratio,
        choose="a number between 0 and 1, or a pair (shortest, longest)",
    )
    context_removal_prob: float = option(
        0.25,
        "With positive_view snippet: how often it is taken out of the text that it is compared with: at 0 the views "
        "share all of its words, at 1 none.",
        **PROBABILITY,
    )

    def __post_init__(self) -> None:
        ratio: Any = self.snippet_ratio
        if isinstance(ratio, list):
            self.snippet_ratio = tuple(ratio)  # a list when read from JSON
        self._validate()
        self._special_ids = np.unique(self.tokenizer.all_special_ids)
        self._frame_ids = self._special_ids  # around a text, such as [CLS] and [SEP]
        if self.tokenizer.unk_token_id is not None:
            self._frame_ids = np.setdiff1d(self._special_ids, [self.tokenizer.unk_token_id])
        all_ids = list(self.tokenizer.get_vocab().values())
        self._ordinary_ids = np.setdiff1d(all_ids, self._special_ids)
        if self.whole_word_mask:
            self._word_table, self._han_table = build_word_tables(self.tokenizer)
        self._sentence_ends: list[int] = []
        if self.first_sentence_probability:
            self._sentence_ends = ends_of_sentences(self.tokenizer)

    @classmethod
    def for_config(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        config: SimMIMConfig,
        **options,
    ) -> "DataCollatorForSimMIM":
        """A collator with the views of a model's configuration; `options` are the other fields."""
        return cls(tokenizer, positive_view=config.positive_view, corrupted_views=config.corrupted_views, **options)

    def _validate(self) -> None:
        for kind, token in (("mask", "[MASK]"), ("pad", "[PAD]")):
            if getattr(self.tokenizer, f"{kind}_token_id") is None:
                raise ValueError(
                    f"{type(self.tokenizer).__name__} has no {kind} token. Add one with tokenizer.add_special_tokens("
                    f'{{"{kind}_token": "{token}"}}), then call model.resize_token_embeddings(len(tokenizer)).'
                )
        self.check_options(self._settings())

    def _settings(self) -> dict[str, Any]:
        """All fields but the tokenizer, by name."""
        names = [field_.name for field_ in fields(self) if field_.name != "tokenizer"]
        return {name: getattr(self, name) for name in names}

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Checks the fields other than the tokenizer, also before there is one.

        Raises:
            ValueError: a setting outside its range; the message names the range.
        """
        for field_ in fields(cls)[1:]:
            value = options.get(field_.name, field_.default)
            choices = choices_of(field_)
            if choices and value not in choices:
                raise ValueError(f"{field_.name}={value!r}: choose from {choices}.")
            allows = field_.metadata.get("allows")
            if allows is not None and not allows(value):
                raise ValueError(f"{field_.name}={value!r}: choose {field_.metadata['choose']}.")
        mask = options.get("mask_replace_prob", cls.mask_replace_prob)
        random = options.get("random_replace_prob", cls.random_replace_prob)
        if mask + random > 1 + 1e-9:
            raise ValueError(
                f"mask_replace_prob={mask} and random_replace_prob={random} sum to more than 1: lower one of them."
            )

    def __call__(self, features: Sequence[str | Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Pads and corrupts a batch.

        Args:
            features: strings, dicts with `text`, or tokenised dicts with `input_ids` and optionally `attention_mask`
                (without it, padding tokens are padding), `special_tokens_mask` and `token_type_ids`. Hard negatives
                come as `negative` (a string or a list of them) or `negative_input_ids` (a list of ids or a list of
                such lists). `draw` is an integer. Other columns are ignored.

        Returns:
            int64 tensors `input_ids`, `masked_input_ids`, `attention_mask` and `labels` (the original id at corrupted
            positions, -100 elsewhere), each (batch, length); `token_type_ids` (batch, length) where some are not
            zero; with hard negatives `negative_input_ids` and `negative_attention_mask` (negatives, length); for a
            view of its own `positive_input_ids` and `positive_attention_mask` (batch, length), and where both views
            are corrupted `positive_labels` too.

        Raises:
            ValueError: no features, features without text or ids, or features with different keys.
            TypeError: features that are neither strings nor dicts.
        """
        columns = to_columns(features)
        if "input_ids" not in columns:
            columns |= self._encode(columns["text"], self._row_length(), return_special_tokens_mask=True)
        originals = self._pad_rows(columns)

        # The views draw from generators of their own, so that the masks are the same for any positive view.
        rng = self._generator(originals, columns.get("draw"))
        views_rng, positives_rng = rng.spawn(2)
        rows, positives = self._make_views(originals, views_rng)

        # Corrupt the first view, and the second one if both are predicted.
        masked_input_ids, labels = self._corrupt(rows, rng)  # (batch, length) each
        batch = {
            "input_ids": rows.input_ids,
            "masked_input_ids": masked_input_ids,
            "attention_mask": rows.attention_mask,
            "labels": labels,
        }
        if positives is not None:
            batch["positive_input_ids"] = positives.input_ids
            batch["positive_attention_mask"] = positives.attention_mask
            if self.corrupted_views == "both":
                positive_input_ids, positive_labels = self._corrupt(positives, positives_rng)
                batch["positive_input_ids"] = positive_input_ids
                batch["positive_labels"] = positive_labels
        if rows.token_type_ids.any():
            batch["token_type_ids"] = rows.token_type_ids
        negatives = self._negatives(columns)
        if negatives:
            negative_input_ids, negative_attention_mask = self._pad_ids(negatives)  # (negatives, length) each
            batch["negative_input_ids"] = negative_input_ids
            batch["negative_attention_mask"] = negative_attention_mask
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Writes all settings but the tokenizer to `data_collator_config.json` in `save_directory`."""
        os.makedirs(save_directory, exist_ok=True)
        with open(os.path.join(save_directory, CONFIG_NAME), "w", encoding="utf-8") as file:
            file.write(json.dumps(self._settings(), indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> "DataCollatorForSimMIM":
        """The collator of a folder or a Hub repository with the file of `save_pretrained`, and by default with its
        tokenizer."""
        with open(cached_file(directory, CONFIG_NAME), encoding="utf-8") as file:
            settings = json.load(file)
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(directory)
        return cls(tokenizer, **settings)

    def _row_length(self) -> int | None:
        """The most tokens of a row: `max_length`, for a view with several passages in a row more."""
        if self.max_length is None:
            return None
        more_passages = PASSAGES.get(self.positive_view, 1) - 1
        return self.max_length + more_passages * self._room()

    def _encode(
        self,
        texts: list[str],
        max_length: int | None,
        **options,
    ) -> dict[str, list[list[int]]]:
        if max_length is not None:
            options |= {"truncation": True, "max_length": max_length}
        return dict(self.tokenizer(texts, **options))

    def _negatives(self, columns: dict[str, list]) -> list:
        """The token ids of all negatives of the batch, in order."""
        if "negative_input_ids" in columns:
            ids: list = []
            for row in columns["negative_input_ids"]:
                if len(row):
                    has_several = np.ndim(row[0]) > 0
                    ids += row if has_several else [row]
            return [_integers("negative_input_ids", of_negative) for of_negative in ids]
        texts: list[str] = []
        for row in columns.get("negative", ()):
            texts += [row] if isinstance(row, str) else row
        if not texts:
            return []
        return self._encode(texts, self.max_length)["input_ids"]

    def _pad_rows(self, columns: dict[str, list]) -> Rows:
        """The columns of tokenised features as arrays: special tokens and padding are never corrupted."""
        input_ids, attention_mask = self._pad_ids(columns["input_ids"], columns.get("attention_mask"))
        eligible = (attention_mask != 0) & ~np.isin(input_ids, self._special_ids)  # (batch, length)
        if "special_tokens_mask" in columns:
            eligible &= self._pad(columns["special_tokens_mask"], 1) == 0
        token_type_ids = np.zeros_like(input_ids)
        if "token_type_ids" in columns:
            token_type_ids = self._pad(columns["token_type_ids"], self.tokenizer.pad_token_type_id)
        return Rows(input_ids, attention_mask, eligible, token_type_ids)

    def _pad(self, rows: list, value: int) -> np.ndarray:
        """Rows of different lengths to one (batch, length) array; several times as fast as `tokenizer.pad`."""
        arrays = [np.asarray(row, dtype=np.int64) for row in rows]
        lengths = np.array([len(row) for row in arrays])[:, None]  # (batch, 1)
        length = lengths.max()
        if self.pad_to_multiple_of is not None:
            length += -length % self.pad_to_multiple_of
        # Every row is written at once, through a mask of its real positions.
        position = np.arange(length)  # (length,)
        filled = position < lengths  # (length,), (batch, 1) -> (batch, length)
        if self.tokenizer.padding_side == "left":
            filled = filled[:, ::-1]
        padded = np.full(filled.shape, value)
        padded[filled] = np.concatenate(arrays)  # (tokens,) -> (batch, length)
        return padded

    def _pad_ids(self, rows: list, attention_mask: list | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and attention mask, (batch, length) each; without a mask, padding tokens are padding."""
        ids = self._pad(rows, self.tokenizer.pad_token_id)
        if attention_mask is None:
            return ids, (ids != self.tokenizer.pad_token_id).astype(np.int64)
        return ids, self._pad(attention_mask, 0)

    def _generator(self, rows: Rows, draws: list[int] | None) -> RowGenerator:
        """Random numbers seeded by the content of each row.

        So the corruption of a text depends neither on the worker that reads it nor on where training was resumed, and
        every evaluation has the same masks. The seed includes the number in `draws`, such as the epoch, or without
        one the content of the whole batch: the same row gets another corruption in another epoch.
        """
        if draws is None:
            batch = hashlib.blake2b(rows.input_ids.tobytes(), digest_size=16)
            batch.update(rows.attention_mask.tobytes())
            marks = [f"{batch.hexdigest()} {row}" for row in range(len(rows.input_ids))]
        else:
            marks = [str(draw) for draw in draws]
        seeds = []
        for ids, mask, mark in zip(rows.input_ids, rows.attention_mask, marks, strict=True):
            row = hashlib.blake2b(f"{self.seed} {mark}".encode(), digest_size=8)
            row.update(ids[mask != 0].tobytes())  # padding has no influence
            seeds.append(int.from_bytes(row.digest(), "little"))
        return RowGenerator(seeds, is_left_padded=self.tokenizer.padding_side == "left")

    def _make_views(self, rows: Rows, rng: RowGenerator) -> tuple[Rows, Rows | None]:
        """The two views of each sequence; None for the second where it is the corrupted copy of the first."""
        make = getattr(self, f"_make_{self.positive_view}", None)
        if make is not None:
            return make(rows, rng)
        if self.positive_view == "masked" and self.corrupted_views == "both":
            return rows, rows
        return rows, None

    def _make_deleted(self, rows: Rows, rng: RowGenerator) -> tuple[Rows, Rows]:
        """The sequences as they are, and copies with eligible tokens deleted; at least one is kept."""
        chance = rng.random(rows.eligible.shape)  # (batch, length)
        chance = np.where(rows.eligible, chance, -1)
        is_highest = chance == chance.max(1, keepdims=True)  # kept in any case
        kept = (chance >= self.deletion_probability) | is_highest
        return rows, self._keep(rows, kept | ~rows.eligible)

    def _make_cropped(self, rows: Rows, rng: RowGenerator) -> tuple[Rows, Rows]:
        """Two random crops of each sequence (as in Contriever, Izacard et al. 2022), drawn one by one, from
        `min_crop_ratio` of its length up to all of it."""
        place, count = self._places(rows)  # (batch, length), (batch, 1)
        one = self._stretch(place, count, rng)  # (batch, length)
        other = self._stretch(place, count, rng)
        return self._keep(rows, one), self._keep(rows, other)

    def _stretch(self, place: np.ndarray, count: np.ndarray, rng: RowGenerator) -> np.ndarray:
        """A random stretch, with the special tokens around the text: (batch, length), bool"""
        share = rng.uniform(self.min_crop_ratio, 1, count.shape)  # (batch, 1)
        length = np.maximum(np.ceil(share * count), 1)
        start = np.floor(rng.random(count.shape) * (count - length + 1))
        return (place < 0) | (place >= start) & (place < start + length)

    def _make_span(self, rows: Rows, rng: RowGenerator) -> tuple[Rows, Rows]:
        """The two sides of a cut through each sequence (coCondenser, Gao & Callan 2022, has such pairs of spans); a
        sequence too short to cut is both views as a whole."""
        place, count = self._places(rows)  # (batch, length), (batch, 1)
        shortest = self.min_view_length
        longest = count.max(initial=1)
        if self.max_length is not None:
            longest = self._room()
        count = np.minimum(count, 2 * longest)
        # Draw a cut that leaves from `shortest` to `longest` tokens on each side, where there is one.
        first = np.maximum(shortest, count - longest)  # (batch, 1)
        last = np.minimum(count - shortest, longest)
        cut = first + np.floor(rng.random(count.shape) * (last - first + 1))  # (batch, 1), tokens before it
        is_cut = first <= last
        # Some texts are cut behind their first sentence instead.
        sentence = self._first_sentence(rows, place, last, rng)  # (batch, 1)
        cut = np.where(sentence > 0, sentence, cut)
        # The two sides, each with the special tokens around the text (place -1): (batch, length)
        end = np.minimum(count, cut + longest)
        whole = place < longest
        before = np.where(is_cut, place < cut, whole)
        behind = np.where(is_cut, (place >= cut) & (place < end), whole)
        behind |= place < 0
        return self._keep(rows, before), self._keep(rows, behind)

    def _make_snippet(self, rows: Rows, rng: RowGenerator) -> tuple[Rows, Rows]:
        """Each sequence, some without the snippet, and a snippet of it: the inverse cloze task (Lee, Chang & Toutanova
        2019) on tokens instead of sentences."""
        place, count = self._places(rows)  # (batch, length), (batch, 1)
        if self.max_length is not None:
            count = np.minimum(count, self._room())
        shortest = self.min_view_length
        least, most = np.broadcast_to(self.snippet_ratio, 2)
        # Draw the length of the snippet, so that it and the rest have `shortest` tokens, and its place.
        length = np.ceil(rng.uniform(least, most, count.shape) * count)  # (batch, 1)
        clipped = np.clip(length, shortest, np.maximum(count - shortest, 1))
        length = np.where(count < 2 * shortest, count, clipped)  # too short for two: the whole text
        start = np.floor(rng.random(count.shape) * (count - length + 1))
        removed = rng.random(count.shape) < self.context_removal_prob
        removed &= length < count  # a snippet of the whole text leaves nothing to remove
        # Some snippets are the first sentence instead, which is always removed from the rest.
        sentence = self._first_sentence(rows, place, count - shortest, rng)  # (batch, 1)
        is_sentence = sentence > 0
        start = np.where(is_sentence, 0, start)
        length = np.where(is_sentence, sentence, length)
        removed |= is_sentence
        inside = (place >= start) & (place < start + length)  # (batch, length)
        rest = (place < count) & ~(inside & removed)
        snippet = inside | (place < 0)
        return self._keep(rows, rest), self._keep(rows, snippet)

    def _first_sentence(
        self,
        rows: Rows,
        place: np.ndarray,
        longest: np.ndarray,
        rng: RowGenerator,
    ) -> np.ndarray:
        """Tokens in the first sentence of each text that is cut behind it, and 0 for the others: (batch, 1)"""
        if not self.first_sentence_probability:
            return np.zeros_like(longest)
        length: np.ndarray = place + 1  # (batch, length), of the text up to and with a token
        ends = np.isin(rows.input_ids, self._sentence_ends)
        ends &= (length >= self.min_view_length) & (length <= longest)
        is_drawn = rng.random(longest.shape) < self.first_sentence_probability  # (batch, 1)
        is_cut = ends.any(1, keepdims=True) & is_drawn
        sentence = np.take_along_axis(length, ends.argmax(1, keepdims=True), axis=1)  # (batch, length) -> (batch, 1)
        return np.where(is_cut, sentence, 0)

    def _places(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """The place of each token in its text, from 0 (batch, length), and the tokens of the text (batch, 1). Special
        tokens around the text, and padding, have the place -1."""
        is_frame = np.isin(rows.input_ids, self._frame_ids)
        text = (rows.attention_mask != 0) & ~is_frame  # (batch, length)
        # Special tokens within a text count as its tokens: inside is everything from its first to its last token.
        is_after_first = text.cumsum(1) > 0
        is_before_last = text[:, ::-1].cumsum(1)[:, ::-1] > 0
        inside = is_after_first & is_before_last
        place = np.where(inside, inside.cumsum(1) - 1, -1)
        return place, inside.sum(1, keepdims=True)

    def _room(self) -> int:
        """Tokens of a text within `max_length`, its special tokens not counted."""
        assert self.max_length is not None
        return max(1, self.max_length - self.tokenizer.num_special_tokens_to_add())

    def _keep(self, rows: Rows, kept: np.ndarray) -> Rows:
        """Only the `kept` ones of the real tokens: (batch, length) -> (batch, shorter)."""
        kept = kept & (rows.attention_mask != 0)
        fills = (self.tokenizer.pad_token_id, 0, False, self.tokenizer.pad_token_type_id)
        columns = []
        for column, fill in zip(rows, fills, strict=True):
            shorter = [row[keep] for row, keep in zip(column, kept, strict=True)]
            columns.append(self._pad(shorter, fill))
        input_ids, attention_mask, eligible, token_type_ids = columns
        return Rows(input_ids, attention_mask, eligible.astype(bool), token_type_ids)

    def _corrupt(self, rows: Rows, rng: RowGenerator) -> tuple[np.ndarray, np.ndarray]:
        """The corrupted copy of the ids and the labels, both (batch, length)."""
        ids = rows.input_ids
        eligible = rows.eligible
        # Draw the units to be corrupted, and find the positions in them.
        starts = self._unit_starts(ids, eligible, rng)  # (batch, length)
        unit, drawn = draw_units(starts, eligible, self.mlm_probability, rng)  # (positions,), (units,)
        tokens = ids[eligible]  # (batch, length) -> (positions,)
        corrupted = drawn[unit]  # (units,) -> (positions,)

        # Mask, replace or keep: one draw a unit, so that no word is half [MASK] and half readable.
        action = rng.random(ids.shape)[starts][unit]  # (batch, length) -> (units,) -> (positions,)
        masked = action < self.mask_replace_prob
        randomly = ~masked & (action < self.mask_replace_prob + self.random_replace_prob)
        replaced = np.where(masked, self.tokenizer.mask_token_id, tokens)  # (positions,)
        choice = rng.random(ids.shape)[eligible][randomly]  # (batch, length) -> (random positions,)
        choice = (choice * len(self._ordinary_ids)).astype(np.int64)
        replaced[randomly] = self._ordinary_ids[choice]

        # Write the corrupted tokens, and as labels the original ones: (positions,) -> (batch, length)
        masked_ids = ids.copy()
        masked_ids[eligible] = np.where(corrupted, replaced, tokens)
        labels = np.full_like(ids, IGNORE_INDEX)
        labels[eligible] = np.where(corrupted, tokens, IGNORE_INDEX)
        return masked_ids, labels

    def _unit_starts(self, ids: np.ndarray, eligible: np.ndarray, rng: RowGenerator) -> np.ndarray:
        """Where a unit begins: (batch, length), bool."""
        starts = eligible
        if self.whole_word_mask:
            place = np.where(eligible, self._word_table[ids], ALONE)  # (batch, length)
            joined = (place == CONTINUES) & (shift_right(place) != ALONE)
            han = np.where(eligible, self._han_table[ids], ord(" "))
            starts = eligible & ~joined & ~inside_han_word(han)
        if self.mean_mask_span is not None:
            # A boundary before each token (or word) with probability 1 / mean makes the lengths geometric. There
            # is always one after special tokens, so that no span runs across them.
            boundary = rng.random(ids.shape) < 1 / self.mean_mask_span
            starts = starts & (boundary | ~shift_right(eligible))
        return starts


def as_row(feature: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """A feature as a dict; a string is a text."""
    if isinstance(feature, str):
        return {"text": feature}
    return feature


def to_columns(features: Sequence[str | Mapping[str, Any]]) -> dict[str, list]:
    """The columns of `FEATURE_KEYS` that the features have, one value per feature each."""
    if not len(features):
        raise ValueError("The list of features is empty: a batch needs at least one sequence.")
    rows = [as_row(feature) for feature in features]
    for row in rows:
        if not isinstance(row, Mapping):
            raise TypeError(f"A feature must be a string or a dict, not {type(row).__name__}.")
        if "text" not in row and "input_ids" not in row:
            raise ValueError(f"A feature needs 'text' or 'input_ids', but has the keys {sorted(row)}.")
    keys = [[key for key in FEATURE_KEYS if key in row] for row in rows]
    for other in keys:
        if other != keys[0]:
            raise ValueError(f"The features of one batch need the same keys, but have {keys[0]} and {other}.")
    columns = {key: [row[key] for row in rows] for key in keys[0]}
    for key in TOKEN_KEYS & columns.keys():
        columns[key] = [_integers(key, row) for row in columns[key]]
        all_ids = columns.get("input_ids", ())
        for row, ids in zip(columns[key], all_ids, strict=False):
            if len(row) != len(ids):
                raise ValueError(
                    f"A feature has {len(row)} values in {key} and {len(ids)} in input_ids: give one for each token."
                )
    return columns


def _integers(name: str, row: Sequence[int]) -> np.ndarray:
    """(length,), the ids or other values of the tokens of a row; fractions are refused, not cut off."""
    values = np.asarray(row)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iub"):
        raise ValueError(f"{name} is {row!r:.200}: give a list of integers for each sequence.")
    return values


def draw_units(
    starts: np.ndarray,
    eligible: np.ndarray,
    ratio: float,
    rng: RowGenerator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws units of consecutive positions that cover the share `ratio` of each sequence's eligible positions.

    Units are drawn in random order until they cover ratio * n of n eligible positions; the unit that crosses this
    number is drawn with a probability that makes it the expected value. With units of one token the number is
    floor(ratio * n + u), u ~ U(0, 1). A sequence without a drawn unit gets its shortest one.

    Args:
        starts: where a unit begins, (batch, length), bool.
        eligible: where corruption is allowed, (batch, length), bool.

    Returns:
        The unit of each eligible position (positions,) and whether a unit is drawn (units,).
    """
    # Number the units of the whole batch, and find the row of each.
    first = starts[eligible]  # (batch, length) -> (positions,)
    unit = np.cumsum(first) - 1  # (positions,)
    row = np.nonzero(eligible)[0][first]  # (units,), ascending
    # Shuffle the units within their rows: `row` stays the row of each.
    chance = rng.random(starts.shape)[starts]  # (batch, length) -> (units,)
    order = np.lexsort((chance, row))  # (units,)
    length = np.bincount(unit, minlength=len(row))[order]  # (positions,) -> (units,)
    # Count the positions that the units before cover in the same row, and draw units up to the ratio.
    tokens = eligible.sum(axis=1)  # (batch,)
    tokens_of_rows_before = np.cumsum(tokens) - tokens
    covered = np.cumsum(length) - length - tokens_of_rows_before[row]  # (units,)
    share_of_last = rng.random((len(tokens), 1))[row, 0]  # (batch, 1) -> (units,)
    drawn_in_order = covered + share_of_last * length < ratio * tokens[row]
    # Give rows without a drawn unit their shortest one.
    empty_rows = np.setdiff1d(row, row[drawn_in_order])
    shortest_first = np.lexsort((length, row))
    drawn_in_order[shortest_first[np.searchsorted(row, empty_rows)]] = True
    drawn = np.empty_like(drawn_in_order)  # back to the order of the positions
    drawn[order] = drawn_in_order
    return unit, drawn
