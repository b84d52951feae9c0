"""The folder of a run of `simmim pretrain` as it is shipped: its weights in half precision, opened in float32, and
links to the code of this repository in place of its copies, which an upload to the Hub replaces by what they lead to.

python model_cards/ship.py --run reference/snippets --output_dir model_cards/simmim-tiny-en
"""

import argparse
import json
import os
import shutil
from pathlib import Path

from transformers import AutoModelForPreTraining, AutoTokenizer

from simmim_hf.model import configuration_simmim

# Beside weights, configuration, code and tokenizer: how it was made.
RECORDS = ("results.json", "training_args.json", "data_collator_config.json", "trainer_state.json", "training.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder that `simmim pretrain` wrote")
    parser.add_argument("--output_dir", type=Path, required=True)
    arguments = parser.parse_args()
    run, output = arguments.run, arguments.output_dir
    AutoModelForPreTraining.from_pretrained(run).half().save_pretrained(output)
    AutoTokenizer.from_pretrained(run).save_pretrained(output)
    config = json.loads((output / "config.json").read_text())
    for part in (config, config["text_config"]):
        part["dtype"] = "float32"  # what the weights become when they are loaded
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    code = Path(__file__).parents[1] / "simmim_hf" / "model"
    for name in configuration_simmim.remote_files():
        (output / name).unlink()
        (output / name).symlink_to(os.path.relpath(code / name, output))
    for name in RECORDS:
        shutil.copyfile(run / name, output / name)
    size = sum(path.stat().st_size for path in output.iterdir())
    print(f"{output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
