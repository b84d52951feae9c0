"""The downstream scripts of examples/ run as they are on every kind of data, and say what is wrong with bad data."""

import gzip
import json
import random
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from helpers import EXAMPLES, environment, run_python, tiny_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    EvalPrediction,
)

from simmim_hf.data import tokenization
from simmim_hf.evaluation.run_task import similarity_spearman

SCRIPTS = {
    *("run_classification", "run_token_classification", "run_sentence_similarity", "run_question_answering"),
    *("run_generation", "run_infilling"),
}
NAMES = ["Anna", "Boris", "Clara", "David", "Emil", "Frida"]
CITIES = ["Paris", "Rome", "Oslo", "Vienna"]
KINDS = {"None": "wrote a novel", "travel": "sailed to {city}", "birth": "was born in {city}"}
SEED = 7
TRAINING = [
    *("--use_cpu", "--disable_tqdm", "true", "--save_strategy", "no", "--max_seq_length", "32"),
    *("--per_device_train_batch_size", "8", "--learning_rate", "1e-2"),
]


def rows(count: int, seed: int = 0) -> list[dict]:
    """Small biographies with everything that the tasks need."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        name, city, year, label = (
            draw.choice(NAMES),
            draw.choice(CITIES),
            draw.randint(1900, 1930),
            draw.choice([*KINDS]),
        )
        text = f"In {year} {name} {KINDS[label].format(city=city)} and was happy for a long time."
        words = text.removesuffix(".").split()
        tags = ["PER" if word in NAMES else "LOC" if word in CITIES else "O" for word in words]
        other = f"{draw.choice([name, 'A man'])} {KINDS[label].format(city=city)} in {year}."
        found.append({"text": text, "label": label, "tokens": words, "tags": tags})
        found[-1] |= {"sentence1": text, "sentence2": other, "score": 5.0 if name in other else 2.0}
        found[-1] |= {"question": f"When was {name} happy?", "context": text, "answer": str(year), "answer_start": 3}
    return found


def write(path: Path, data: list[dict], columns=None) -> Path:
    """As JSON lines, csv or tsv by the ending; .gz on top of it."""
    data = [{name: row[name] for name in columns or row} for row in data]
    if ".jsonl" in path.name:
        text = "\n".join(map(json.dumps, data))
    else:
        separator = "\t" if ".tsv" in path.name else ","
        text = "\n".join(separator.join(map(str, line)) for line in [data[0], *(row.values() for row in data)])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture(autouse=True)
def importable(fresh_accelerator, monkeypatch):
    """The scripts import `downstream` from their folder."""
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split, count, seed in (("train", 96, 0), ("test", 24, 1)):
        write(folder / f"{split}.jsonl", rows(count, seed))
        write(folder / f"{split}.csv", rows(count, seed), ["text", "label"])
    write(folder / "test.tsv", rows(24, 1), ["text", "label"])
    write(folder / "test.jsonl.gz", rows(24, 1))
    (folder / "test.txt").write_text("\n\n".join(row["text"] for row in rows(24, 1)))
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return tokenization.train_tokenizer([row["text"] for row in rows(200, 2)], 250, show_progress=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model("bert", {"vocab_size": len(tokenizer)}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tokenizer) -> Path:
    """An encoder that is not SimMIM's."""
    folder = tmp_path_factory.mktemp("plain")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def results(folder: Path, script: str) -> dict:
    found = json.loads((folder / "results.json").read_text())
    assert f"{script}.py" in found["command"] and str(folder) not in found["command"]
    assert {"simmim_hf", "torch", "transformers"} <= found["versions"].keys()
    return found


def run(script: str, folder: Path, *options) -> dict:
    """The results of a script that has to succeed, in a process of its own."""
    words = [EXAMPLES / f"{script}.py", *options, "--output_dir", folder, "--seed", SEED]
    process = run_python(*words, env=environment(ACCELERATE_USE_CPU="true"))
    found = results(folder, script)
    assert json.dumps(found, indent=2, ensure_ascii=False) in process.stdout
    assert found["seed"] == SEED
    return found


def run_here(monkeypatch, script: str, folder: Path, *options) -> dict:
    """The same in this process, which saves the time of the imports."""
    monkeypatch.setattr(
        sys, "argv", [f"{script}.py", *map(str, options), "--output_dir", str(folder), "--seed", str(SEED)]
    )
    runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")
    return results(folder, script)


