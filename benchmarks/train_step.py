"""Times one training step of SimMIM against what people use today, on the same model, data and useful work.

    python benchmarks/train_step.py --text corpus.txt                      # sentences as they come, 2 x 128
    python benchmarks/train_step.py --text corpus.txt --layers 6 --hidden_size 384
    python benchmarks/train_step.py --text corpus.txt --paragraphs --rounds 5

Every contender reads the same sequences with the same corruption and computes a masked and a contrastive loss, forward
and backward, in one process; they take turns of two steps, of which the second counts, and medians are compared.

- two passes: what the SimMIM article means: `BertForMaskedLM` on the masked copy, with logits at every position, and
  `BertModel` on the original, each padded.
- SimCSE + MLM: Gao et al. 2021 with the MLM option: two dropout views for the contrastive loss and the masked copies
  of both for the MLM loss, each padded, logits at every position.
- sentence-transformers: its `MultipleNegativesRankingLoss` on (original, masked copy), then `BertForMaskedLM` on the
  masked copy.
- simmim_hf: this package; once more in bfloat16 autocast.

MFU is the useful floating-point operations a second (see `useful_flops`) over what a square matrix product of the same
type reaches on the same device.
"""

import argparse
import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel

from simmim_hf import DataCollatorForSimMIM, SimMIMConfig, SimMIMForPreTraining
from simmim_hf.data import corpora, tokenization
from simmim_hf.model.losses import contrastive_cross_entropy, similarity_matrix

TEMPERATURE = 0.05


def mean_pool(hidden, mask):
    mask = mask[..., None].to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


def contrast(rows, candidates):
    targets = torch.arange(len(rows), device=rows.device)
    return contrastive_cross_entropy(similarity_matrix(rows, candidates) / TEMPERATURE, targets) / len(rows)


class TwoPasses(nn.Module):
    name = "two padded passes, full logits"

    def __init__(self, config):
        super().__init__()
        self.masked_lm = BertForMaskedLM(config)

    def forward(self, input_ids, attention_mask, masked_input_ids, labels):
        masked = self.masked_lm(masked_input_ids, attention_mask, labels=labels, output_hidden_states=True)
        original = self.masked_lm.bert(input_ids, attention_mask).last_hidden_state
        pooled = (mean_pool(hidden, attention_mask) for hidden in (original, masked.hidden_states[-1]))
        return masked.loss + contrast(*pooled)


class SimCSEWithMLM(TwoPasses):
    name = "SimCSE with its MLM option"

    def forward(self, input_ids, attention_mask, masked_input_ids, labels):
        twice = (torch.cat([x, x]) for x in (input_ids, attention_mask, masked_input_ids, labels))
        ids, mask, masked_ids, targets = twice
        views = mean_pool(self.masked_lm.bert(ids, mask).last_hidden_state, mask).chunk(2)
        return self.masked_lm(masked_ids, mask, labels=targets).loss + contrast(*views)


class SentenceTransformers(nn.Module):
    name = "sentence-transformers loss + masked LM"

    def __init__(self, config):
        super().__init__()
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        self.masked_lm = BertForMaskedLM(config)
        encoder = _Features(self.masked_lm.bert)
        self.loss = MultipleNegativesRankingLoss(SentenceTransformer(modules=[encoder]), scale=1 / TEMPERATURE)

    def forward(self, input_ids, attention_mask, masked_input_ids, labels):
        features = [{"input_ids": ids, "attention_mask": attention_mask} for ids in (input_ids, masked_input_ids)]
        masked = self.masked_lm(masked_input_ids, attention_mask, labels=labels)
        return masked.loss + self.loss(features, None)


class _Features(nn.Module):
    """A BertModel with mean pooling, as a module of sentence-transformers."""

    def __init__(self, bert: BertModel):
        super().__init__()
        self.bert = bert

    def forward(self, features, **kwargs):
        hidden = self.bert(features["input_ids"], features["attention_mask"]).last_hidden_state
        return {**features, "sentence_embedding": mean_pool(hidden, features["attention_mask"])}


