"""Documents of several sources, drawn by weight."""

import itertools

import numpy as np
import pytest
from datasets import Dataset
from helpers import tiny_tokenizer

from simmim_hf.data.mixtures import mix, numbered
from simmim_hf.data.tokenization import tokenize

SIZES = (60, 300)


def sources():
    return [
        Dataset.from_dict({"text": [f"w{i} w{j} w{k}" for j in range(1, n + 1) for k in [j % 9]]})
        for i, n in enumerate(SIZES)
    ]


def streams():
    return [source.to_iterable_dataset() for source in sources()]


def origins(rows) -> np.ndarray:
    return np.array([int(row["text"].split()[0][1:]) for row in rows])


def test_a_table_has_the_proportions_and_every_document():
    mixed = mix(numbered(sources()), [3, 1], seed=1)
    assert origins(mixed).mean() == pytest.approx(0.25, abs=0.04)
    assert set(mixed["text"]) == {text for source in sources() for text in source["text"]}
    for number, source in enumerate(sources()):  # each in its order, again and again
        drawn = [row["text"] for row in mixed if row["source_number"] == number]
        assert drawn == list(itertools.islice(itertools.cycle(source["text"]), len(drawn)))


def test_a_stream_has_the_proportions_and_no_end():
    rows = list(mix(streams(), [0.75, 0.25], seed=1).take(3000))
    assert origins(rows).mean() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("given", [lambda: numbered(sources()), streams])
def test_a_seed_gives_one_order(given):
    first, again, other = (origins(itertools.islice(mix(given(), [1, 2], seed), 200)) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_the_tokens_of_each_source_are_counted():
    mixed = mix(numbered(sources()), [1, 1])
    rows, counts = tokenize(mixed, tiny_tokenizer(), max_length=16)
    assert rows.column_names == ["input_ids", "length", "source_number"]
    assert [part.documents for part in counts.sources] == np.bincount(mixed["source_number"]).tolist()
    assert tuple(map(sum, zip(*(part[:4] for part in counts.sources)))) == counts[:4]


def test_sources_that_cannot_be_mixed():
    with pytest.raises(ValueError, match="some of the sources have a column 'negative'"):
        numbered([sources()[0], sources()[1].add_column("negative", ["a"] * SIZES[1])])
    with pytest.raises(ValueError, match="a source of the mixture has no text"):
        mix(numbered(sources()).select(range(SIZES[0])), [1, 1])
