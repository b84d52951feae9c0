"""The command `simmim adapt`: a model of any kind in, a model of the same kind out, and what it refuses."""

import json
import logging
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers import FAMILIES, randomize, refused, text_config, tiny_tokenizer
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    BertTokenizer,
    TrainerCallback,
)

from simmim_hf import SimMIMForPreTraining, encode
from simmim_hf.cli import main
from simmim_hf.data.tokenization import load_tokenizer
from simmim_hf.options import build
from simmim_hf.pretraining.adapt import ADAPTATION, Adaptation
from simmim_hf.pretraining.pretrain import Pretraining
from simmim_hf.training import card
from simmim_hf.training.checkpoints import checkpoints_in

pytestmark = pytest.mark.slow  # it trains

TEXTS = ["w1 w2 w3", "w9", "w4 w5 w6 w7 w8 w9 w1 w2"]
PROMPTS = {"query": "w7 : ", "document": ""}


def words(count: int) -> list[str]:
    """Documents of words that the tokenizer has."""
    return [" ".join(f"w{(i * j) % 59}" for j in range(1, 16 + i % 9)) for i in range(1, count + 1)]


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """They take longer than all else here."""
    monkeypatch.setattr(card, "plot_training", lambda *_: None)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A folder as a reader may have it."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "notes.md").write_text("\n\n".join(words(60)))
    (folder / "more.md").write_text("\n\n".join(words(100)[60:]))
    return folder


def plain_encoder(folder: Path, family: str = "bert", **options) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**FAMILIES.get(family, FAMILIES["bert"]), **options})
    randomize(AutoModel.from_config(config)).save_pretrained(folder)
    vocab = tiny_tokenizer().get_vocab()
    vocab["[PAD]"], vocab["[UNK]"] = (0, 1) if config.pad_token_id == 0 else (1, 0)  # MPNet's
    BertTokenizer(vocab=vocab).save_pretrained(folder)
    return folder


def sentence_transformer(folder: Path, pooling="mean", more=(), **options) -> Path:
    plain = plain_encoder(folder / "plain")
    modules = [Transformer(str(plain), processor_kwargs={"model_max_length": 33}), Pooling(32, pooling), *more]
    SentenceTransformer(modules=modules, device="cpu", **options).save_pretrained(str(folder / "source"))
    return folder / "source"


def adapt(source: Path, text: Path, output: Path, *more: str) -> list[str]:
    small = ["--per_device_train_batch_size", "8", "--max_steps", "4", "--use_cpu", "--report_to", "none"]
    small += ["--max_seq_length", "16", "--logging_steps", "1", "--head_warmup", "0.5", "--disable_tqdm", "true"]
    given = ["--model_name_or_path", str(source), "--train_file", str(text), "--output_dir", str(output)]
    return ["adapt", *given, *small, *more]


@pytest.mark.parametrize(("pooling", "more", "similarity"), [("cls", [Normalize()], "cosine"), ("mean", [], "dot")])
def test_a_sentence_transformer_stays_what_it_is(
    text, tmp_path, capsys, caplog, monkeypatch, pooling, more, similarity
):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # into caplog
    options = {"prompts": PROMPTS, "default_prompt_name": "query", "similarity_fn_name": similarity}
    source = sentence_transformer(tmp_path, pooling, more, truncate_dim=20, **options)
    assert main(adapt(source, text, tmp_path / "out")) == 0
    before, after = (SentenceTransformer(str(folder), device="cpu") for folder in (source, tmp_path / "out"))
    assert [type(module) for module in after] == [type(module) for module in before]
    assert after[1].pooling_mode == pooling and after.max_seq_length == 33 and after.truncate_dim == 20
    assert after.prompts == PROMPTS and after.default_prompt_name == "query"
    assert after.similarity_fn_name == similarity
    assert (after.encode(TEXTS) != before.encode(TEXTS)).any(), "it has learned something"
    for file in (path for path in source.rglob("*") if path.is_file() and path.name != "README.md"):
        same = file.read_bytes() == (tmp_path / "out" / file.relative_to(source)).read_bytes()
        assert same or file.name in ("model.safetensors", "config.json"), file

    run = AutoModelForPreTraining.from_pretrained(tmp_path / "out/simmim")
    assert run.config.pooling == pooling and run.config.mlm_weight == 0.1 and run.config.contrastive_weight == 1
    ours = encode(run, TEXTS, load_tokenizer(str(source)), 33, normalize=False)
    torch.testing.assert_close(
        torch.nn.functional.normalize(after.encode(TEXTS, prompt="", convert_to_tensor=True), dim=-1),
        torch.nn.functional.normalize(torch.from_numpy(ours)[:, :20], dim=-1),
        rtol=0,
        atol=1e-5,
    )
    said, results = capsys.readouterr().out, json.loads((tmp_path / "out/simmim/results.json").read_text())
    assert "retrieval MRR@10" in said and "the second half of a text by its first among" in said
    assert results["differences"]["retrieval_mrr@10"].keys() == {"value", "low", "high"}
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.library_name == "sentence-transformers" and "| retrieval MRR@10 |" in card.text
    assert "corrupted" not in caplog.text and "LOAD REPORT" not in caplog.text, "its head is missing, and no fault"


def test_a_short_text_is_read_until_it_has_given_enough_steps(text, tmp_path):
    source = plain_encoder(tmp_path / "source")

    def epochs(**more) -> float:
        options = {"model_name_or_path": str(source), "train_file": str(text), "output_dir": str(tmp_path / "out")}
        run = Adaptation(*build(ADAPTATION, {**options, "use_cpu": True, "max_seq_length": 16, **more}))
        assert run.trainer.args.num_train_epochs == run.args.num_train_epochs
        return run.args.num_train_epochs

    assert epochs(per_device_train_batch_size=8) == 4  # 95 documents make 12 steps
    assert epochs(per_device_train_batch_size=2) == 1  # 48 steps
    assert epochs(num_train_epochs=0.5) == 0.5


