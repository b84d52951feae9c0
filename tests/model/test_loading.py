"""Loading is safe, and says what is wrong: no pickle, no code without trust, damaged and missing files, a deaf Hub."""

import io
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from helpers import FAMILIES, environment, files_in, run_python, text_config, tiny_model, tiny_tokenizer
from hub_server import Hub
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoTokenizer, BertForMaskedLM, pipeline

from simmim_hf import SimMIMForPreTraining, SimMIMModel
from simmim_hf.cli import main
from simmim_hf.model import modeling_simmim
from simmim_hf.model.configuration_simmim import AUTO_MAP, remote_files

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What is said of weights that are not in safetensors, and must not be said of anything else.
ABOUT_PICKLES = "pickle"

# The ways into a checkpoint, for all classes share one: from a SimMIM folder, and from that of a BERT.
OPENERS = {
    "AutoModel": AutoModel.from_pretrained,
    "SimMIMForPreTraining": SimMIMForPreTraining.from_pretrained,
    "from_backbone": SimMIMForPreTraining.from_backbone,
    "from_backbone of a BERT": SimMIMForPreTraining.from_backbone,
}


class Trap:
    """Makes the file `trace` when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def trap_code(trace: Path) -> str:
    return f"open({str(trace)!r}, 'w').close()\n"


@pytest.fixture
def trace(tmp_path) -> Path:
    return tmp_path / "trace"


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch):
    """transformers asks on the terminal whether it may run code."""
    monkeypatch.setattr("sys.stdin", io.StringIO())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A SimMIM and a BERT, each with a tokenizer, in one file and in shards."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    models = {"simmim": tiny_model("bert"), "bert": BertForMaskedLM(text_config("bert"))}
    for name, model in models.items():
        for suffix, size in {"": "1GB", "-sharded": "20KB"}.items():
            model.save_pretrained(root / (name + suffix), max_shard_size=size)
            tiny_tokenizer().save_pretrained(root / (name + suffix))
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def copy_for(checkpoints, tmp_path):
    """A function that copies the checkpoint which an opener reads, to be damaged."""

    def copy(opener: str, suffix: str = "", name: str = "checkpoint") -> Path:
        family = "bert" if opener.endswith("BERT") else "simmim"
        return Path(shutil.copytree(checkpoints[family + suffix], tmp_path / name))

    return copy


def edit(path: Path, **changes) -> None:
    """Changes options of a JSON file."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def assert_same_weights(actual: torch.nn.Module, expected: torch.nn.Module) -> None:
    actual, expected = actual.state_dict(), expected.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


# Pickles


def replace_by_pickle(folder: Path, trace: Path, sharded: bool) -> None:
    (folder / WEIGHTS).unlink()
    if not sharded:
        torch.save({"weight": Trap(trace)}, folder / "pytorch_model.bin")
        return
    torch.save({"weight": Trap(trace)}, folder / "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": {"weight": "pytorch_model-00001-of-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_the_pickle_is_a_trap(checkpoints, copy_for, trace):
    folder = copy_for("AutoModel")
    replace_by_pickle(folder, trace, sharded=False)
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize(
    ("opener", "sharded"),
    [*((opener, False) for opener in OPENERS), ("AutoModel", True), ("from_backbone of a BERT", True)],
)
def test_pickled_weights_are_refused_with_a_reason(copy_for, trace, opener, sharded):
    folder = copy_for(opener)
    replace_by_pickle(folder, trace, sharded)
    with pytest.raises(OSError, match="pickles, which can execute code") as refusal:
        OPENERS[opener](folder)
    assert str(folder) in str(refusal.value)
    assert "convert them to safetensors" in str(refusal.value)
    assert not trace.exists()


def test_pickled_weights_are_refused_even_when_asked_for(copy_for, trace):
    folder = copy_for("AutoModel")
    replace_by_pickle(folder, trace, sharded=False)
    with pytest.raises(OSError, match="pickles"):
        SimMIMModel.from_pretrained(folder, use_safetensors=False, weights_only=False)
    assert not trace.exists()


def test_a_pickle_that_is_named_itself_executes_nothing(copy_for, trace):
    folder = copy_for("AutoModel")
    replace_by_pickle(folder, trace, sharded=False)
    config = AutoConfig.from_pretrained(folder)
    with pytest.raises((OSError, pickle.UnpicklingError)):
        SimMIMModel.from_pretrained(str(folder / "pytorch_model.bin"), config=config, weights_only=False)
    assert not trace.exists()


@pytest.mark.parametrize("opener", OPENERS)
def test_a_pickle_beside_safetensors_is_not_opened(checkpoints, copy_for, trace, opener):
    folder = copy_for(opener)
    torch.save({"weight": Trap(trace)}, folder / "pytorch_model.bin")
    original = checkpoints["bert" if opener.endswith("BERT") else "simmim"]
    assert_same_weights(OPENERS[opener](folder), OPENERS[opener](original))
    assert not trace.exists()


# Code


def booby_trap(folder: Path, trace: Path) -> None:
    """Code in every file and for every class that a checkpoint can name."""
    for file in (*remote_files(), "trap.py"):
        (folder / file).write_text(trap_code(trace))
    config = json.loads((folder / "config.json").read_text())
    trapped = {name: "trap.Trap" for name in (*AUTO_MAP, "AutoModelForMaskedLM")}
    config["auto_map"] = config.get("auto_map", trapped)
    if "text_config" in config:
        config["text_config"]["auto_map"] = trapped
    (folder / "config.json").write_text(json.dumps(config))
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["trap.Trap", "trap.Trap"]})


