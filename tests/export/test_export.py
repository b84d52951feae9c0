"""A checkpoint opens everywhere: every export equals its source, and opens without this package."""

import json
import os

import numpy as np
import pytest
import torch
from datasets import Dataset
from exports import CLOSE, TEXTS, pooled, to, tokenizer_for
from helpers import (
    CAUSAL,
    DECODERS,
    FAMILIES,
    SAVED,
    VOCAB,
    WITHOUT_THE_PACKAGE,
    environment,
    files_in,
    ragged_batch,
    randomize,
    refused,
    run_python,
    text_config,
    tiny_model,
)
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, BertModel

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
from simmim_hf.model.unpadding import ATTENTION

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
    batch = ragged_batch([9, 3, 6], pad=model.config.pad_token_id)
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool()
    native = export.native_model(model)
    assert type(native).__name__ == NATIVE[family] and native.config._attn_implementation != ATTENTION
    with torch.no_grad():
        torch.testing.assert_close(native(**batch).logits[real], model(**batch).logits[real], **CLOSE)


@pytest.mark.parametrize(("family", "prefix"), [("bert", "cls.predictions"), ("roberta", "lm_head")])
def test_both_names_of_the_bias_of_an_untied_head_hold_it(family, prefix):
    model = tiny_model(family, tie_word_embeddings=False)
    state = export.native_model(model).state_dict()
    for name in (f"{prefix}.bias", f"{prefix}.decoder.bias"):
        assert torch.equal(state[name], model.lm_head.decoder.bias), name


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


@pytest.mark.parametrize(
    ("family", "model_class"),
    [*((family, SimMIMForPreTraining) for family in ("bert", *DECODERS)), ("bert", SimMIMForCausalLM)],
)
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
def test_a_pooling_of_our_own_opens_with_the_code_of_the_checkpoint(tmp_path):
    expected = {}
    for similarity, options in {"cosine": {"pooling": "attention"}, "dot": {"pooled_layers": "first_last"}}.items():
        model = tiny_model(**options, similarity=similarity)
        tokenizer = tokenizer_for(model)
        assert export.export_sentence_transformers(model, tokenizer, tmp_path / similarity) < 1e-5
        expected[similarity] = pooled(model, tokenizer)
    expected["cosine"] = normalize(expected["cosine"], dim=-1)
    script = f"""
{WITHOUT_THE_PACKAGE}
import torch
torch.set_num_threads(1)
from sentence_transformers import SentenceTransformer
folder, seen = {str(tmp_path)!r}, {{}}
for name in ("cosine", "dot"):
    model = SentenceTransformer(f"{{folder}}/{{name}}", device="cpu", trust_remote_code=True)
    seen[name] = model.encode({TEXTS!r}, convert_to_tensor=True)
torch.save(seen, folder + "/seen.pt")
"""
    run_python("-c", script, env=environment(HF_HOME=str(tmp_path / "cache")))
    torch.testing.assert_close(torch.load(tmp_path / "seen.pt"), expected, **CLOSE)


@pytest.mark.parametrize("options", [{"pooling": "attention"}, {"pooled_layers": "first_last"}])
def test_a_backbone_leaves_a_pooling_of_our_own_behind_and_says_so(options, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(export.logger, "warning", said.append)
    model = tiny_model(**options)
    assert export.export_backbone(model, tokenizer_for(model), tmp_path) < 1e-5
    assert any("pooling stays behind" in line for line in said)


@pytest.mark.slow
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


def test_a_warm_start_keeps_the_vectors_of_a_sentence_transformer(minilm):
    from sentence_transformers import SentenceTransformer

    model, tokenizer, path = minilm
    theirs = SentenceTransformer(path, device="cpu").encode(export.SENTENCES, convert_to_tensor=True)
    ours = normalize(pooled(model, tokenizer, export.SENTENCES), dim=-1)
    torch.testing.assert_close(ours, theirs, **CLOSE)


# --------------------------------------------------------------------------------------------------- the command


def test_safetensors_only_is_what_one_shares(checkpoint, tmp_path, capsys):
    assert main(to("safetensors-only", checkpoint, tmp_path / "out")) == 0
    assert "largest difference" in capsys.readouterr().out
    assert files_in(tmp_path / "out") == {*SAVED, "tokenizer.json", "tokenizer_config.json", "README.md"}
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


# ------------------------------------------------------------------------------------------- what is copied, and how


@pytest.mark.slow
@pytest.mark.parametrize("form", ["backbone", "sentence-transformers", "safetensors-only"])
def test_an_export_has_the_modes_that_the_umask_leaves(checkpoint, tmp_path, form):
    umask = os.umask(0o027)
    try:
        assert main(to(form, checkpoint, tmp_path / "out")) == 0
    finally:
        os.umask(umask)
    paths = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} <= {0o640, 0o644}  # those of the source
    assert (tmp_path / "out/model.safetensors").stat().st_mode & 0o777 == 0o640
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o750}


@pytest.fixture
def exported(checkpoint, tmp_path):
    """A checkpoint, its tokenizer, and a sentence-transformers model of it."""
    model, tokenizer = export.load_checkpoint(str(checkpoint)), export.load_tokenizer(str(checkpoint))
    export.export_sentence_transformers(model, tokenizer, tmp_path / "source")
    return model, tokenizer, tmp_path / "source"


def as_links(folder, blobs):
    """Makes each file a link to its content, as in the Hub's cache."""
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        file.rename(blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))


@pytest.mark.slow
def test_a_snapshot_of_the_hub_is_copied_and_a_link_to_elsewhere_is_not(exported, tmp_path):
    model, tokenizer, source = exported
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    snapshot.parent.mkdir(parents=True)
    source.rename(snapshot)
    as_links(snapshot, tmp_path / "models--a--b/blobs")
    export.export_sentence_transformers(model, tokenizer, tmp_path / "out", snapshot)
    assert files_in(tmp_path / "out") == files_in(snapshot)
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    (tmp_path / "private").write_text("secret")
    (snapshot / "vocab.txt").symlink_to(tmp_path / "private")
    with pytest.raises(ValueError, match=r"vocab\.txt` is a link to what is outside of"):
        export.export_sentence_transformers(model, tokenizer, tmp_path / "other", snapshot)
    assert not any("secret" in path.read_text(errors="replace") for path in (tmp_path / "other").rglob("*.txt"))


def test_the_card_of_an_export_is_no_link_to_elsewhere(checkpoint, tmp_path, capsys):
    (tmp_path / "private").write_text("secret")
    (checkpoint / "README.md").unlink()
    (checkpoint / "README.md").symlink_to(tmp_path / "private")
    said = refused(capsys, *to("safetensors-only", checkpoint, tmp_path / "out"))
    assert "README.md` is a link to what is outside of" in said and not (tmp_path / "out").exists()
