"""A few cases of `benchmarks/fuzz.py`: whatever a command is given, it takes it or refuses it in one clear line."""

import pytest
from fuzz import Fuzz, run

pytestmark = pytest.mark.slow  # it trains, in processes


def test_nothing_gives_a_traceback_or_nonsense(tmp_path):
    fuzz = Fuzz(tmp_path)
    fuzz.prepare()
    for number in range(30):
        _, case, wrong, said = run(fuzz, number, seconds=60)
        assert not wrong, f"{wrong}\n{case.words}\n{said}"