def test_the_code_is_a_trap(copy_for, trace):
    folder = copy_for("AutoModel")
    booby_trap(folder, trace)
    for file in (*remote_files(), "trap.py"):
        exec((folder / file).read_text())
        assert trace.exists()
        trace.unlink()


@pytest.mark.parametrize(
    ("auto_class", "trust"), [*((name, True) for name in AUTO_MAP), ("AutoConfig", None), ("AutoModel", False)]
)
def test_no_code_of_a_folder_runs_where_the_package_is_imported(copy_for, trace, auto_class, trust):
    folder = copy_for("AutoModel")
    booby_trap(folder, trace)
    opened = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=trust)
    assert type(opened).__name__ == AUTO_MAP[auto_class].split(".")[1]
    assert type(opened).__module__.startswith("simmim_hf.")
    assert not trace.exists()


def test_no_code_of_a_folder_runs_in_a_pipeline(copy_for, trace):
    folder = copy_for("AutoModel")
    booby_trap(folder, trace)
    assert pipeline("fill-mask", model=str(folder))("w3 [MASK] w5")
    assert not trace.exists()


@pytest.mark.parametrize("opener", ["from_backbone", "from_backbone of a BERT"])
def test_no_code_of_a_folder_runs_in_from_backbone(checkpoints, copy_for, trace, opener):
    folder = copy_for(opener)
    booby_trap(folder, trace)
    AutoTokenizer.from_pretrained(folder)
    original = checkpoints["bert" if opener.endswith("BERT") else "simmim"]
    assert_same_weights(SimMIMForPreTraining.from_backbone(folder), SimMIMForPreTraining.from_backbone(original))
    assert not trace.exists()


def test_a_backbone_that_needs_code_is_refused_without_trust(copy_for, trace):
    folder = copy_for("from_backbone of a BERT")
    booby_trap(folder, trace)
    edit(folder / "config.json", model_type="bert-of-somebody")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SimMIMForPreTraining.from_backbone(folder)
    assert not trace.exists()


def pretrain(folder: Path, tmp_path: Path) -> Path:
    corpus, output = tmp_path / "corpus.txt", tmp_path / "run"
    corpus.write_text("\n".join(f"w{i} w{i + 1} w{i + 2} w{i + 3}" for i in range(50)))
    options = ["--train_file", str(corpus), "--output_dir", str(output), "--model_name_or_path", str(folder)]
    small = ["--max_steps", "1", "--per_device_train_batch_size", "8", "--use_cpu", "--report_to", "none"]
    main(["pretrain", *options, *small])
    return output


