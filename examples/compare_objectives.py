"""Compares pre-training objectives on your own text: which one is worth it, for how much, and with what settings.

    python compare_objectives.py corpus.txt
    python compare_objectives.py corpus.txt --task sts-dev.tsv --tokens 5e6 --seeds 3
    accelerate launch compare_objectives.py corpus.txt                                  # on all devices

An arm is a name for options of `simmim pretrain`; the ones below are a start. Kill the script whenever you like:
started again with the same options, it does what is missing. `simmim compare` is the same as a command.
"""

import argparse

from simmim_hf.comparison.comparison import Comparison

ARMS = {
    "masked only": {"objective": "mlm"},
    "contrastive only": {"objective": "simcse"},
    "both": {"objective": "simmim"},
    "both with deleted words": {"objective": "simmim", "positive_view": "deleted"},
    "snippets": {"objective": "snippets"},
    "spans, mean pooling": {"objective": "spans", "pooling": "mean"},
    "both with little contrast": {"objective": "simmim", "contrastive_weight": 0.1},
    "masked first": {"objective": "simmim", "weight_schedule": "contrastive_weight=0:0,0.5:0,0.5:1"},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+", help="files, globs or folders of text")
    parser.add_argument("--task", nargs="+", help="what the encoders are evaluated on, as `simmim evaluate --tasks`")
    parser.add_argument(
        "--tokens", type=float, default=None, help="that the encoder reads in each run; default: those of the text"
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output_dir", default="simmim-comparison")
    arguments = parser.parse_args()

    comparison = Comparison(
        ARMS,
        {"train_file": arguments.text, "per_device_train_batch_size": 64, "max_seq_length": 128},
        output_dir=arguments.output_dir,
        seeds=arguments.seeds,
        budget_tokens=arguments.tokens,
        tasks=arguments.task,
    )
    results = comparison.run()
    if not comparison.is_main:
        return
    for figure in results["summary"]:
        if figure["best"] is not None:
            others = ", ".join(figure["not_distinguishable_from_best"]) or "none"
            print(
                f"{figure['task']}, {figure['figure']}: best {figure['best']}; not distinguishable from it: {others}"
            )


if __name__ == "__main__":
    main()
