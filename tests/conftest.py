"""What several test files share."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parents[2] / "shared/data"


@pytest.fixture
def shared_data():
    """A function from a path below ../shared/data, real text that is not part of the project, to where it lies."""

    def find(path: str) -> Path:
        if not (SHARED_DATA / path).exists():
            pytest.skip(f"needs ../shared/data/{path}, which is not part of the project")
        return SHARED_DATA / path

    return find