@pytest.mark.slow
@pytest.mark.parametrize("opener", ["from_backbone", "from_backbone of a BERT"])
def test_no_code_of_a_folder_runs_in_pretraining(copy_for, trace, tmp_path, opener):
    folder = copy_for(opener)
    booby_trap(folder, trace)
    output = pretrain(folder, tmp_path)
    assert not trace.exists()
    # What the run saves is the code of this package, not that of the folder.
    for file in remote_files():
        assert (output / file).read_bytes() == Path(modeling_simmim.__file__).with_name(file).read_bytes()
    assert json.loads((output / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_pretraining_refuses_a_backbone_that_needs_code(copy_for, trace, tmp_path, capsys):
    folder = copy_for("from_backbone of a BERT")
    booby_trap(folder, trace)
    edit(folder / "config.json", model_type="bert-of-somebody")
    with pytest.raises(SystemExit) as refusal:
        pretrain(folder, tmp_path)
    assert refusal.value.code == 2
    message = capsys.readouterr().err
    assert "simmim pretrain: error:" in message and "contains custom code" in message
    assert not trace.exists()


def test_pretraining_refuses_pickled_weights(copy_for, trace, tmp_path, capsys):
    folder = copy_for("from_backbone of a BERT")
    replace_by_pickle(folder, trace, sharded=False)
    with pytest.raises(SystemExit) as refusal:
        pretrain(folder, tmp_path)
    assert refusal.value.code == 2
    message = capsys.readouterr().err
    assert "simmim pretrain: error:" in message and ABOUT_PICKLES in message and str(folder) in message
    assert not trace.exists()


# A newer version


def test_a_checkpoint_of_a_newer_version_loads_with_a_warning(checkpoints, copy_for, caplog):
    folder = copy_for("AutoModel")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["option_of_a_newer_backbone"] = 1
    config["auto_map"]["AutoModelOfTheFuture"] = "modeling_simmim.SimMIMOfTheFuture"
    (folder / "config.json").write_text(json.dumps(config | {"option_of_the_future_in_loading": {"a": 1}}))
    model = AutoModelForPreTraining.from_pretrained(folder)
    assert_same_weights(model, AutoModelForPreTraining.from_pretrained(checkpoints["simmim"]))
    assert "option_of_the_future_in_loading" in caplog.text
    assert "upgrade" in caplog.text


# Shards


@pytest.mark.parametrize("opener", OPENERS)
def test_shards_make_the_same_model_as_one_file(checkpoints, opener):
    family = "bert" if opener.endswith("BERT") else "simmim"
    assert len(list(checkpoints[f"{family}-sharded"].glob("model-*.safetensors"))) > 2
    assert_same_weights(OPENERS[opener](checkpoints[f"{family}-sharded"]), OPENERS[opener](checkpoints[family]))


@pytest.mark.parametrize("opener", OPENERS)
def test_a_missing_shard_is_named(copy_for, opener):
    folder = copy_for(opener, "-sharded")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(OSError) as error:
        OPENERS[opener](folder)
    assert str(shard) in str(error.value)
    assert ABOUT_PICKLES not in str(error.value)


# Damage

DAMAGE = {
    "half": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content[:-1],
    "cut in its header": lambda content: content[:100],
    "empty": lambda content: b"",
    "garbage": lambda content: bytes(range(256)) * 20,
    "pointer of git": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


def assert_called_damaged(opener: str, folder: Path) -> None:
    with pytest.raises(OSError, match="damaged") as error:
        OPENERS[opener](folder)
    assert str(folder) in str(error.value)
    assert "again" in str(error.value)
    assert ABOUT_PICKLES not in str(error.value)


@pytest.mark.parametrize(
    ("opener", "damage"),
    [
        *(("from_backbone of a BERT", damage) for damage in DAMAGE),
        *((opener, "half") for opener in ("AutoModel", "SimMIMForPreTraining", "from_backbone")),
    ],
)
def test_damaged_weights_are_called_so(copy_for, opener, damage):
    folder = copy_for(opener)
    weights = folder / WEIGHTS
    weights.write_bytes(DAMAGE[damage](weights.read_bytes()))
    assert_called_damaged(opener, folder)


@pytest.mark.parametrize("opener", ["AutoModel", "from_backbone of a BERT"])
def test_a_damaged_shard_is_called_so(copy_for, opener):
    folder = copy_for(opener, "-sharded")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert_called_damaged(opener, folder)


@pytest.mark.parametrize("opener", ["AutoModel", "from_backbone of a BERT"])
def test_a_damaged_index_of_shards_is_called_so(copy_for, opener):
    folder = copy_for(opener, "-sharded")
    (folder / INDEX).write_text((folder / INDEX).read_text()[:100])
    assert_called_damaged(opener, folder)


# What is not there. The names have "safetensors" in them, as names of real folders do.


@pytest.mark.parametrize("opener", OPENERS)
def test_a_folder_without_weights_is_called_so(copy_for, opener):
    folder = copy_for(opener)
    (folder / WEIGHTS).unlink()
    with pytest.raises(OSError, match="no weights in safetensors") as error:
        OPENERS[opener](folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("opener", OPENERS)
def test_a_missing_folder_is_left_to_transformers(tmp_path, opener):
    with pytest.raises(OSError, match="missing-safetensors") as error:
        OPENERS[opener](str(tmp_path / "missing-safetensors"))
    assert ABOUT_PICKLES not in str(error.value)


@pytest.mark.parametrize("opener", OPENERS)
def test_a_damaged_configuration_is_left_to_transformers(copy_for, opener):
    folder = copy_for(opener, name="my-safetensors")
    (folder / "config.json").write_text("{")
    with pytest.raises(OSError, match="config.json' is not a valid JSON file") as error:
        OPENERS[opener](folder)
    assert ABOUT_PICKLES not in str(error.value)


@pytest.mark.parametrize("opener", OPENERS)
def test_an_unknown_name_without_a_network_is_left_to_transformers(monkeypatch, opener):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="couldn't connect") as error:
        OPENERS[opener]("nobody/nothing-safetensors")
    assert ABOUT_PICKLES not in str(error.value)


ASK_THE_HUB = """
import json, sys
import torch
import simmim_hf
from transformers import AutoModel
from simmim_hf import SimMIMForPreTraining, SimMIMModel

torch.set_num_threads(1)
openers = {"AutoModel": AutoModel.from_pretrained, "SimMIMModel": SimMIMModel.from_pretrained}
openers["from_backbone"] = SimMIMForPreTraining.from_backbone
said = {}
for name in sys.argv[1:]:
    for opener, open_checkpoint in openers.items():
        if opener == "from_backbone" or "-bert" not in name:
            try:
                open_checkpoint(name)
                said[f"{name} {opener}"] = None
            except Exception as error:
                said[f"{name} {opener}"] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def answers(checkpoints, tmp_path_factory) -> dict[str, dict[str, str]]:
    """What each way of opening says of checkpoints on a Hub, by the name of the checkpoint."""
    home = tmp_path_factory.mktemp("home")
    with Hub() as hub:
        for name, folder in checkpoints.items():
            files = {name: (folder / name).read_bytes() for name in files_in(folder)}
            hub.repos[f"tester/whole-{name}"] = files
            pickled = {path: content for path, content in files.items() if not path.startswith("model")}
            hub.repos[f"tester/pickled-{name}"] = pickled | {"pytorch_model.bin": b"never read"}
            hub.repos[f"tester/undelivered-{name}"] = files
            hub.broken |= {(f"tester/undelivered-{name}", path) for path in files if path.endswith(".safetensors")}
        shards = sorted(path for path in hub.repos["tester/whole-simmim-sharded"] if path.startswith("model-"))
        hub.repos["tester/short-of-a-shard"] = {**hub.repos["tester/whole-simmim-sharded"]}
        del hub.repos["tester/short-of-a-shard"][shards[1]]
        names = [*hub.repos, "tester/missing-safetensors"]
        process = run_python("-c", ASK_THE_HUB, *names, env=environment(hub.environment(home)), cwd=home)
    said = json.loads(process.stdout.splitlines()[-1])
    return {name: {key.split()[1]: said[key] for key in said if key.split()[0] == name} for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simmim", "simmim-sharded", "bert", "bert-sharded"])
def test_a_whole_checkpoint_of_the_hub_opens(answers, name):
    assert set(answers[f"tester/whole-{name}"].values()) == {None}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simmim", "bert"])
def test_pickled_weights_of_the_hub_are_refused_with_a_reason(answers, name):
    for message in answers[f"tester/pickled-{name}"].values():
        assert message.startswith("OSError: ") and "pickles, which can execute code" in message
        assert f"tester/pickled-{name}" in message


@pytest.mark.slow
@pytest.mark.parametrize("name", ["undelivered-simmim", "undelivered-simmim-sharded", "undelivered-bert"])
def test_weights_that_the_hub_does_not_deliver_are_not_called_pickles(answers, name):
    for opener, message in answers[f"tester/{name}"].items():
        assert "403" in message, opener
        assert ABOUT_PICKLES not in message, opener


@pytest.mark.slow
def test_a_shard_that_the_hub_does_not_have_is_not_called_a_pickle(answers):
    for opener, message in answers["tester/short-of-a-shard"].items():
        assert "model-00002-of-" in message, opener
        assert ABOUT_PICKLES not in message, opener


@pytest.mark.slow
def test_a_checkpoint_that_the_hub_does_not_have_is_not_called_a_pickle(answers):
    for opener, message in answers["tester/missing-safetensors"].items():
        assert "not a valid model identifier" in message, opener
        assert ABOUT_PICKLES not in message, opener


@pytest.mark.parametrize("family", ["bert", "modernbert", "simmim"])
def test_the_first_layers_of_a_backbone(family, tmp_path):
    source = tiny_model("bert" if family == "simmim" else family).eval()
    (source if family == "simmim" else source.simmim.encoder).save_pretrained(tmp_path)
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    hidden = source.simmim.encoder(**batch, output_hidden_states=True).hidden_states  # before layer 0, 1, ...
    for layers in (1,) if family == "modernbert" else (0, 1):  # its initialisation divides by the number of layers
        model = SimMIMForPreTraining.from_backbone(tmp_path, num_hidden_layers=layers).eval()
        read = model.simmim.encoder(**batch).last_hidden_state
        expected = source.simmim.encoder.final_norm(hidden[layers]) if family == "modernbert" else hidden[layers]
        torch.testing.assert_close(read, expected)
        model.save_pretrained(tmp_path / f"{layers}")
        again = SimMIMForPreTraining.from_pretrained(tmp_path / f"{layers}")
        assert_same_weights(again, model)
        unpadded = model(**{"masked_input_ids": batch["input_ids"], "labels": batch["input_ids"], **batch})
        assert torch.isfinite(unpadded.loss)
    for layers in (9, 1.5, "one"):
        with pytest.raises(ValueError, match=f"num_hidden_layers={layers!r}: give a number from 0 to 2"):
            SimMIMForPreTraining.from_backbone(tmp_path, num_hidden_layers=layers)
    if family == "modernbert":
        with pytest.raises(ValueError, match="cannot make a `modernbert` without layers.*--text_config bert"):
            SimMIMForPreTraining.from_backbone(tmp_path, num_hidden_layers=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dropout_of_any_backbone_can_be_set(tmp_path, family):
    """In training two readings then differ, and at 0 they do not."""
    tiny_model(family).save_pretrained(tmp_path)
    ids = torch.arange(4, 12)[None]
    for dropout in (0.3, 0.0):
        model = SimMIMForPreTraining.from_backbone(tmp_path, dropout=dropout).train()
        first, second = (model.simmim(ids).last_hidden_state for _ in range(2))
        assert torch.equal(first, second) == (dropout == 0)
    for dropout in (1, "a little"):
        with pytest.raises(ValueError, match=f"dropout={dropout!r}: give a number from 0 to below 1"):
            SimMIMForPreTraining.from_backbone(tmp_path, dropout=dropout)


def test_another_kind_of_checkpoint_is_not_taken_for_random_weights(tmp_path):
    BertForMaskedLM(text_config("bert")).save_pretrained(tmp_path)
    for cls in (SimMIMForPreTraining, SimMIMModel):
        with pytest.raises(ValueError, match=r"a checkpoint of `bert` .*SimMIMForPreTraining.from_backbone"):
            cls.from_pretrained(tmp_path)
