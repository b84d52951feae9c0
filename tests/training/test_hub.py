"""The round trip over the Hub: what one process pushes, another opens without this package, and gives back.

The Hub is `hub_server.py`. The processes write what they saw, weights and outputs, and the tests compare.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SAVED, TINY, WITHOUT_THE_PACKAGE, corpus_lines, environment, run_python
from hub_server import Hub

from simmim_hf import SimMIMForPreTraining, SimMIMForSequenceClassification, SimMIMModel
from simmim_hf.model.configuration_simmim import AUTO_MAP, remote_files

pytestmark = pytest.mark.slow

# Which classes open which checkpoint, the one that was pushed first. The last two are pushed by a Trainer.
CLASSES = {
    "pretraining": ["AutoModelForPreTraining", "AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM"],
    "encoder": ["AutoModel"],
    "classifier": ["AutoModelForSequenceClassification", "AutoModel"],
    "trainer": ["AutoModelForPreTraining", "AutoModel"],
    "simmim-trainer": ["AutoModelForPreTraining", "AutoModel"],
}
OPENED = [(name, auto_class) for name, classes in CLASSES.items() for auto_class in classes]
TASKS = {"fill-mask": "pretraining", "feature-extraction": "pretraining", "text-classification": "classifier"}

# What both processes do with the checkpoints: under `place`, a folder or a user of the Hub.
OBSERVE = """
import json, os, sys
import torch, transformers
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoTokenizer, pipeline

torch.set_num_threads(1)
classes, tasks, folder = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
transformers.logging.set_verbosity_error()

def observe(place, **options):
    seen = {}
    for name, auto_classes in classes.items():
        where = f"{place}/{name}"
        seen[name] = {"AutoConfig": AutoConfig.from_pretrained(where, **options).text_config.model_type}
        for auto_class in auto_classes:
            model = getattr(transformers, auto_class).from_pretrained(where, **options)
            seen[name][auto_class] = describe(model)
    tokenizer = AutoTokenizer.from_pretrained(f"{place}/pretraining", **options)
    seen["tokenizer"] = dict(tokenizer(["w3 w5 [MASK]", "w1"], padding=True))
    texts, where = ["w3 w5", "w1"], f"{place}/pretraining"
    seen["vectors"] = {
        "AutoModel": transformers.AutoModel.from_pretrained(where, **options).encode(texts),
        "SentenceTransformer": SentenceTransformer(where, device="cpu", **options).encode(texts),
    }
    for task, name in tasks.items():
        run = pipeline(task, model=f"{place}/{name}", device="cpu", **options)
        seen[task] = {"class": type(run.model).__name__, "answer": run("w3 w5 [MASK] w7")}
    return seen