class Ours(nn.Module):
    name = "simmim_hf"

    def __init__(self, config):
        super().__init__()
        self.model = SimMIMForPreTraining(SimMIMConfig(text_config=config, temperature=TEMPERATURE))

    def forward(self, **batch):
        return self.model(**batch).loss


class OursInBfloat16(Ours):
    name = "simmim_hf, --bf16"


CONTENDERS = {
    "two_passes": TwoPasses,
    "simcse": SimCSEWithMLM,
    "st": SentenceTransformers,
    "simmim": Ours,
    "simmim_bf16": OursInBfloat16,
}


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def matmul_peak(device, dtype, size=2048, repeats=5) -> float:
    """The floating-point operations a second that this device reaches in a square matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(repeats + 2):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def useful_flops(config: BertConfig, batches: list[dict]) -> float:
    """Floating-point operations a step needs: 6 a parameter and real token of both views (forward and backward), 12 a
    pair of tokens and hidden unit of each layer in attention, and the head at the corrupted positions only."""
    hidden, layers, inner = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    layer = 4 * hidden**2 + 2 * hidden * inner
    total = 0
    for batch in batches:
        lengths = batch["attention_mask"].sum(1).double()
        predicted = int((batch["labels"] != -100).sum())
        encoder = 2 * (6 * layers * layer * lengths.sum() + 12 * layers * hidden * lengths.square().sum())
        total += float(encoder) + 6 * predicted * (hidden**2 + hidden * config.vocab_size)
    return total / len(batches)


def make_batches(arguments, tokenizer, device) -> list[dict]:
    text = corpora.load_text(arguments.text)
    text = text.select(range(min(arguments.rows, len(text))))
    if not arguments.paragraphs:
        sentences = [s for line in text["text"] for s in re.split(r"(?<=[a-z][.!?]) (?=[A-Z])", line)]
        text = Dataset.from_dict({"text": sentences}).shuffle(seed=0)
    tokens, _ = tokenization.tokenize(text, tokenizer, arguments.max_length)
    if arguments.paragraphs:
        tokens = tokens.filter(lambda row: row["length"] == arguments.max_length)
    multiple = arguments.max_length if arguments.pad_to_max_length else None
    collator = DataCollatorForSimMIM(tokenizer, pad_to_multiple_of=multiple)
    size = arguments.batch_size
    rows = [tokens.select(range(i * size, (i + 1) * size)).to_list() for i in range(arguments.batches)]
    return [{name: x.to(device) for name, x in collator(row).items()} for row in rows]


def step(model, batch, dtype) -> None:
    device = batch["input_ids"].device
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loss = model(**batch)
    loss.backward()
    model.zero_grad()
    synchronize(device)


def measure(models: dict, batches: list[dict], rounds: int, dtypes: dict) -> dict[str, list[float]]:
    """Seconds of the steps of each contender. They take turns, for the speed of a machine drifts; the first step of a
    turn is not counted, for in training a step follows one of its own kind and finds its memory there."""
    seconds = {name: [] for name in models}
    for index in range(rounds):
        batch = batches[index % len(batches)]
        for name, model in models.items():
            step(model, batch, dtypes[name])
            start = time.perf_counter()
            step(model, batch, dtypes[name])
            seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(name: str) -> int:
    """The peak memory in bytes of a fresh process in which one contender takes a step on every batch."""
    alone = [sys.executable, *sys.argv, "--contenders", name, "--memory_only"]
    return int(subprocess.run(alone, stdout=subprocess.PIPE, check=True, text=True).stdout.split()[-1])


def parser_of_steps(description: str) -> argparse.ArgumentParser:
    """The text, network and number of the steps that are timed, here and in processes.py."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="text file, one sentence or paragraph a line")
    parser.add_argument("--tokenizer", default=None, help="default: trained on the text")
    parser.add_argument("--rows", type=int, default=5000, help="lines that are read")
    parser.add_argument(
        "--paragraphs", action="store_true", help="whole lines of at least --max_length, not sentences"
    )
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=64, help="of all processes together")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--batches", type=int, default=4, help="different batches")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default=None, help="write NAME.json and NAME.md")
    return parser