def functions(monkeypatch, script: str) -> dict:
    return runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name=script)


# ---------------------------------------------------------------------------------------------- every script runs


@pytest.mark.slow
def test_classification(checkpoint, data, tmp_path):
    files = [
        "--train_file",
        data / "train.csv",
        "--validation_file",
        data / "test.tsv",
        "--test_file",
        data / "test.csv",
    ]
    options = [*TRAINING, "--num_train_epochs", 8, "--eval_strategy", "epoch", "--load_best_model_at_end"]
    options = [*options, "--save_strategy", "epoch"]
    found = run("run_classification", tmp_path, "--model_name_or_path", checkpoint, *files, *options)
    assert found["classes"] == ["None", "birth", "travel"], "a class called None is not a missing one"
    assert found["rows"] == {"train": 96, "validation": 24, "test": 24}
    assert found["test"]["accuracy"] > 0.9 and found["test"]["f1_macro"] > 0.9
    assert found["test"] == found["validation"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(model).__name__ == "SimMIMForSequenceClassification" and model.config.id2label[1] == "birth"
    encoded = AutoTokenizer.from_pretrained(tmp_path)(
        "In 1911 Anna sailed to Oslo and was happy.", return_tensors="pt"
    )
    assert model.config.id2label[model(**encoded).logits.argmax().item()] == "travel"


@pytest.mark.slow
def test_token_classification(checkpoint, data, tmp_path, monkeypatch):
    files = ["--train_file", data / "train.jsonl", "--test_file", data / "test.jsonl.gz"]
    options = [*TRAINING, "--num_train_epochs", 6, "--max_seq_length", 14]
    found = run_here(
        monkeypatch, "run_token_classification", tmp_path, "--model_name_or_path", checkpoint, *files, *options
    )["test"]
    words = sum(len(row["tokens"]) for row in rows(24, 1))
    assert found["words"] + found["words_cut"] == words and found["words_cut"] > 0
    assert found["f1_PER"] > 0.9 and found["f1_LOC"] > 0.9 and found["accuracy"] > 0.9
    assert found["f1_macro"] == pytest.approx(np.mean([found[f"f1_{tag}"] for tag in ("PER", "LOC", "O")]), abs=1e-3)
    assert set(AutoModelForTokenClassification.from_pretrained(tmp_path).config.label2id) == {"PER", "LOC", "O"}


@pytest.mark.slow
def test_sentence_similarity(checkpoint, data, tmp_path, tokenizer, monkeypatch):
    files = ["--train_file", data / "train.jsonl", "--test_file", data / "test.jsonl"]
    options = [*TRAINING, "--num_train_epochs", 5, "--learning_rate", "3e-3"]
    found = run_here(
        monkeypatch, "run_sentence_similarity", tmp_path, "--model_name_or_path", checkpoint, *files, *options
    )
    pairs = Dataset.from_list(rows(24, 1))
    for key, folder in (("spearman_before", checkpoint), ("spearman_after", tmp_path)):
        measured = similarity_spearman(AutoModel.from_pretrained(folder), tokenizer, pairs, 32)
        assert found[key]["test"] == pytest.approx(measured, abs=0.1)
    assert found["spearman_after"]["test"] > max(60, found["spearman_before"]["test"])


@pytest.mark.slow
def test_question_answering(checkpoint, data, tmp_path, monkeypatch):
    files = ["--train_file", data / "train.jsonl", "--test_file", data / "test.jsonl"]
    options = [*TRAINING, "--num_train_epochs", 8, "--max_seq_length", 24, "--stride", 4, "--learning_rate", "3e-3"]
    found = run_here(
        monkeypatch, "run_question_answering", tmp_path, "--model_name_or_path", checkpoint, *files, *options
    )
    # No window holds a whole context, and most years take several tokens: it only learns if spans are aligned.
    assert found["test"]["exact_match"] > 0.8 and found["test"]["f1"] >= found["test"]["exact_match"]


@pytest.mark.slow
def test_generation(checkpoint, data, tmp_path, tokenizer, monkeypatch):
    files = ["--train_file", data / "train.jsonl", "--test_file", data / "test.txt", "--coherence_model", checkpoint]
    lengths = ["--prompt_length", 4, "--max_new_tokens", 6, "--num_prompts", 5]
    options = [*TRAINING, "--num_train_epochs", 10, "--max_train_samples", 80]
    found = run_here(
        monkeypatch, "run_generation", tmp_path, "--model_name_or_path", checkpoint, *files, *options, *lengths
    )
    assert found["rows"] == {"train": 80, "test": 24}, "blank lines are no texts"
    assert found["test"]["perplexity"] < 6  # random weights: the size of the vocabulary, 250
    assert found["real"]["distinct_3"] <= 1 and 0 < found["written"]["distinct_1"] <= found["written"]["distinct_2"]
    for written, real in zip(found["written"]["examples"], found["real"]["examples"], strict=True):
        assert written[:7] == real[:7], "a continuation begins with its prompt"
        assert len(written) > 12
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.generation_config.eos_token_id == tokenizer.sep_token_id
    assert model.generation_config.bos_token_id == tokenizer.cls_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.slow
def test_infilling(checkpoint, data, tmp_path, monkeypatch):
    texts = ["Anna was ___ in Oslo", "In 1920 [MASK] was happy"]
    options = ["--evaluate", data / "test.txt", "--gaps", 2, "--top_k", 50, "--batch_size", 5, "--num_candidates", 4]
    found = run_here(
        monkeypatch, "run_infilling", tmp_path, "--model_name_or_path", checkpoint, "--texts", *texts, *options
    )
    for filled in found["filled"][texts[0]]:
        assert filled.startswith("anna was") and filled.endswith(" in oslo") and "[" not in filled
    assert 1 < len(found["filled"][texts[1]]) <= 4
    held_out = found["held_out"]
    assert held_out["texts"] == 24 and held_out["masked_tokens"] >= 48
    assert 0 <= held_out["accuracy_iterative"] <= 1 and 0 <= held_out["accuracy_at_once"] <= 1


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_help_and_length(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")
    assert "--model_name_or_path" in capsys.readouterr().out
    assert len((EXAMPLES / f"{script}.py").read_text().splitlines()) < 150


# ---------------------------------------------------------------------------------------------- other models and data


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["run_classification", "run_generation", "run_infilling", "run_sentence_similarity"]
)
def test_an_encoder_that_is_not_simmim(script, plain, data, tmp_path, monkeypatch):
    options = ["--model_name_or_path", plain]
    if script == "run_infilling":
        options += ["--texts", "Anna ___ to Oslo"]
    else:
        options += [*TRAINING, "--train_file", data / "train.jsonl", "--max_steps", 2]
    if script == "run_generation":
        options += ["--prompt_length", 4, "--max_new_tokens", 4]
    assert run_here(monkeypatch, script, tmp_path, *options)


@pytest.mark.slow
def test_pairs_of_texts_and_a_split_of_one_file(checkpoint, data, tmp_path, monkeypatch):
    options = ["--text_column", "sentence1", "--text_pair_column", "sentence2", "--label_column", "score"]
    pairs = [{**row, "score": int(row["score"])} for row in rows(40)]
    file = write(tmp_path / "pairs.jsonl", pairs)
    options += [*TRAINING, "--train_file", file, "--max_steps", 1, "--test_size", 0.25, "--max_train_samples", 10]
    found = run_here(monkeypatch, "run_classification", tmp_path / "out", "--model_name_or_path", checkpoint, *options)
    assert found["rows"] == {"train": 10, "test": 10} and found["classes"] == ["2", "5"]


@pytest.mark.slow
def test_contrastive_similarity_leaves_out_low_scores(checkpoint, data, tmp_path, monkeypatch):
    options = [*TRAINING, "--train_file", data / "train.jsonl", "--test_file", data / "test.jsonl", "--max_steps", 2]
    options += ["--loss", "contrastive", "--gradient_accumulation_steps", 2]
    found = run_here(monkeypatch, "run_sentence_similarity", tmp_path, "--model_name_or_path", checkpoint, *options)
    assert found["rows"]["train"] == sum(row["score"] >= 4 for row in rows(96, 0)) < 96


def test_random_weights_have_the_same_shape_and_nothing_of_the_checkpoint(checkpoint, monkeypatch):
    downstream = functions(monkeypatch, "downstream")
    args = downstream["DownstreamArguments"](str(checkpoint), max_seq_length=32)
    trained = downstream["load_model"](AutoModel, args)
    args.random_weights = True
    torch.manual_seed(1)
    fresh = downstream["load_model"](AutoModel, args)
    saved = AutoModel.from_pretrained(checkpoint).state_dict()
    for name, weight in trained.state_dict().items():
        assert torch.equal(weight, saved[name])
        assert fresh.state_dict()[name].shape == weight.shape and not torch.equal(fresh.state_dict()[name], weight)


def test_the_test_rows_are_the_same_for_every_seed_and_the_training_rows_are_not(checkpoint, data, monkeypatch):
    downstream = functions(monkeypatch, "downstream")
    args = downstream["DownstreamArguments"]("", train_file=str(data / "train.jsonl"), max_train_samples=20)
    first, second = (downstream["limit_train"](downstream["load_splits"](args, "text"), args, seed) for seed in (1, 2))
    assert first["test"]["text"][:] == second["test"]["text"][:] and len(first["test"]) == 10
    assert first["train"]["text"][:] != second["train"]["text"][:] and len(first["train"]) == 20


def test_bfloat16_needs_no_other_option_on_a_cpu(monkeypatch, tmp_path):
    script = functions(monkeypatch, "downstream")
    words = ["run.py", "--model_name_or_path", "encoder", "--output_dir", str(tmp_path), "--bf16"]
    monkeypatch.setattr(sys, "argv", words)
    _, training_args = script["parse"](script["DownstreamArguments"])
    assert training_args.bf16


def test_a_dataset_by_name(tmp_path, monkeypatch):
    downstream = functions(monkeypatch, "downstream")
    args = downstream["DownstreamArguments"]("", dataset_name=str(tmp_path))
    write(tmp_path / "test.jsonl", rows(6), ["text", "label"])
    with pytest.raises(ValueError, match="has no split `train`; it has: test"):
        downstream["load_splits"](args, "text")
    write(tmp_path / "train.jsonl", rows(8), ["text", "label"])
    assert downstream["sizes"](downstream["load_splits"](args, "text", "label")) == {"train": 8, "test": 6}


def test_classes_that_a_dataset_declares(monkeypatch):
    find_classes = functions(monkeypatch, "downstream")["find_classes"]
    tags = Features({"tags": List(ClassLabel(names=["O", "PER"]))})
    data = DatasetDict({"train": Dataset.from_dict({"tags": [[0, 0]]}, features=tags)})
    assert find_classes(data, "tags") == ({0: 0, 1: 1}, {0: "O", 1: "PER"})
    numbers = Dataset.from_dict({"label": [10, -1, 3]}, features=Features({"label": Value("int64")}))
    assert find_classes(DatasetDict({"train": numbers}), "label") == ({-1: 0, 3: 1, 10: 2}, {0: "-1", 1: "3", 2: "10"})


def test_perplexity_is_that_of_all_tokens_whatever_the_batches(monkeypatch):
    script = functions(monkeypatch, "run_generation")
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 6, 11), torch.randint(0, 11, (3, 6))
    labels[1, 3:], labels[2, 5:] = -100, -100
    per_text = torch.cat(
        [script["token_losses"](logits[:1], labels[:1]), script["token_losses"](logits[1:], labels[1:])]
    )
    found = script["perplexity"](EvalPrediction(per_text.numpy(), labels.numpy()))
    wanted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert found == {"perplexity": pytest.approx(wanted.exp().item(), rel=1e-5), "tokens": 5 + 2 + 4}


