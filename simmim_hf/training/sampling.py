"""How rows become batches on several processes, so that N processes compute what one process computes."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader, Sampler

from ..data.collator import DataCollatorForSimMIM, as_row


class ShortestFirstSampler(Sampler[int]):
    """Rows by length, the shortest first: a fixed order, so that every evaluation has the same batches.

    Args:
        lengths: tokens of each row
    """

    def __init__(self, lengths: list[int]) -> None:
        self.order = np.argsort(lengths, kind="stable").tolist()

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


class SharedBatches:
    """Each batch of all processes together, cut into as many parts as there are processes, equal up to one row.

    Accelerate deals the parts out in turn. It would complete the last batch of an epoch with rows that were read
    before, which then are counted twice and are negatives of themselves.

    Args:
        sampler: of the rows
        batch_size: rows of all processes together
        processes: how many there are
        drop_last: leave out the last batch where it is smaller
    """

    def __init__(self, sampler: Sampler[int], batch_size: int, processes: int, drop_last: bool) -> None:
        self.sampler = sampler
        self.drop_last = drop_last
        self.processes = processes
        self.batches = BatchSampler(sampler, batch_size, drop_last)

    def __len__(self) -> int:
        return len(self.batches) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.batches:
            for part in np.array_split(rows, self.processes):
                yield part.tolist()


class WholeBatches:
    """Batches that each go to one process, as many for every process: the first one fills up what is missing.

    Args:
        batches: of one process
        processes: how many share them
    """

    def __init__(self, batches: BatchSampler, processes: int) -> None:
        self.sampler = batches.sampler
        self.batches = batches
        self.processes = processes

    def __len__(self) -> int:
        return math.ceil(len(self.batches) / self.processes) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        batches = list(self.batches)
        yield from batches
        yield from batches[:1] * (len(self) - len(batches))


class PassCollator:
    """A collator that gives each row the number of the pass over the text, so that every pass has other masks.

    The number is in shared memory: worker processes read it, also those that outlive a pass.

    Without any rows, for a process that has none left where others have some, the batch is empty.

    Args:
        collator: a row that has the column `draw` already keeps it
    """

    def __init__(self, collator: DataCollatorForSimMIM) -> None:
        self.collator = collator
        self.number = torch.zeros((), dtype=torch.int64).share_memory_()

    def __call__(self, features: list) -> dict:
        if not features:
            placeholder = self.collator([{"input_ids": [self.collator.tokenizer.mask_token_id]}])
            return {name: column[:0] for name, column in placeholder.items()}
        number = int(self.number)
        return self.collator([{"draw": number, **as_row(feature)} for feature in features])


def share_batches(loader: DataLoader) -> DataLoader:
    """The loader of training rows with `SharedBatches`, where several processes read."""
    shards = loader.batch_sampler
    if isinstance(shards, BatchSamplerShard) and type(shards.batch_sampler) is BatchSampler:
        batches = shards.batch_sampler
        size = batches.batch_size * shards.num_processes
        _deal(shards, SharedBatches(batches.sampler, size, shards.num_processes, batches.drop_last))
    return loader


def keep_batches_whole(loader: DataLoader) -> DataLoader:
    """The loader of held-out rows with `WholeBatches`, where several processes read."""
    shards = loader.batch_sampler
    if isinstance(shards, BatchSamplerShard) and type(shards.batch_sampler) is BatchSampler:
        _deal(shards, WholeBatches(shards.batch_sampler, shards.num_processes))
    return loader


def batches_of_process(loader: DataLoader) -> float:
    """How many batches of a loader with `WholeBatches` are this process's own; the others fill up."""
    shards = loader.batch_sampler
    if not (isinstance(shards, BatchSamplerShard) and isinstance(shards.batch_sampler, WholeBatches)):
        return math.inf
    return len(range(shards.process_index, len(shards.batch_sampler.batches), shards.num_processes))


def _deal(shards: BatchSamplerShard, batches: SharedBatches | WholeBatches) -> None:
    shards.batch_sampler = batches
    shards.batch_size = None  # batches of different sizes, which accelerate then leaves as they are