def backbone(arguments, vocab_size: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocab_size,
        num_hidden_layers=arguments.layers,
        hidden_size=arguments.hidden_size,
        num_attention_heads=arguments.hidden_size // 64,
        intermediate_size=4 * arguments.hidden_size,
    )


def main() -> None:
    parser = parser_of_steps(__doc__)
    parser.add_argument(
        "--pad_to_max_length", action="store_true", help="pad to --max_length, not to the longest of a batch"
    )
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast for every contender, not only for ours")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--chunk_size", type=int, default=None, help="of simmim_hf")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory_only", action="store_true", help="print the peak memory of all batches and stop")
    arguments = parser.parse_args()

    device = torch.device(arguments.device)
    in_bfloat16 = CONTENDERS if arguments.bf16 else {"simmim_bf16"}
    dtypes = {name: torch.bfloat16 if name in in_bfloat16 else torch.float32 for name in arguments.contenders}
    tokenizer = tokenization.load_tokenizer(arguments.tokenizer) if arguments.tokenizer else None
    if tokenizer is None:
        tokenizer = tokenization.train_tokenizer(corpora.load_text(arguments.text)["text"])
    batches = make_batches(arguments, tokenizer, device)
    config = backbone(arguments, len(tokenizer))
    torch.manual_seed(0)
    models = {name: CONTENDERS[name](config).to(device).train() for name in arguments.contenders}
    for name in {"simmim", "simmim_bf16"} & models.keys():
        models[name].model.chunk_size = arguments.chunk_size
    if arguments.memory_only:
        ((name, model),) = models.items()
        for batch in batches:
            step(model, batch, dtypes[name])
        cuda = device.type == "cuda"
        print(torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    # Each in a process of its own; on a GPU side by side, for there what others allocate does not count.
    with ThreadPoolExecutor(len(models) if device.type == "cuda" else 1) as pool:
        memory = dict(zip(models, pool.map(peak_memory, models)))
    seconds = measure(models, batches, arguments.rounds, dtypes)
    peaks = {dtype: matmul_peak(device, dtype) for dtype in set(dtypes.values())}
    report(arguments, config, models, batches, seconds, memory, dtypes, peaks, useful_flops(config, batches))


def report(arguments, config, models, batches, seconds, memory, dtypes, peaks, flops) -> None:
    tokens = statistics.mean(int(batch["attention_mask"].sum()) for batch in batches)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = ["| contender | seconds a step | real tokens/s | ratio | MFU | peak memory, GiB |", "| --- " * 6 + "|"]
    for name, median in medians.items():
        ratio, mfu = median / medians.get("simmim", median), flops / median / peaks[dtypes[name]]
        figures = f"{median:.3f} | {tokens / median:,.0f} | {ratio:.2f} | {mfu:.2f} | {memory[name] / 2**30:.2f}"
        rows.append(f"| {models[name].name} | {figures} |")
    padded = statistics.mean(batch["input_ids"].numel() for batch in batches)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "versions": {name: version(name) for name in ("torch", "transformers", "simmim_hf")},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name()
        if arguments.device.startswith("cuda")
        else f"CPU, {torch.get_num_threads()} threads",
        "batch_size": arguments.batch_size,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "real_tokens_of_padded": tokens / padded,
        "matmul_peak_flops": {str(dtype).removeprefix("torch."): peak for dtype, peak in peaks.items()},
        "useful_flops_a_step": flops,
        "peak_memory_bytes": memory,
        "seconds": seconds,
        "median_seconds": medians,
    }
    table = "\n".join(rows)
    print(json.dumps({k: v for k, v in result.items() if k != "seconds"}, indent=2))
    print(table)
    if arguments.output:
        Path(arguments.output + ".json").write_text(json.dumps(result, indent=2) + "\n")
        Path(arguments.output + ".md").write_text(f"`{result['command']}` on {result['device']}\n\n{table}\n")


if __name__ == "__main__":
    main()
