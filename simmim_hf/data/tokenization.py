"""Tokenizers, and the token ids of documents."""

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datasets import Dataset, Features, IterableDataset, List, Value
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from ..options import error_prefix
from .mixtures import rows_of_sources

LongTexts = Literal["split", "truncate"]
LONGEST_WORD = 100  # characters; BERT's tokenizer makes [UNK] of a longer one
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # BERT's order: the ids 0 to 4


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 30522,
    lowercase: bool = True,
    show_progress: bool = True,
) -> BertTokenizer:
    """Train a WordPiece tokenizer like BERT's; the same texts give the same vocabulary.

    Args:
        texts: the texts to learn from.
        vocab_size: the number of tokens, the five special ones included. Little text gives fewer.
        lowercase: lower-case the text and strip its accents.
        show_progress: show the progress bars of the training, in a terminal.

    Returns:
        The tokenizer, ready for `save_pretrained`.

    Raises:
        ValueError: no text, or no room for a vocabulary.
    """
    if vocab_size < 2 * len(SPECIAL_TOKENS):
        raise ValueError(f"vocab_size must be at least {2 * len(SPECIAL_TOKENS)}, got {vocab_size}")
    texts = list(texts)
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    alphabet = _alphabet(texts, normalizer, limit=vocab_size // 2)
    if not alphabet:
        raise ValueError("there is no text to train a tokenizer on")

    def train(size: int, first_tokens: list[str], show_progress: bool) -> dict[str, int]:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizer
        # Uncut, one word of a million characters takes many minutes.
        words = [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.FixedLength(LONGEST_WORD)]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            special_tokens=first_tokens,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=show_progress,
        )
        tokenizer.train_from_iterator(texts, trainer, length=len(texts))
        return tokenizer.get_vocab()

    # The trainer numbers the characters in the order of a random hash and breaks ties by these numbers. So let it
    # find the characters alone (`a` and `##a`), and then train with those numbered beforehand.
    characters = train(0, SPECIAL_TOKENS, show_progress=False).keys() - set(SPECIAL_TOKENS)
    # The trainer aborts where it cannot print, such as in a closed pipe or on a full disk.
    has_terminal = sys.stdout is not None and sys.stdout.isatty()
    vocab = train(vocab_size, SPECIAL_TOKENS + sorted(characters), show_progress and has_terminal)
    return BertTokenizer(vocab=vocab, do_lower_case=lowercase)