def test_distinct_counts_runs_of_words_within_a_text(monkeypatch):
    distinct = functions(monkeypatch, "run_generation")["distinct"]
    texts = ["a b a b", "a b"]
    assert [distinct(texts, n) for n in (1, 2, 3)] == [2 / 6, 2 / 4, 1.0]
    assert distinct(["a"], 2) == 0


def test_answers_are_compared_as_squad_does(monkeypatch):
    script = functions(monkeypatch, "run_question_answering")
    normalize, word_f1 = script["normalize"], script["word_f1"]
    assert normalize("The  Eiffel-Tower!") == ["eiffeltower"] and normalize("an apple") == ["apple"]
    assert word_f1(["red", "car"], ["red", "red", "bus"]) == pytest.approx(2 / 5)
    assert word_f1([], []) == 1 and word_f1([], ["car"]) == 0


def test_masked_words_are_whole_and_known(monkeypatch, tokenizer):
    script = functions(monkeypatch, "run_infilling")
    args = script["ScriptArguments"]("", "", gaps=3, max_seq_length=32)
    texts = ["Anna. Boris ☃ Clara.", "Anna Boris"]  # three words, a snowman that is not in the vocabulary; two words
    ((ids, positions),) = script["mask_words"](texts, tokenizer, args)
    kept = tokenizer.decode(np.delete(ids, positions))
    assert kept.replace(" ", "") == "[CLS].[UNK].[SEP]"


