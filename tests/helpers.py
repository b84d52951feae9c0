"""What several test files share: tiny random models of every claimed family, ragged batches, text, and processes."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, BertTokenizer

import simmim_hf
from simmim_hf import SimMIMConfig, SimMIMForCausalLM, SimMIMForPreTraining
from simmim_hf.cli import main
from simmim_hf.folders import claimed
from simmim_hf.model.configuration_simmim import remote_files

EXAMPLES = Path(__file__).parents[1] / "examples"

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LENGTHS = [7, 3, 11, 5]
CAUSAL = {"mlm_weight": 0, "contrastive_weight": 0, "clm_weight": 1}

VOCAB = 64
MASK_ID, FIRST_WORD = 4, 5
SIZE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE |= {"intermediate_size": 48, "max_position_embeddings": 64}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

# More than one key/value head, so that a mistake in their grouping shows.
DECODER = {**SIZE, **SPECIAL, "num_key_value_heads": 2, "head_dim": 8}
# A window of 4 tokens on each side in the second layer.
LOCAL = {**SIZE, **SPECIAL, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 8}
LOCAL |= {"layer_types": ["full_attention", "sliding_attention"]}

FAMILIES = {
    "bert": SIZE,
    "roberta": {**SIZE, "pad_token_id": 1},
    "xlm-roberta": {**SIZE, "pad_token_id": 1},
    "camembert": {**SIZE, "pad_token_id": 1},
    "distilbert": {"vocab_size": VOCAB, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "electra": {**SIZE, "embedding_size": 16},
    "mpnet": {**SIZE, "pad_token_id": 1},
    "modernbert": LOCAL,
    "eurobert": {**DECODER, "mask_token_id": MASK_ID},
    "nomic_bert": {**SIZE, "head_dim": 8, "pad_token_id": 0},
    "llama": DECODER,
    "qwen3": DECODER,
    "gpt2": {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **SPECIAL},
}
DECODERS = ["llama", "qwen3", "gpt2"]
WITH_DECODER = ["bert", "roberta", "electra", "camembert", "llama", "gpt2", "qwen3"]
# For the others keys and values are kept by this package's attention; the one has windows, the other shared keys.
GENERATING = [*WITH_DECODER, "modernbert", "eurobert"]
PACKED = [family for family in FAMILIES if family != "mpnet"]  # mpnet adds a position bias to its scores


def text_config(family="bert", **options):
    return AutoConfig.for_model(family, **{**FAMILIES[family], **options})


def randomize(model, seed=0, scale=0.1):
    """Noise on every parameter, so that no bias is zero and no norm one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model.eval()


def tiny_model(family="bert", backbone=None, attn_implementation=None, **options):
    """A `SimMIMForPreTraining` with random weights, dropout off; `backbone` are options of its text config."""
    config = SimMIMConfig(text_config=text_config(family, **(backbone or {})), **options)
    if attn_implementation:
        config._attn_implementation = attn_implementation
    torch.manual_seed(0)
    return randomize(SimMIMForPreTraining(config))


def tied(model):
    return model.get_input_embeddings().weight is model.lm_head.decoder.weight


def padded(rows, pad, side="right"):
    """Rows of different lengths to (batch, length)."""
    length = max(map(len, rows))
    fill = [[pad] * (length - len(row)) for row in rows]
    return torch.tensor([f + row if side == "left" else row + f for f, row in zip(fill, rows)])


def ragged_batch(lengths, side="right", pad=0, seed=0, ratio=0.4):
    """What the collator gives, for sequences of these lengths; each has a corrupted position."""
    generator = torch.Generator().manual_seed(seed)
    columns = {name: [] for name in ("input_ids", "masked_input_ids", "labels", "attention_mask")}
    for length in lengths:
        ids = torch.randint(FIRST_WORD, VOCAB, (length,), generator=generator)
        corrupted = torch.rand(length, generator=generator) < ratio
        corrupted[length // 2] = True
        columns["input_ids"].append(ids.tolist())
        columns["masked_input_ids"].append(ids.masked_fill(corrupted, MASK_ID).tolist())
        columns["labels"].append(ids.masked_fill(~corrupted, -100).tolist())
        columns["attention_mask"].append([1] * length)
    pads = {"input_ids": pad, "masked_input_ids": pad, "labels": -100, "attention_mask": 0}
    return {name: padded(rows, pads[name], side) for name, rows in columns.items()}


def texts_of(lengths=LENGTHS, side="right"):
    """input_ids and attention_mask of texts of these lengths"""
    batch = ragged_batch(lengths, side)
    return batch["input_ids"], batch["attention_mask"]


def batch_of_two_views(lengths, other_lengths, side="right", pad=0):
    """A batch of which every row has a second corrupted view, of another length."""
    batch, other = ragged_batch(lengths, side, pad), ragged_batch(other_lengths, side, pad, seed=1)
    batch["positive_input_ids"] = other["masked_input_ids"]
    batch["positive_attention_mask"], batch["positive_labels"] = other["attention_mask"], other["labels"]
    return batch


def causal_model(family="bert", **options):
    """A `SimMIMForCausalLM` with the weights of `tiny_model(family)`."""
    trained = tiny_model(family, **{"clm_weight": 1, **options})
    model = SimMIMForCausalLM(trained.config)
    model.load_state_dict(trained.state_dict())
    return model.eval()


def real_rows(ids, attention_mask):
    """Each sequence alone, (1, its length)."""
    return [row[mask.bool()][None] for row, mask in zip(ids, attention_mask)]


def gradients(model, loss):
    """The gradient of every parameter, zeros where the loss does not reach it."""
    names, parameters = zip(*model.named_parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found)}