def test_the_python_of_the_page_runs_on_what_came_out(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(adapt(sentence_transformer(tmp_path), text, "adapted", "--objective", "simcse")) == 0
    page, names = (Path(__file__).parents[2] / "docs/adapt.md").read_text(encoding="utf-8"), {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/adapt.md", "exec"), names)
    assert names["scores"].shape == (1, 2) and (tmp_path / "tuned/modules.json").is_file()


@pytest.mark.parametrize("family", ["modernbert", "deberta-v2", "albert", "mpnet"])
def test_families_that_others_leave_out(text, tmp_path, family):
    source = plain_encoder(tmp_path / "plain", family)
    assert main(adapt(source, text, tmp_path / "out", "--pooling", "cls")) == 0
    adapted = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert adapted[1].pooling_mode == "cls" and adapted[0].auto_model.config.model_type == family
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == family


def test_an_encoder_keeps_its_own_head(text, tmp_path, caplog):
    torch.manual_seed(0)
    randomize(AutoModelForMaskedLM.from_config(text_config())).save_pretrained(tmp_path / "plain")
    tiny_tokenizer().save_pretrained(tmp_path / "plain")
    assert main(adapt(tmp_path / "plain", text, tmp_path / "out", "--objective", "mlm")) == 0
    assert "head" not in caplog.text
    adapted = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert adapted[1].pooling_mode == "mean" and adapted.max_seq_length == 16
    config = AutoModelForPreTraining.from_pretrained(tmp_path / "out/simmim").config
    assert config.mlm_weight == 1 and config.contrastive_weight == 0


class Killer(TrainerCallback):
    """Sends a run a signal in its second step."""

    def __init__(self, signals):
        self.signals = signals

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.signals.received = signal.SIGTERM


def test_a_new_head_learns_before_the_encoder_does(text, tmp_path, monkeypatch, caplog, capsys):
    """And a signal, in whichever part it comes, changes nothing of what a run comes to in the end."""
    source = sentence_transformer(tmp_path)
    warm_up, train, states = Adaptation._warm_up_head, Pretraining.train, []

    def noting_train(run):
        states.append({name: tensor.clone() for name, tensor in run.model.state_dict().items()})
        return train(run)

    def killed_train(run):
        run.trainer.add_callback(Killer(run.signals))
        return train(run)

    def killed_warm_up(run, share):
        run.signals.received = signal.SIGTERM
        warm_up(run, share)

    monkeypatch.setattr(Pretraining, "train", noting_train)
    assert main(adapt(source, text, tmp_path / "whole")) == 0
    assert "has no masked-LM head. A new one is trained with the encoder frozen for 50%" in caplog.text
    start = SimMIMForPreTraining.from_backbone(str(source)).state_dict()
    changed = {name for name, tensor in states[0].items() if not torch.equal(tensor, start[name])}
    assert {"lm_head.dense.weight", "lm_head.decoder.bias"} <= changed
    assert all(name.startswith("lm_head.") for name in changed)

    broken = adapt(source, text, tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr(Adaptation, "_warm_up_head", killed_warm_up)
        assert "before the first step. Give the same command again" in refused(capsys, *broken, code=75)
        assert not checkpoints_in(tmp_path / "broken/simmim")
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "train", killed_train)
        assert "ended with a checkpoint of step 2" in refused(capsys, *broken, code=75)
    assert main([*broken, "--resume_from_checkpoint", "last"]) == 0
    whole, resumed = (tmp_path / name / "model.safetensors" for name in ("whole", "broken"))
    assert whole.read_bytes() == resumed.read_bytes()


def test_what_cannot_be_kept_is_refused(text, tmp_path, capsys):
    source = sentence_transformer(tmp_path)
    out = tmp_path / "out"

    def said(source, *more):
        message = refused(capsys, *adapt(source, text, out), *more)
        assert not out.exists()
        return message

    assert "`simmim adapt` keeps what" in said(source, "--num_hidden_layers", "1")
    assert "has the pooling mean, which is kept" in said(source, "--pooling", "cls")
    assert "hf upload" in said(source, "--push_to_hub")
    assert "--head_warmup is 2.0" in said(source, "--head_warmup", "2")
    assert "--model_name_or_path" in refused(capsys, "adapt", "--train_file", text)
    out.mkdir()
    (out / "precious.txt").write_text("keep")
    assert "is not empty" in refused(capsys, *adapt(source, text, out))
    shutil.rmtree(out)
    pooling = source / "1_Pooling/config.json"
    pooling.write_text(pooling.read_text().replace("mean", "lasttoken"))
    assert "has the pooling lasttoken, which is unknown here" in said(source)
    dense = sentence_transformer(tmp_path / "dense", more=[Dense(32, 8)])
    assert "by a module `Dense`, which is unknown here" in said(dense)


def test_vectors_that_cannot_be_made_here_are_refused_before_training(text, tmp_path, capsys):
    """Here of an MPNet that takes a token of its text for padding, which moves its positions."""
    source = plain_encoder(tmp_path / "plain", "mpnet", pad_token_id=0)
    message = refused(capsys, *adapt(source, text, tmp_path / "out"))
    assert "cannot be adapted, for its vectors are not those that are made of it here" in message
    assert not checkpoints_in(tmp_path / "out/simmim")
