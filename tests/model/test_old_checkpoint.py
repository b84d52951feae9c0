"""A checkpoint that an older version wrote opens, and means what it meant.

`checkpoint_before_drawers/` was saved by commit a547871, when the package was one flat folder, with a tokenizer and a
collator whose settings are all but the defaults; the code of that version is left out. `expected.json` holds a batch
and what that version made of it. The folder is never written again: a change that it does not survive breaks the
checkpoints of users.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers
from helpers import CLOSE

import simmim_hf
from simmim_hf import DataCollatorForSimMIM, SimMIMForPreTraining
from simmim_hf.data.collator import CONFIG_NAME
from simmim_hf.model.configuration_simmim import REMOVED_OPTIONS, current_options, remote_files

FOLDER = Path(__file__).with_name("checkpoint_before_drawers")
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
BATCH = {name: torch.tensor(rows) for name, rows in EXPECTED["batch"].items()}
TERMS = ["loss", "mlm_loss", "contrastive_loss", "clm_loss", "original_embeds", "masked_embeds"]
# The output that shows a class to be right.
SHOWN = {
    "AutoModel": ["pooler_output"],
    "AutoModelForPreTraining": TERMS,
    "AutoModelForMaskedLM": ["logits of real tokens"],
}


def observe(folder, auto_class, batch):
    """The module of the class that opens a folder, and its outputs."""
    model, report = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    if auto_class != "AutoModelForPreTraining":
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        outputs = model(**batch)
    if auto_class == "AutoModelForMaskedLM":
        outputs["logits of real tokens"] = outputs.logits[batch["attention_mask"].bool()]
    return type(model).__module__, {name: value for name, value in outputs.items() if torch.is_tensor(value)}


def assert_expected(outputs: dict, names: list[str]) -> None:
    for name in names:
        torch.testing.assert_close(torch.as_tensor(outputs[name]), torch.tensor(EXPECTED["outputs"][name]), **CLOSE)


@pytest.mark.parametrize("auto_class", SHOWN)
def test_the_package_opens_it(auto_class):
    module, outputs = observe(FOLDER, auto_class, BATCH)
    assert module.startswith("simmim_hf.model.modeling_")
    assert_expected(outputs, SHOWN[auto_class])


def test_nothing_in_it_is_unknown(caplog):
    model = SimMIMForPreTraining.from_pretrained(FOLDER)
    assert "does not know" not in caplog.text
    settings = json.loads((FOLDER / "config.json").read_text())
    others = {"architectures", "auto_map", "dtype", "text_config", "transformers_version", *REMOVED_OPTIONS}
    for name in settings.keys() - others:
        assert getattr(model.config, name) == settings[name], name


def test_saving_it_again_brings_the_code_of_this_version(tmp_path):
    SimMIMForPreTraining.from_pretrained(FOLDER).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == set(remote_files())
    for path in tmp_path.glob("*.py"):
        assert path.read_bytes() == (Path(simmim_hf.__file__).parent / "model" / path.name).read_bytes()
    assert_expected(observe(tmp_path, "AutoModelForPreTraining", BATCH)[1], TERMS)


def test_its_tokenizer_and_collator_open(tmp_path):
    settings = json.loads((FOLDER / CONFIG_NAME).read_text())
    with pytest.raises(ValueError, match="`mlm_probability` is .*, and a schedule of it is gone, .* Give one."):
        DataCollatorForSimMIM.from_pretrained(FOLDER)
    settings["mlm_probability"] = settings["mlm_probability"][0]
    (tmp_path / CONFIG_NAME).write_text(json.dumps(settings))
    collator = DataCollatorForSimMIM.from_pretrained(tmp_path, transformers.AutoTokenizer.from_pretrained(FOLDER))
    for name, value in current_options(settings).items():
        assert getattr(collator, name) == value, name
    batch = collator(EXPECTED["text"])
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(batch[name], BATCH[name])
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    assert tokenizer.decode(BATCH["input_ids"][1], skip_special_tokens=True) == EXPECTED["text"][1]
