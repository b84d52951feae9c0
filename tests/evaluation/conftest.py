"""What the tests of this folder share: a checkpoint, and a task of each kind."""

import pytest
from helpers import tiny_model, tiny_tokenizer
from task_files import write_tasks

from simmim_hf.evaluation import metrics


@pytest.fixture
def few_folds(monkeypatch):
    monkeypatch.setattr(metrics, "FOLDS", 3)  # ten take ten times as long


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("simmim")
    tiny_model(clm_weight=1.0, pooling="max").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, str]:
    """A task of each kind."""
    return write_tasks(tmp_path_factory.mktemp("tasks"))