def _alphabet(
    texts: list[str],
    normalizer: normalizers.Normalizer,
    limit: int,
    coverage: float = 0.9999,
) -> list[str]:
    """The most frequent characters that make up nearly all of the text: rare ones would fill the vocabulary."""
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    counts: Counter[str] = Counter()
    for character, count in raw.items():
        for normal in normalizer.normalize_str(character).strip():
            counts[normal] += count
    most_frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    uncovered = coverage * counts.total()
    alphabet: list[str] = []
    for character, count in most_frequent[:limit]:
        if uncovered <= 0:
            break
        uncovered -= count
        alphabet.append(character)
    return alphabet


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer by Hub id or path; BERT's `vocab.txt`, or a folder with nothing else, will do.

    Raises:
        ValueError: no tokenizer of this name, a damaged one, or a vocabulary without BERT's special tokens.
    """
    path = Path(name_or_path)
    described_by = ("tokenizer.json", "tokenizer_config.json", "config.json")
    has_tokenizer = any((path / name).exists() for name in described_by)
    vocab_file = path if path.is_file() else path / "vocab.txt"
    if path.is_file() or (vocab_file.is_file() and not has_tokenizer):
        with error_prefix(f"the vocabulary `{vocab_file}` cannot be read"):
            tokens = vocab_file.read_text(encoding="utf-8").rstrip("\n").split("\n")
        vocab = {token: index for index, token in enumerate(tokens)}
        missing = [token for token in SPECIAL_TOKENS if token not in vocab]
        if missing:
            raise ValueError(f"{str(vocab_file)!r} is no BERT vocabulary: it lacks {', '.join(missing)}")
        return BertTokenizer(vocab=vocab)
    with error_prefix(f"there is no tokenizer in `{name_or_path}`, or it is damaged"):
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # a folder without a vocabulary
        raise ValueError(f"{name_or_path!r} holds no tokenizer: save one there with save_pretrained")
    return tokenizer


class TokenCounts(NamedTuple):
    """How much text was tokenised: documents, the rows made of them, the tokens in these rows (special ones
    included), and the tokens that were cut off; for a mixture also those of each source."""

    documents: int
    rows: int
    tokens: int
    dropped: int
    sources: tuple["TokenCounts", ...] = ()


def tokenize(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    num_proc: int | None = None,
    long_texts: LongTexts = "split",
    passages: int = 1,
) -> tuple[Dataset | IterableDataset, TokenCounts | None]:
    """Turn documents into rows of token ids.

    Args:
        dataset: documents, with the column `text` and possibly `negative`, and in a mixture `source_number`.
        tokenizer: a tokenizer with special tokens only before and behind a text.
        max_length: the most tokens of a passage (one input of the encoder), special ones included.
        num_proc: the number of processes; a stream takes only one.
        long_texts: `split` a longer document into as few rows of consecutive tokens as hold it, of equal length; or
            `truncate` it to the first. Negatives are truncated to a passage.
        passages: how many passages are in a row, one behind the other: 2 for `positive_view="span"`.

    Returns:
        The dataset with `input_ids`, `length` and, if there are negatives, `negative_input_ids`, of a mixture
        `source_number`, without the documents that have no token but the special ones; and the counts, None for a
        stream.

    Raises:
        ValueError: no column `text`, a `max_length` without room for a token, or no token at all.
    """
    columns = dataset.column_names or list(next(iter(dataset), {}))  # a stream may know them only by its rows
    if "text" not in columns:
        raise ValueError(f"no column 'text' to tokenize; columns: {', '.join(columns)}")
    frame = _special_frame(tokenizer)
    special = len(frame[0]) + len(frame[1])
    if max_length <= special:
        raise ValueError(f"max_length must exceed the {special} special tokens of a text, got {max_length}")
    ids = List(Value("int32"))
    count = Value("int32")
    features = {"input_ids": ids, "length": count, "dropped": count, "is_first": Value("bool")}
    if "negative" in columns:
        features["negative_input_ids"] = ids
    if "source_number" in columns:
        features["source_number"] = count
    streaming = not isinstance(dataset, Dataset)
    options: dict[str, Any] = {}
    if not streaming:
        options = {"num_proc": num_proc, "desc": "Tokenizing"}
    tokenized = dataset.map(
        _encode,
        batched=True,
        remove_columns=columns,
        features=Features(features),
        fn_kwargs={
            "tokenizer": tokenizer,
            "frame": frame,
            "room": max_length - special,
            "splits": long_texts == "split",
            "passages": passages,
        },
        **options,
    )
    rows = tokenized.remove_columns(["dropped", "is_first"])
    if next(iter(rows), None) is None:
        raise ValueError("none of the texts has a token that the tokenizer knows how to make")
    if streaming:
        return rows, None
    counts = _count(tokenized)
    if "source_number" in features:
        sources = [_count(tokenized.select(of_source)) for of_source in rows_of_sources(tokenized)]
        counts = counts._replace(sources=tuple(sources))
    return rows, counts


def _count(tokenized: Dataset) -> TokenCounts:
    return TokenCounts(
        documents=sum(tokenized["is_first"][:]),
        rows=len(tokenized),
        tokens=sum(tokenized["length"][:]),
        dropped=sum(tokenized["dropped"][:]),
    )


def _special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and behind a text."""
    for text in ("a", *tokenizer.get_vocab()):  # until the tokenizer makes a token of one
        framed = tokenizer(text)["input_ids"]
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(len(framed) - len(plain) + 1):
            end = start + len(plain)
            if plain and framed[start:end] == plain:
                return framed[:start], framed[end:]
    raise ValueError(f"{type(tokenizer).__name__} makes no token of any text")


def _encode(
    batch: dict[str, list],
    tokenizer: PreTrainedTokenizerBase,
    frame: tuple[list[int], list[int]],
    room: int,
    splits: bool,
    passages: int,
) -> dict:
    before, behind = frame
    plain = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    texts = tokenizer(batch["text"], **plain, verbose=False)["input_ids"]
    negatives = None
    if "negative" in batch:
        negatives = tokenizer(batch["negative"], **plain, verbose=False)["input_ids"]
    columns = ["input_ids", "length", "dropped", "is_first"]
    if negatives is not None:
        columns.append("negative_input_ids")
    if "source_number" in batch:
        columns.append("source_number")
    encoded: dict[str, list] = {name: [] for name in columns}
    for number, ids in enumerate(texts):
        if not ids or (negatives is not None and not negatives[number]):
            continue
        ends = _ends_of_rows(len(ids), passages * room, splits)
        for start, end in zip([0, *ends], ends, strict=False):
            is_first = start == 0
            encoded["input_ids"].append(before + ids[start:end] + behind)
            encoded["length"].append(len(before) + end - start + len(behind))
            encoded["dropped"].append(len(ids) - ends[-1] if is_first else 0)
            encoded["is_first"].append(is_first)
            if negatives is not None:
                encoded["negative_input_ids"].append(before + negatives[number][:room] + behind)
            if "source_number" in batch:
                encoded["source_number"].append(batch["source_number"][number])
    return encoded


def _ends_of_rows(length: int, longest: int, splits: bool) -> list[int]:
    """The ends of the rows that a document of so many tokens becomes, of equal length; or that of the first alone."""
    if not splits:
        return [min(length, longest)]
    parts = -(-length // longest)  # rounded up
    return [length * (i + 1) // parts for i in range(parts)]
