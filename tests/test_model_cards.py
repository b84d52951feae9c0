"""The checkpoints that the repository ships: small, of use, open by every route, their cards what was measured."""

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

CARDS = Path(__file__).parents[1] / "model_cards"
TEXTS = {
    "en": ["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell today."],
    "zh": ["一个男人在弹吉他。", "有人在演奏吉他。", "股市今天大幅下跌。"],
}
SENTENCES = {"en": ("she was born in new [MASK] city .", "york"), "zh": ("他出生於北[MASK]市。", "京")}
FIGURES = "vectors", "language"


@pytest.fixture(params=["en", "zh"])
def language(request) -> str:
    return request.param


@pytest.fixture
def card(language) -> Path:
    return CARDS / f"simmim-tiny-{language}"


def test_it_is_small_and_its_code_is_that_of_the_package(card):
    files = [path for path in card.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12e6
    package = Path(simmim_hf.__file__).parent / "model"
    for name in remote_files():
        assert (card / name).read_bytes() == (package / name).read_bytes(), name


def test_what_is_alike_is_nearer(language, card):
    first, alike, other = simmim_hf.encode(card, TEXTS[language])
    assert first @ alike > first @ other + 0.1


def test_it_fills_gaps(language, card):
    sentence, word = SENTENCES[language]
    assert pipeline("fill-mask", model=str(card))(sentence)[0]["token_str"] == word


@pytest.mark.slow
def test_every_route_gives_the_same_vectors(language, card):
    texts = TEXTS[language]
    expected = simmim_hf.encode(card, texts)
    found = [AutoModel.from_pretrained(card).encode(texts), SentenceTransformer(str(card), device="cpu").encode(texts)]
    script = WITHOUT_THE_PACKAGE + (
        "import json\n"
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], device='cpu', trust_remote_code=True)\n"
        "print(json.dumps(model.encode(sys.argv[2:]).tolist()))\n"
    )
    found.append(np.array(json.loads(run_python("-c", script, card, *texts).stdout.splitlines()[-1])))
    for vectors in found:
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_the_card_is_what_was_measured(language, card, tmp_path):
    copy = tmp_path / card.name
    shutil.copytree(card, copy)
    figures = ["--evaluation", *(str(copy / part) for part in FIGURES)]
    assert main(["card", "--model", str(copy), "--license", "apache-2.0", "--language", language, *figures]) == 0
    assert (copy / "README.md").read_text() == (card / "README.md").read_text()
