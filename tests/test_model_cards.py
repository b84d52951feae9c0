"""The checkpoint that the repository ships: small, of use, open by every route, its card what was measured."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import WITHOUT_THE_PACKAGE, run_python
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, pipeline

import simmim_hf
from simmim_hf.cli import main
from simmim_hf.model.configuration_simmim import remote_files

CARD = Path(__file__).parents[1] / "model_cards" / "simmim-tiny-en"
TEXTS = ["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell today."]


def test_it_is_small_and_its_code_is_that_of_the_package():
    files = [path for path in CARD.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12e6
    package = Path(simmim_hf.__file__).parent / "model"
    for name in remote_files():
        assert (CARD / name).read_bytes() == (package / name).read_bytes(), name


def test_what_is_alike_is_nearer():
    first, alike, other = simmim_hf.encode("simmim-tiny-en", TEXTS)
    assert first @ alike > first @ other + 0.1


def test_it_fills_gaps():
    answers = pipeline("fill-mask", model=str(CARD))("she was born in new [MASK] city .")
    assert answers[0]["token_str"] == "york"


@pytest.mark.slow
def test_every_route_gives_the_same_vectors():
    expected = simmim_hf.encode("simmim-tiny-en", TEXTS)
    found = [AutoModel.from_pretrained(CARD).encode(TEXTS), SentenceTransformer(str(CARD), device="cpu").encode(TEXTS)]
    script = WITHOUT_THE_PACKAGE + (
        "import json\n"
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], device='cpu', trust_remote_code=True)\n"
        "print(json.dumps(model.encode(sys.argv[2:]).tolist()))\n"
    )
    found.append(np.array(json.loads(run_python("-c", script, CARD, *TEXTS).stdout.splitlines()[-1])))
    for vectors in found:
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_the_card_is_what_was_measured(tmp_path):
    copy = tmp_path / CARD.name
    shutil.copytree(CARD, copy)
    figures = ["--evaluation", *(str(copy / part) for part in ("vectors", "transfer", "language"))]
    assert main(["card", "--model", str(copy), "--license", "apache-2.0", "--language", "en", *figures]) == 0
    assert (copy / "README.md").read_text() == (CARD / "README.md").read_text()
