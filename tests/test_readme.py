"""README.md and docs/ work as they stand: their Python runs in its order, their commands have these options.

The Python of docs/adapt.md runs where a model was adapted: tests/pretraining/test_adapt_command.py.
"""

import gzip
import json
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers import TINY
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from simmim_hf import DataCollatorForSimMIM, SimMIMForPreTraining, cli
from simmim_hf.data import tokenization

ROOT = Path(__file__).parent.parent
PATHS = [ROOT / "README.md", ROOT / "README.zh.md", *(ROOT / "docs").glob("*.md")]
PAGES = {page.name: page.read_text(encoding="utf-8") for page in PATHS}
TEXT = ["The capital of France is Paris.", "A sentence about rivers, stones and gardens.", "Another one."] * 30


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    blocks_of_pages = [block for page in sorted(PAGES) for block in blocks("bash", page)]
    lines = [line for block in blocks_of_pages for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("simmim ")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder a reader would be in: their text, a checkpoint of their own, those of the clone, and the Hub's models
    by their ids."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    (tmp_path / "corpus.txt").write_text("\n".join(TEXT))
    tokenizer = tokenization.train_tokenizer(TEXT, 99, show_progress=False)
    base = tmp_path / "google-bert" / "bert-base-uncased"
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **TINY)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    SimMIMForPreTraining.from_backbone(base).save_pretrained("my-encoder")
    tokenizer.save_pretrained("my-encoder")
    DataCollatorForSimMIM(tokenizer).save_pretrained("my-encoder")
    shutil.copytree("my-encoder", "user/my-encoder")
    return tmp_path


def run_python_of(page: str) -> dict:
    names = {}
    for block in blocks("python", page):
        exec(compile(block, page, "exec"), names)
    return names


@pytest.mark.slow
def test_the_python_of_the_readme_runs_in_its_order(folder):
    names = run_python_of("README.md")
    assert names["similarities"].shape == (2, 2)
    assert names["model"].config.positive_view == "snippet"
    for file in ("model.safetensors", "modeling_simmim.py", "tokenizer.json", "data_collator_config.json"):
        assert (folder / "own-encoder" / file).is_file()


def test_the_python_of_use_runs_in_its_order(folder):
    names = run_python_of("use.md")
    assert names["outputs"].pooler_output.shape == (2, TINY["hidden_size"])
    assert not (names["filled"] == names["tokenizer"].mask_token_id).any()


@pytest.mark.slow
@pytest.mark.parametrize("page", ["objectives.md", "pretrain.md"])
def test_the_python_of_a_page_runs(folder, page):
    run_python_of(page)


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page):
    place = ROOT if page.startswith("README") else ROOT / "docs"
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        file, _, heading = target.partition("#")
        if not file.startswith(("http:", "https:")):
            found = place / file if file else place / page
            assert found.exists(), target
            titles = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
            assert not heading or heading in [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles], (
                target
            )


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_commands_of_the_pages_have_their_options(words, capsys):
    trains = words[0] in ("pretrain", "adapt", "compare")
    with pytest.raises(SystemExit) as stop:
        cli.main([words[0], "--help_all" if trains else "--help"])
    assert stop.value.code == 0
    known = capsys.readouterr().out
    assert [word for word in words if word.startswith("--") and f"{word} " not in known] == []


# Every command of the pages, in their order and in one folder: with small models and files under the names of theirs.
SMALL = {
    "pretrain": "--max_steps 2 --per_device_train_batch_size 4 --max_seq_length 16 --save_strategy no --use_cpu",
    "adapt": "--max_steps 2 --per_device_train_batch_size 4 --max_seq_length 16 --save_strategy no --use_cpu",
    "compare": "--seeds 1 --per_device_train_batch_size 4 --max_seq_length 16 --use_cpu",
    "evaluate": "--max_seq_length 16 --overwrite_output_dir",
    "export": "--overwrite_output_dir",
}


