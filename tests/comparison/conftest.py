"""Text, scored pairs, and a plot that is not rendered, for every test of this folder."""

import json
from pathlib import Path

import helpers
import pytest


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """A folder with a corpus and scored pairs."""
    folder = tmp_path_factory.mktemp("files")
    lines = helpers.corpus_lines(200)
    (folder / "corpus.txt").write_text("\n".join(lines))
    pairs = [{"sentence1": lines[i], "sentence2": lines[i + 1], "score": i % 5} for i in range(30)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder
