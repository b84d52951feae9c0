"""Documents of several sources, drawn by weight."""

import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets


def numbered(sources: list[Dataset]) -> Dataset:
    """All documents of the sources, with the number of the source, from 0, in the column `source_number`.

    Raises:
        ValueError: the sources have different columns.
    """
    if len({tuple(source.column_names) for source in sources}) > 1:
        raise ValueError("some of the sources have a column 'negative' and some do not: mix one kind only")
    parts = []
    for number, source in enumerate(sources):
        column: np.ndarray = np.full(len(source), number, np.int32)  # (documents,)
        parts.append(source.add_column("source_number", column))
    return concatenate_datasets(parts)


def rows_of_sources(dataset: Dataset) -> list[np.ndarray]:
    """The rows of each source of a dataset with the column `source_number`."""
    numbers = np.array(dataset["source_number"][:])
    return [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]


def mix(
    sources: Dataset | list[IterableDataset],
    weights: list[float],
    seed: int = 0,
) -> Dataset | IterableDataset:
    """Draws documents from sources by weight, from each in its order.

    Args:
        sources: a table with the column `source_number`, or streams
        weights: how often each source is drawn from, any numbers above 0
        seed: of the draws

    Returns:
        A table in which every document is at least once, and those of a source that ends before the others again and
        again; or a stream without an end.

    Raises:
        ValueError: a source has no documents, or streams have different columns.
    """
    if isinstance(sources, Dataset):
        parts = [sources.select(rows) for rows in rows_of_sources(sources)]
        if len(parts) < len(weights) or not all(map(len, parts)):
            raise ValueError("a source of the mixture has no text that is not held out: give it more, or leave it out")
    else:
        parts = [source.repeat(None) for source in sources]
    shares = np.array(weights) / sum(weights)
    return interleave_datasets(parts, shares.tolist(), seed, stopping_strategy="all_exhausted")
