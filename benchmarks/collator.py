"""Pairs a second that the collator makes in one process, beside the masked-LM collator of transformers (one view).

With `--step`, a result of `train_step.py`, also how many times as fast as the fastest step there takes them.

python benchmarks/collator.py --text corpus.txt [--tokenizer FOLDER] [--step benchmarks/results/cpu-2x128.json]
"""

import argparse
import json
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

from transformers import DataCollatorForLanguageModeling

from simmim_hf import DataCollatorForSimMIM
from simmim_hf.data import corpora, tokenization


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokenizer", default=None, help="default: trained on the text")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--whole_word_mask", action="store_true", help="for this package's collator only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step", default=None, help="a JSON result of train_step.py to compare with")
    parser.add_argument("--output", default=None, help="write NAME.json")
    arguments = parser.parse_args()

    text = corpora.load_text(arguments.text)
    if arguments.tokenizer:
        tokenizer = tokenization.load_tokenizer(arguments.tokenizer)
    else:
        tokenizer = tokenization.train_tokenizer(text["text"])
    tokens, _ = tokenization.tokenize(
        text.select(range(min(arguments.rows, len(text)))), tokenizer, arguments.max_length
    )
    rows, size = [{"input_ids": ids} for ids in tokens["input_ids"]], arguments.batch_size
    collators = {
        "simmim_hf": DataCollatorForSimMIM(tokenizer, whole_word_mask=arguments.whole_word_mask),
        "transformers, one view": DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3),
    }
    rates = {name: [] for name in collators}
    for repeat in range(arguments.rounds + 1):
        for name, collator in collators.items():
            start = time.perf_counter()
            for first in range(0, len(rows), size):
                collator(rows[first : first + size])
            if repeat:  # the first round warms up
                rates[name].append(len(rows) / (time.perf_counter() - start))
    result = {
        "command": " ".join(["python", *sys.argv]),
        "versions": {name: version(name) for name in ("torch", "transformers", "simmim_hf")},
        "mean_length": sum(tokens["length"]) / len(rows),
        "sequences_per_second": {name: round(statistics.median(values)) for name, values in rates.items()},
    }
    if arguments.step:
        step = json.loads(Path(arguments.step).read_text())
        taken = step["batch_size"] / min(step["median_seconds"].values())
        result["pairs_per_second_of_the_fastest_step"] = round(taken)
        result["ratio"] = round(result["sequences_per_second"]["simmim_hf"] / taken, 1)
    print(json.dumps(result, indent=2))
    if arguments.output:
        Path(arguments.output + ".json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
