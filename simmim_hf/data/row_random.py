"""Random numbers for the rows of a batch, each row with a seed of its own."""

from collections.abc import Sequence

import numpy as np

# Increment and multipliers of SplitMix64 (Steele, Lea & Flood 2014), whose outputs for a counter are independent.
INCREMENT = np.uint64(0x9E3779B97F4A7C15)
MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


class RowGenerator:
    """Numbers that depend on the seed of a row and a position in it, and not on the other rows.

    It has the methods of `numpy.random.Generator` that the collator uses; that class draws for the whole batch.

    Args:
        seeds: one of 64 bits for each row
        is_left_padded: positions are counted from the right, so that they do not depend on the padding
    """

    def __init__(self, seeds: Sequence[int] | np.ndarray, is_left_padded: bool = False) -> None:
        self.state = np.asarray(seeds, dtype=np.uint64)
        self.is_left_padded = is_left_padded

    def random(self, shape: tuple[int, int]) -> np.ndarray:
        """Uniform numbers in [0, 1) of the shape (rows, columns), others in each call."""
        self.state = _mixed(self.state + INCREMENT)
        columns: np.ndarray = np.arange(1, shape[1] + 1, dtype=np.uint64)
        if self.is_left_padded:
            columns = columns[::-1]
        bits = _mixed(self.state[:, None] + columns * INCREMENT)  # (rows, columns)
        return (bits >> np.uint64(11)) * 2.0**-53

    def uniform(
        self,
        low: float,
        high: float,
        shape: tuple[int, int],
    ) -> np.ndarray:
        """Uniform numbers in [low, high) of the shape (rows, columns)."""
        return low + (high - low) * self.random(shape)

    def spawn(self, count: int) -> list["RowGenerator"]:
        """Generators with numbers of their own for the same rows."""
        numbers: np.ndarray = np.arange(1, count + 1, dtype=np.uint64)
        keys = _mixed(numbers * INCREMENT)
        return [RowGenerator(_mixed(self.state ^ key), self.is_left_padded) for key in keys]


def _mixed(bits: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64; arithmetic is modulo 2 ** 64."""
    with np.errstate(over="ignore"):
        for shift, multiplier in zip(SHIFTS, MULTIPLIERS, strict=False):
            bits = (bits ^ (bits >> shift)) * multiplier
    return bits ^ (bits >> SHIFTS[2])