def describe(model):
    ids = torch.tensor([[2, 9, 8, 7, 6, 3], [2, 30, 31, 3, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    if type(model).__name__ == "SimMIMForPreTraining":
        corrupted = torch.tensor([[0, 1, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0]]).bool()
        batch |= {"masked_input_ids": ids.masked_fill(corrupted, 4), "labels": ids.masked_fill(~corrupted, -100)}
    with torch.no_grad():
        outputs = model(**batch)
    return {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "generates": model.can_generate(),
        "weights": model.state_dict(),
        "outputs": {name: value for name, value in outputs.items() if torch.is_tensor(value)},
    }

def refused(action):
    try:
        action()
    except ValueError as error:
        return str(error)
"""

PUSH = """
from pathlib import Path
from helpers import randomize, ragged_batch, text_config, tiny_model, tiny_tokenizer
from huggingface_hub import HfApi
from transformers import AutoModelForPreTraining, Trainer, TrainingArguments
from simmim_hf import SimMIMConfig, SimMIMForSequenceClassification, SimMIMModel, SimMIMTrainer

local = Path(folder, "local")
tokenizer = tiny_tokenizer()

def keep(model, name, **options):
    model.push_to_hub(f"tester/{name}", **options)
    model.save_pretrained(local / name)

def train_and_push(trainer_class, name):
    rows = ragged_batch([5, 6, 7, 8])
    arguments = TrainingArguments(
        str(local / name), max_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True, hub_model_id=f"tester/{name}",
    )
    dataset = [{column: values[i] for column, values in rows.items()} for i in range(4)]
    trainer = trainer_class(
        model=tiny_model("modernbert"), args=arguments, train_dataset=dataset, processing_class=tokenizer,
        data_collator=lambda rows: {column: torch.stack([row[column] for row in rows]) for column in rows[0]},
    )
    trainer.train()
    trainer.push_to_hub()
    return trainer.model.eval()

model = tiny_model("bert", projection_dim=8, pooling="cls", clm_weight=1.0)
keep(model, "pretraining")
tokenizer.push_to_hub("tester/pretraining")
tokenizer.save_pretrained(local / "pretraining")
encoder = randomize(SimMIMModel(SimMIMConfig(text_config=text_config("modernbert"), pooling="max")))
keep(encoder, "encoder")
labels = {0: "bad", 1: "fair", 2: "good"}
config = SimMIMConfig(text_config=text_config("roberta"), id2label=labels, label2id={v: k for k, v in labels.items()})
classifier = randomize(SimMIMForSequenceClassification(config))
keep(classifier, "classifier", max_shard_size="20KB")
tokenizer.push_to_hub("tester/classifier")
tokenizer.save_pretrained(local / "classifier")
live = {"pretraining": model, "encoder": encoder, "classifier": classifier}
live |= {name: train_and_push(c, name) for name, c in {"trainer": Trainer, "simmim-trainer": SimMIMTrainer}.items()}

seen = observe(local)
seen["live"] = {name: describe(model) for name, model in live.items()}

# Code that leaves a trace where it runs. Here it must not, because this package is imported.
model.save_pretrained(local / "traced")
tokenizer.save_pretrained(local / "traced")
trap = "\\nimport os\\nprint(__name__, 'ran', file=open(os.environ['TRACE'], 'a'))\\n"
for file in (local / "traced").glob("*.py"):
    file.write_text(file.read_text() + trap)
HfApi().create_repo("tester/traced")
HfApi().upload_folder(repo_id="tester/traced", folder_path=local / "traced")
for place in ("tester/traced", str(local / "traced")):
    for auto_class in ("AutoConfig", "AutoModel", "AutoModelForPreTraining", "AutoModelForSequenceClassification"):
        opened = getattr(transformers, auto_class).from_pretrained(place, trust_remote_code=True)
        assert type(opened).__module__.startswith("simmim_hf."), type(opened)
    run = pipeline("fill-mask", model=place, trust_remote_code=True)
    assert type(run.model).__module__ == "simmim_hf.model.modeling_simmim", type(run.model)
opened = AutoModelForPreTraining.from_pretrained("tester/traced", trust_remote_code=True)
opened.push_to_hub("tester/pushed-again")
torch.save(seen, Path(folder, "source.pt"))
"""

OPEN_WITHOUT_THE_PACKAGE = (
    WITHOUT_THE_PACKAGE
    + OBSERVE
    + """
from pathlib import Path
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

local, trace = Path(folder, "local"), Path(os.environ["TRACE"])
seen = {"refused": {}}
for place in ("tester/traced", str(local / "traced")):
    for auto_class in ("AutoConfig", "AutoModel", "AutoModelForPreTraining"):
        reason = refused(lambda: getattr(transformers, auto_class).from_pretrained(place))
        seen["refused"][f"{place} {auto_class}"] = reason
    seen["refused"][f"{place} pipeline"] = refused(lambda: pipeline("fill-mask", model=place))
seen["trace without trust"] = trace.exists()
AutoModel.from_pretrained("tester/traced", trust_remote_code=True)
seen["trace with trust"] = trace.exists() and trace.read_text()

seen["hub"] = observe("tester", trust_remote_code=True)
seen["folder"] = observe(local, trust_remote_code=True)
everything = [name for name in json.loads(os.environ["AUTO_MAP"]) if name != "AutoConfig"]
seen["every class"] = {
    name: type(getattr(transformers, name).from_pretrained("tester/pretraining", trust_remote_code=True)).__name__
    for name in everything
}

again = Path(folder, "again")
model = AutoModelForPreTraining.from_pretrained("tester/pretraining", trust_remote_code=True)
model.save_pretrained(again / "pretraining")
model.push_to_hub("tester/pushed-by-a-stranger")
AutoModel.from_pretrained("tester/pretraining", trust_remote_code=True).save_pretrained(again / "encoder")
AutoModelForSequenceClassification.from_pretrained(local / "classifier", trust_remote_code=True).save_pretrained(
    again / "classifier"
)
assert not any(name.startswith("simmim_hf.") for name in sys.modules)
torch.save(seen, Path(folder, "stranger.pt"))
"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        yield hub


def run(hub: Hub, folder: Path, name: str, script: str) -> dict:
    """What the script saw, in a process that reaches `hub` only and has an empty cache."""
    variables = {"AUTO_MAP": json.dumps(AUTO_MAP), "TRACE": str(folder / f"trace-of-{name}")}
    env = environment(hub.environment(folder / f"home-of-{name}"), **variables)
    run_python("-c", script, json.dumps(CLASSES), json.dumps(TASKS), folder, env=env, cwd=folder)
    return torch.load(folder / f"{name}.pt", weights_only=False)


@pytest.fixture(scope="module")
def source(hub, folder):
    return run(hub, folder, "source", OBSERVE + PUSH)


@pytest.fixture(scope="module")
def stranger(hub, folder, source):
    return run(hub, folder, "stranger", OPEN_WITHOUT_THE_PACKAGE)


def assert_same_weights(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(actual[name], weight), name


def assert_same(actual: dict, expected: dict) -> None:
    assert (actual["class"], actual["generates"]) == (expected["class"], expected["generates"])
    assert_same_weights(actual["weights"], expected["weights"])
    assert expected["outputs"]
    torch.testing.assert_close(actual["outputs"], expected["outputs"])


def pushed_config(hub: Hub, name: str) -> dict:
    return json.loads(hub.repos[f"tester/{name}"]["config.json"])


@pytest.mark.parametrize("name", CLASSES)
def test_a_push_carries_the_code_and_names_every_class(hub, source, name):
    files = hub.repos[f"tester/{name}"]
    assert set(remote_files()) <= files.keys()
    assert pushed_config(hub, name)["auto_map"] == AUTO_MAP
    assert not [path for path in files if path.endswith((".bin", ".pt", ".pth")) and path != "training_args.bin"]


def test_a_push_holds_nothing_but_the_checkpoint(hub, source):
    assert hub.repos["tester/encoder"].keys() == {*SAVED, "README.md"}
    shards = [path for path in hub.repos["tester/classifier"] if path.endswith(".safetensors")]
    assert len(shards) > 1


@pytest.mark.parametrize("name", CLASSES)
def test_the_package_opens_what_was_pushed(source, name):
    assert_same(source[name][CLASSES[name][0]], source["live"][name])


@pytest.mark.parametrize("place", ["hub", "folder"])
@pytest.mark.parametrize(("name", "auto_class"), OPENED)
def test_a_checkpoint_opens_without_the_package(source, stranger, place, name, auto_class):
    opened = stranger[place][name][auto_class]
    assert opened["module"].startswith("transformers_modules.")
    assert opened["class"] == AUTO_MAP[auto_class].split(".")[1]
    assert_same(opened, source[name][auto_class])


def test_a_pretrained_checkpoint_opens_in_every_class(stranger):
    expected = {name: reference.split(".")[1] for name, reference in AUTO_MAP.items() if name != "AutoConfig"}
    assert stranger["every class"] == expected


@pytest.mark.parametrize("place", ["hub", "folder"])
def test_a_configuration_and_a_tokenizer_open_without_the_package(source, stranger, place):
    assert [stranger[place][name]["AutoConfig"] for name in CLASSES] == [source[n]["AutoConfig"] for n in CLASSES]
    assert stranger[place]["tokenizer"] == source["tokenizer"]


@pytest.mark.parametrize("place", ["hub", "folder"])
@pytest.mark.parametrize("library", ["AutoModel", "SentenceTransformer"])
def test_vectors_are_the_same_without_the_package(source, stranger, place, library):
    """Those of the configured pooling, here `cls`, and of unit length."""
    expected = source["vectors"]["AutoModel"]
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(source["vectors"][library], expected, atol=1e-6)
    np.testing.assert_allclose(stranger[place]["vectors"][library], expected, atol=1e-6)


@pytest.mark.parametrize("place", ["hub", "folder"])
@pytest.mark.parametrize("task", TASKS)
def test_a_pipeline_runs_without_the_package(source, stranger, place, task):
    actual, expected = stranger[place][task], source[task]
    assert actual["class"] == expected["class"]
    assert len(json.dumps(expected["answer"])) > 20
    assert rounded(actual["answer"]) == rounded(expected["answer"])


def rounded(answer):
    return json.loads(json.dumps(answer), parse_float=lambda number: f"{float(number):.5f}")


@pytest.mark.parametrize("saved", ["pretraining", "encoder", "classifier"])
def test_a_checkpoint_saved_without_the_package_is_whole(folder, source, stranger, saved):
    place = folder / "again" / saved
    assert set(remote_files()) <= set(os.listdir(place))
    for file in remote_files():
        assert (place / file).read_bytes() == (folder / "local/pretraining" / file).read_bytes()
    config = json.loads((place / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    original, auto_class, model_class = {
        "pretraining": ("pretraining", "AutoModelForPreTraining", SimMIMForPreTraining),
        "encoder": ("pretraining", "AutoModel", SimMIMModel),
        "classifier": ("classifier", "AutoModelForSequenceClassification", SimMIMForSequenceClassification),
    }[saved]
    assert config["architectures"] == [model_class.__name__]
    assert_same_weights(model_class.from_pretrained(place).state_dict(), source[original][auto_class]["weights"])


@pytest.mark.parametrize("name", ["pushed-again", "pushed-by-a-stranger"])
def test_a_checkpoint_from_the_hub_is_pushed_again_whole(hub, source, stranger, name):
    files, first = hub.repos[f"tester/{name}"], hub.repos["tester/pretraining"]
    assert pushed_config(hub, name)["auto_map"] == AUTO_MAP
    assert {path: files[path] for path in (*remote_files(), "model.safetensors")} == {
        path: first[path] for path in (*remote_files(), "model.safetensors")
    }


def test_no_remote_code_runs_where_the_package_is_imported(folder, source):
    # The process of `source` opened `traced` with trust_remote_code=True, and checked that each class is ours.
    assert not (folder / "trace-of-source").exists()
    assert not list((folder / "home-of-source").glob("modules/**/*simmim*"))


def test_no_remote_code_runs_without_trust(folder, stranger):
    assert len(stranger["refused"]) == 8
    for attempt, reason in stranger["refused"].items():
        assert reason is not None, f"{attempt} was not refused"
        assert "trust_remote_code=True" in reason, attempt
    assert stranger["trace without trust"] is False
    # The same code does run with trust: the trace works.
    assert "modeling_simmim ran" in stranger["trace with trust"]


def test_what_the_hub_does_not_take_is_saved(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(corpus_lines(60)))
    given = ["--train_file", "text.txt", "--output_dir", "run", "--text_config", json.dumps(TINY), "--max_steps", "2"]
    given += ["--vocab_size", "300", "--use_cpu", "--report_to", "none"]
    given += ["--push_to_hub", "--hub_model_id", "tester/run"]
    with Hub() as hub:
        hub.is_full = True
        env = environment(hub.environment(tmp_path / "home"))
        ended = run_python("-m", "simmim_hf.cli", "pretrain", *given, env=env, cwd=tmp_path, check=False)
    last = ended.stderr.splitlines()[-1]
    assert ended.returncode == 1 and "507" in last and "Traceback" not in ended.stderr
    assert last.endswith('hf upload tester/run run --exclude "checkpoint-*/*"')
    assert {"model.safetensors", "README.md"} <= {path.name for path in (tmp_path / "run").iterdir()}
