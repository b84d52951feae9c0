"""Exports to ONNX, and the example that shows all routes."""

import os
import re
import runpy
import sys

import numpy as np
import pytest
import torch
from exports import TEXTS, pooled, to, tokenizer_for
from helpers import CAUSAL, EXAMPLES, tiny_model
from scipy.stats import spearmanr
from torch.nn.functional import normalize
from transformers import AutoTokenizer

from simmim_hf import export
from simmim_hf.cli import main
from simmim_hf.evaluation.run_task import similarity_spearman
from simmim_hf.evaluation.tasks import load_scored_pairs

pytestmark = pytest.mark.slow  # it exports to ONNX


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {"pooling": "cls"}),
        *(
            ("modernbert", {"pooling": "attention", "pooled_layers": layers})
            for layers in ("first_last", "table_and_last")
        ),
        ("roberta", {"pooling": "max", **CAUSAL}),
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


def test_onnx_keeps_weights_beside_a_graph_that_is_too_large(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    monkeypatch.setattr(export, "PROTOBUF_LIMIT", 0)
    model = tiny_model("distilbert")
    export.export_onnx(model, tokenizer_for(model), tmp_path)
    assert (tmp_path / "model.onnx.data").stat().st_size > (tmp_path / "model.onnx").stat().st_size / 2
    assert export.quantize_onnx(model, tokenizer_for(model), tmp_path) > 0.95


def test_int8_reads_attention_pooling(tmp_path):
    """The product with its one query has no form in int8."""
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    model = tiny_model("modernbert", pooling="attention", pooled_layers="first_last")
    export.export_onnx(model, tokenizer_for(model), tmp_path)
    assert export.quantize_onnx(model, tokenizer_for(model), tmp_path) > 0.95


def test_int8_keeps_the_similarity_of_a_real_model(minilm, shared_data, tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    model, tokenizer, _ = minilm
    pairs = load_scored_pairs(str(shared_data("stsb_en/dev.jsonl.gz"))).select(range(0, 1500, 10))
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
        for some in np.array_split(order, 10):
            batch = tokenizer([texts[i] for i in some], padding=True, truncation=True, return_tensors="np")
            rows[some] = session.run(["pooler_output"], dict(batch))[0]
        return normalize(torch.tensor(rows), dim=-1)

    cosines = (encode(list(pairs["sentence1"])) * encode(list(pairs["sentence2"]))).sum(1)
    exact = similarity_spearman(model, tokenizer, pairs, 128)
    assert exact > 80
    assert abs(100 * spearmanr(cosines, pairs["score"]).statistic - exact) < 1.5


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
