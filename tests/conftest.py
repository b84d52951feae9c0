"""What several test files share."""

import contextlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

# Tensors this small gain nothing from a second thread, and lose much where other processes want the same cores.
torch.set_num_threads(1)

SHARED_DATA = Path(__file__).parents[2] / "shared/data"


def pytest_configure(config):
    # pytest-xdist would begin with the files of many tests, and end with one process waiting for those of slow ones.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that small ones fill what time is left at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True, scope="session")
def folder_of_the_session(tmp_path_factory):
    """The working directory of fixtures that several tests share: not the clone, where runs may have left theirs."""
    with contextlib.chdir(tmp_path_factory.mktemp("session")):
        yield


@pytest.fixture(autouse=True)
def folder_of_the_test(folder_of_the_session, tmp_path):
    """The working directory of each test, and of the processes that it starts."""
    with contextlib.chdir(tmp_path):
        yield


@pytest.fixture(scope="session")
def shared_data():
    """A function from a path below ../shared/data, real text that is not part of the project, to where it lies."""

    def find(path: str) -> Path:
        if not (SHARED_DATA / path).exists():
            pytest.skip(f"needs ../shared/data/{path}, which is not part of the project")
        return SHARED_DATA / path

    return find


@pytest.fixture
def fresh_accelerator():
    """accelerate keeps the device and the precision of the first Trainer or Accelerator of a process, and the loader
    of a training that ended in the middle, at whose end gradients are applied."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def no_pictures(monkeypatch):
    """Plots are drawn but not rendered, which takes as long as a tiny run."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: Path(path).write_bytes(b""))
