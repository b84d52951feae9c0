"""The same sentences through every route that a SimMIM checkpoint has, in one table.

    python examples/use_everywhere.py --model my-encoder
    python examples/use_everywhere.py --model sentence-transformers/all-MiniLM-L6-v2   # a plain encoder is converted

Needs: pip install sentence-transformers onnx onnxscript onnxruntime
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer

from simmim_hf import SimMIMForPreTraining
from simmim_hf.cli import main as simmim
from simmim_hf.export import SENTENCES
from simmim_hf.model.st_format import is_plain

BATCH = 32
# What a user without simmim_hf writes. `None` in `sys.modules` hides the package.
REMOTE = """
import json, sys, time, torch
sys.modules["simmim_hf"] = None
from transformers import AutoModel, AutoTokenizer

folder, batch_size, threads, *sentences = sys.argv[1:]
torch.set_num_threads(int(threads))
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

@torch.no_grad()
def encode(texts):
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return torch.nn.functional.normalize(model(**batch).pooler_output, dim=-1).tolist()

vectors = encode(sentences)
texts = (sentences * int(batch_size))[: int(batch_size)]
start = time.perf_counter(); encode(texts)
print(json.dumps({"vectors": vectors, "milliseconds": 1000 * (time.perf_counter() - start) / len(texts)}))
"""


def normalised(vectors) -> np.ndarray:
    """(texts, dim), each of length 1."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def timed(route: Callable[[list[str]], np.ndarray], sentences: list[str]) -> tuple[np.ndarray, float]:
    """The vectors of the sentences, and the milliseconds a sentence takes in a batch."""
    vectors = route(sentences)  # the first call also pays for what is set up only once
    texts = (sentences * BATCH)[:BATCH]
    start = time.perf_counter()
    route(texts)
    return vectors, 1000 * (time.perf_counter() - start) / BATCH


def with_package(folder: Path) -> Callable:
    return AutoModel.from_pretrained(folder).encode


def with_remote_code(folder: Path, sentences: list[str]) -> tuple[np.ndarray, float]:
    command = [sys.executable, "-c", REMOTE, str(folder), str(BATCH), str(torch.get_num_threads()), *sentences]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return np.array(result["vectors"]), result["milliseconds"]


def with_own_pooling(folder: Path, pooling: str) -> Callable:
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def route(texts: list[str]) -> np.ndarray:
        batch = tokenizer(texts, padding=True, padding_side="right", truncation=True, return_tensors="pt")
        hidden, real = model(**batch).last_hidden_state, batch["attention_mask"][..., None].bool()
        if pooling == "mean":
            return normalised((hidden * real).sum(1) / real.sum(1))
        return normalised(hidden[:, 0] if pooling == "cls" else hidden.masked_fill(~real, -torch.inf).amax(1))

    return route


def with_sentence_transformers(folder: Path) -> Callable:
    model = SentenceTransformer(str(folder))
    return lambda texts: normalised(model.encode(texts, batch_size=BATCH))


def with_onnx(folder: Path, file: str) -> Callable:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / file, options)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def route(texts: list[str]) -> np.ndarray:
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
        return normalised(session.run(["pooler_output"], dict(batch))[0])

    return route


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of a SimMIM checkpoint or a plain encoder")
    parser.add_argument("--output_dir", help="keep the exports here (default: a temporary folder)")
    parser.add_argument("--sentences", nargs="+", default=SENTENCES, help="default: six in three languages")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        folder, checkpoint = Path(args.output_dir or scratch), args.model
        if AutoConfig.from_pretrained(checkpoint).model_type != "simmim":
            checkpoint = str(folder / "simmim")
            SimMIMForPreTraining.from_backbone(args.model).save_pretrained(checkpoint)
            AutoTokenizer.from_pretrained(args.model).save_pretrained(checkpoint)
        for form in ("safetensors-only", "backbone", "sentence-transformers", "onnx"):
            more = ["--quantize"] if form == "onnx" else []
            simmim(["export", "--model", checkpoint, "--to", form, "--output_dir", str(folder / form), *more])

        shared, config = folder / "safetensors-only", AutoConfig.from_pretrained(checkpoint)
        plain = [("plain backbone, own pooling", "no", with_own_pooling(folder / "backbone", config.pooling))]
        first, rows = None, []
        for name, needs_package, route in (
            ("AutoModel with the package", "yes", with_package(shared)),
            ("AutoModel, trust_remote_code=True", "no", None),
            *(plain if is_plain(config) else []),  # any other pooling stays behind
            ("sentence-transformers", "no", with_sentence_transformers(folder / "sentence-transformers")),
            ("ONNX Runtime", "no", with_onnx(folder / "onnx", "model.onnx")),
            ("ONNX Runtime, int8", "no", with_onnx(folder / "onnx", "model_quantized.onnx")),
        ):
            vectors, milliseconds = timed(route, args.sentences) if route else with_remote_code(shared, args.sentences)
            first = vectors if first is None else first
            rows.append((name, np.abs(vectors - first).max(), needs_package, milliseconds))

    print(f"\nUnit vectors of {args.model}; batches of {BATCH}, {torch.get_num_threads()} threads\n")
    print(f"{'route':<36}{'largest difference':>20}{'needs simmim_hf':>18}{'ms a sentence':>16}")
    for name, difference, needs_package, milliseconds in rows:
        print(f"{name:<36}{difference:>20.1e}{needs_package:>18}{milliseconds:>16.2f}")


if __name__ == "__main__":
    main()