def assert_same_gradients(actual, expected, rtol=1e-4, atol=1e-5):
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        absolute = atol * max(1.0, expected[name].abs().max().item())
        off = (gradient - expected[name]).abs() - absolute - rtol * expected[name].abs()
        assert off.max() <= 0, f"the gradient of {name} is off by {off.max()} more than it may be"


def tiny_tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCAB - FIRST_WORD))]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


# Text, and the options of a network for it.

# What a model is saved as: itself, its code, and what sentence-transformers reads.
SAVED = {
    *("config.json", "model.safetensors", *remote_files()),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"),
}


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


SECRET = "hf_a_secret"  # that no file may hold


def with_the_secret(folder: Path) -> list[str]:
    """The files that hold it."""
    return [name for name in sorted(files_in(folder)) if SECRET.encode() in (folder / name).read_bytes()]


TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
WORDS = "the old river runs under a small stone bridge while green birds sing above quiet water every morning".split()


def corpus_lines(count):
    """Lines of 3 to 11 words and a number, all different."""
    return [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 4 + i % 9)) + f" {i}" for i in range(1, count + 1)]


# Commands and processes.

# Begins a script that is to run as where this package is not installed.
WITHOUT_THE_PACKAGE = """
import sys
sys.modules["simmim_hf"] = None
try:
    import simmim_hf
except ImportError:
    pass
else:
    raise AssertionError("this process must not have the package")
"""


def refused(capsys, *words, code=2):
    """The last line with which the command `simmim` refuses these words."""
    with pytest.raises(SystemExit) as refusal:
        main([*map(str, words)])
    assert refusal.value.code == code
    return capsys.readouterr().err.strip().splitlines()[-1]


def _hold(folder, holds):
    with claimed(folder):
        holds.set()
        signal.pause()


@contextlib.contextmanager
def another_command_in(folder: Path):
    """A process that writes to a folder."""
    forked = multiprocessing.get_context("fork")
    holds = forked.Event()
    process = forked.Process(target=_hold, args=(folder, holds))
    process.start()
    assert holds.wait(30)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def failing(number: int, function, only=lambda *arguments: True):
    """A function of the system that answers this error, for some arguments."""

    def answer(*arguments, **options):
        if only(*arguments):
            raise OSError(number, os.strerror(number))
        return function(*arguments, **options)

    return answer


def environment(inherited=os.environ, **more):
    """The variables of a process that imports the package and the helpers which are tested here."""
    places = [str(Path(__file__).parent), str(Path(simmim_hf.__file__).parents[1])]
    path = os.pathsep.join([*places, *filter(None, [inherited.get("PYTHONPATH")])])
    return {**inherited, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path, **more}


def run_python(*words, env=None, check=True, timeout=300, **options):
    """A process of Python's own, finished, by default without an error; what it wrote is in `stdout` and `stderr`."""
    process = subprocess.run(
        [sys.executable, *map(str, words)],
        env=environment() if env is None else env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )
    assert not check or process.returncode == 0, process.stderr
    return process


def launch(*words, config="ddp_cpu.yaml", **options):
    """`run_python` by `accelerate launch` with a file of examples/accelerate_configs, on two processes by default."""
    command = ["-m", "accelerate.commands.launch", "--config_file", EXAMPLES / "accelerate_configs" / config]
    return run_python(*command, *words, env=environment(GLOO_SOCKET_IFNAME="lo", ACCELERATE_USE_CPU="true"), **options)


def torchrun(count, *words, launcher=(), variables=None, **options):
    """`run_python` by torchrun with so many processes; words of a module begin with `-m`.

    Args:
        launcher: more options of torchrun
        variables: more of the environment
    """
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count, *launcher]
    env = environment(GLOO_SOCKET_IFNAME="lo", **(variables or {}))
    return run_python(*command, *words, env=env, **options)