def smaller(words: list[str]) -> list[str]:
    """A command of a page for little text; of an option that is given twice the last counts."""
    more = SMALL[words[0]].split()
    if words[0] in ("pretrain", "adapt"):
        more += ["--report_to", "none", "--overwrite_output_dir"]
    if words[0] == "pretrain" and "--model_name_or_path" not in words:
        more += ["--text_config", json.dumps({"model_type": "modernbert", **TINY})]
    if words[0] == "compare":
        more += ["--budget_tokens", "2e4"] if "--budget_text" not in words else ["--budget_text", "1e4"]
    return [*words, *more]


@pytest.fixture
def everything(folder):
    """What the commands of the pages name."""
    tokenizer = tokenization.load_tokenizer("my-encoder")
    config = RobertaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **TINY)
    RobertaForMaskedLM(config).save_pretrained("FacebookAI/roberta-base")
    tokenizer.save_pretrained("FacebookAI/roberta-base")
    modules = [Transformer("google-bert/bert-base-uncased"), Pooling(TINY["hidden_size"], "mean")]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained("sentence-transformers/all-MiniLM-L6-v2")
    texts = [f"{text} It is number {i}, and nothing else is known of it." for i, text in enumerate(TEXT * 13)]
    pairs = [{"sentence1": a, "sentence2": b, "score": i % 6} for i, (a, b) in enumerate(pairwise(texts[:60]))]
    labelled = [{"text": text, "label": i % 3} for i, text in enumerate(texts[:90])]
    answers = [{"query": text[-60:], "document": text} for text in texts[:40]]
    tables = {
        **{f"{name}/{name}.jsonl": [{"text": text} for text in texts] for name in ("wiki", "books", "user/dataset")},
        **{"questions.jsonl": answers, "stsb-dev.jsonl": pairs, "trec/train.jsonl": labelled},
        **{"trec/test.jsonl": labelled, "sentence-transformers/stsb/test.jsonl": pairs},
    }
    for name, rows in tables.items():
        place = folder / name.replace("user/dataset/user/", "user/dataset/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, separator in (("stsb/dev.csv", ","), ("stsb/test.tsv", "\t")):
        (folder / "stsb").mkdir(exist_ok=True)
        pd.DataFrame(pairs).to_csv(name, sep=separator, index=False)
    for name in ("corpus", "notes"):
        (folder / name).mkdir()
    with gzip.open("corpus/a.jsonl.gz", "wt") as file:
        file.write((folder / "wiki/wiki.jsonl").read_text())
    (folder / "notes/notes.md").write_text("\n\n".join(texts[:200]))
    (folder / "heldout.txt").write_text("\n".join(texts[:30]))
    (folder / "settings.yaml").write_text(blocks("yaml", "pretrain.md")[0])
    (folder / "arms.yaml").write_text(blocks("yaml", "compare.md")[0])
    return folder


@pytest.mark.slow
@pytest.mark.pages
def test_the_commands_of_the_pages_run(everything):
    for words in commands():
        assert cli.main(smaller(words)) == 0, shlex.join(words)


def test_the_settings_of_the_pages_are_options(capsys):
    settings, arms = (yaml.safe_load(blocks("yaml", page)[0]) for page in ("pretrain.md", "compare.md"))
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "--help_all"])
    known = capsys.readouterr().out
    assert [name for name in [*settings, *set().union(*arms.values())] if f"--{name} " not in known] == []


def test_the_chinese_readme_is_in_step():
    """The same headings, code, pictures, links and figures."""
    english, chinese = PAGES["README.md"], PAGES["README.zh.md"]
    assert len(english.splitlines()) <= 200
    for language in ("bash", "python"):
        assert blocks(language, "README.zh.md") == blocks(language)
    for pattern in (r"^(#+) ", r"\]\(((?!README)[^)]+)\)", r"(\d\.\d+)", r"^(\|)"):
        found = [sorted(re.findall(pattern, page, re.MULTILINE)) for page in (english, chinese)]
        assert found[0] == found[1], pattern
