"""Files of earlier versions that name an option that is gone: they open at its default, and are refused otherwise."""

import json

import pytest
from helpers import refused

from simmim_hf import SimMIMConfig
from simmim_hf.model.configuration_simmim import REMOVED_OPTIONS
from simmim_hf.options import words_of
from simmim_hf.training.checkpoints import RECORD, changes

UNUSED = {name: unused for name, (unused, _) in REMOVED_OPTIONS.items()}


def test_a_folder_with_their_defaults_opens_without_a_warning(tmp_path, caplog):
    SimMIMConfig(temperature=0.3).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | UNUSED))
    config = SimMIMConfig.from_pretrained(tmp_path)
    assert config.temperature == 0.3 and not caplog.text
    assert not UNUSED.keys() & config.to_dict().keys()


def test_settings_with_their_defaults_are_read():
    assert words_of({**UNUSED, "temperature": 0.3}) == ["--temperature", "0.3"]


@pytest.mark.parametrize(("name", "reason"), [(name, reason) for name, (_, reason) in REMOVED_OPTIONS.items()])
def test_another_value_is_refused_with_the_reason(tmp_path, capsys, name, reason):
    said = f"`{name}` is 7, and this option is gone: {reason}. Leave it out."
    with pytest.raises(ValueError) as refusal:
        SimMIMConfig(**{name: 7})
    assert str(refusal.value) == said
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({name: 7}))
    assert said in refused(capsys, "pretrain", settings)
    assert f"--{name} is gone: {reason}. Leave it out." in refused(capsys, "pretrain", f"--{name}", "7")
    (tmp_path / RECORD).write_text(json.dumps({"meaning": {"training": {name: 7}}}))
    with pytest.raises(ValueError, match=f"`{name}` is 7"):
        changes(tmp_path, {"meaning": {}})


def test_a_schedule_of_the_mask_ratio_is_refused_and_one_number_in_a_list_is_read():
    assert words_of({"mlm_probability": [0.2]}) == ["--mlm_probability", "0.2"]
    with pytest.raises(
        ValueError, match=r"`mlm_probability` is \[0.2, 0.4\], and a schedule of it is gone, .* Give one"
    ):
        words_of({"mlm_probability": [0.2, 0.4]})