# ---------------------------------------------------------------------------------------------- what is wrong is said

ERRORS = {
    "no data": ("run_classification", [], "Give either --train_file"),
    "test data only": ("run_classification", ["--test_file", "test.csv"], "Give either --train_file"),
    "no file": ("run_classification", ["--train_file", "absent.csv"], "There is no file `.*absent.csv`"),
    "ending": (
        "run_classification",
        ["--train_file", "notes.docx"],
        "unsupported ending; supported: .txt, .md, .jsonl",
    ),
    "empty": ("run_classification", ["--train_file", "empty.jsonl"], "empty.jsonl` cannot be read: it is empty"),
    "damaged": ("run_classification", ["--train_file", "damaged.jsonl"], "damaged.jsonl` cannot be read: JSON"),
    "column": (
        "run_classification",
        ["--train_file", "train.csv", "--label_column", "class"],
        "train.csv` has no column `class`; it has: text, label",
    ),
    "row without a label": ("run_classification", ["--train_file", "gap.csv"], "has no `label` in row 2"),
    "numbers as classes": (
        "run_classification",
        ["--train_file", "train.jsonl", "--label_column", "score"],
        "`score` must hold two or more classes",
    ),
    "unknown class": (
        "run_classification",
        ["--train_file", "train.csv", "--test_file", "other.csv"],
        r"The test data has labels \['war'\], the training data only \['None', 'birth', 'travel'\]",
    ),
    "length": (
        "run_classification",
        ["--train_file", "train.csv", "--max_seq_length", "65"],
        "--max_seq_length 65 is more than the 64 positions",
    ),
    "no lists": (
        "run_token_classification",
        ["--train_file", "train.jsonl", "--tags_column", "label"],
        "`label` of the train data must hold lists",
    ),
    "one tag too few": ("run_token_classification", ["--train_file", "tags.jsonl"], "Row 1 .* has 2 words and 1 tags"),
    "scale": ("run_sentence_similarity", ["--train_file", "train.jsonl", "--max_score", "1"], "set --max_score"),
    "no answers": (
        "run_question_answering",
        ["--train_file", "no_answers.jsonl"],
        "needs `answer` and `answer_start`",
    ),
    "shifted answer": ("run_question_answering", ["--train_file", "shifted.jsonl"], "'1900' does not stand at char"),
    "stride": (
        "run_question_answering",
        ["--train_file", "train.jsonl", "--max_seq_length", "20", "--stride", "12"],
        "raise that, or lower the stride",
    ),
    "short texts": (
        "run_generation",
        ["--train_file", "train.jsonl", "--max_seq_length", "32"],
        "No held-out text is longer than 64 tokens",
    ),
    "nothing to do": ("run_infilling", [], "Give --texts with gaps, or --evaluate"),
    "infilling column": (
        "run_infilling",
        ["--evaluate", "train.csv", "--text_column", "body"],
        "train.csv` has no column `body`; it has: text, label",
    ),
    "no words": ("run_infilling", ["--evaluate", "train.csv", "--gaps", "99"], "has 99 words: lower --gaps"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_wrong_is_said(case, checkpoint, data, tmp_path, monkeypatch):
    script, options, message = ERRORS[case]
    (data / "notes.docx").write_text("text")
    (data / "empty.jsonl").write_text("")
    (data / "damaged.jsonl").write_text("{no")
    (data / "gap.csv").write_text("text,label\na,x\nb,\nc,y")
    (data / "other.csv").write_text("text,label\na,war\n")
    write(data / "tags.jsonl", [{"tokens": ["a", "b"], "tags": ["O"]}] * 20)
    write(data / "no_answers.jsonl", rows(20), ["question", "context"])
    answer = {"question": "When?", "context": "In 1900", "answer": "1900", "answer_start": 2}
    write(data / "shifted.jsonl", [answer] * 20)
    options = [data / option if "." in option else option for option in options]
    training = [] if script == "run_infilling" else ["--use_cpu"]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_here(monkeypatch, script, tmp_path, "--model_name_or_path", checkpoint, *training, *options)
    assert not (tmp_path / "results.json").exists()
