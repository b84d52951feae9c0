"""Options and values under the names of earlier versions: read wherever an option can be given."""

import json

import pytest
from helpers import TINY, refused, tiny_tokenizer

from simmim_hf import DataCollatorForSimMIM, SimMIMConfig, SimMIMForPreTraining
from simmim_hf.data.collator import CONFIG_NAME
from simmim_hf.model.configuration_simmim import RENAMED_OPTIONS, RENAMED_VALUES, current_options
from simmim_hf.options import known_words, parse, words_of
from simmim_hf.pretraining.options import pretraining_parser
from simmim_hf.training.checkpoints import RECORD, changes

OLD = {
    "lexicon_size": 24,
    "pooled_layers": "lexical_last",
    "min_span_length": 5,
    "mean_span_length": 2.5,
    "snippet_removal": 0.75,
}
NEW = {
    "token_table_dim": 24,
    "pooled_layers": "table_and_last",
    "min_view_length": 5,
    "mean_mask_span": 2.5,
    "context_removal_prob": 0.75,
}
OF_CONFIG = ("lexicon_size", "pooled_layers")
CONFIG = {name: OLD[name] for name in OF_CONFIG}
COLLATOR = {name: value for name, value in OLD.items() if name not in OF_CONFIG}


def test_every_old_name_is_tried_here():
    assert {*RENAMED_OPTIONS, *RENAMED_VALUES} == OLD.keys()
    assert current_options(OLD) == NEW


def assert_new(owner):
    for name, value in NEW.items():
        assert getattr(owner, name, value) == value


def test_a_configuration_and_its_file(tmp_path, caplog):
    config = SimMIMConfig(**CONFIG)
    assert_new(config)
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    assert not RENAMED_OPTIONS.keys() & settings.keys() and settings["token_table_dim"] == 24
    settings.pop("token_table_dim")
    path.write_text(json.dumps(settings | CONFIG))
    loaded = SimMIMConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert SimMIMConfig.from_pretrained(tmp_path, lexicon_size=8).token_table_dim == 8
    assert not caplog.text


def test_a_model_that_is_continued(tmp_path):
    SimMIMForPreTraining(SimMIMConfig(text_config=TINY, **CONFIG)).save_pretrained(tmp_path)
    model = SimMIMForPreTraining.from_backbone(tmp_path, lexicon_size=16)
    assert model.config.token_table_dim == model.simmim.pooler.lexicon.table.embedding_dim == 16


def test_a_collator_and_its_file(tmp_path):
    tokenizer = tiny_tokenizer()
    collator = DataCollatorForSimMIM(tokenizer, 0.2, **COLLATOR)
    assert_new(collator)
    (tmp_path / CONFIG_NAME).write_text(json.dumps(COLLATOR | {"mlm_probability": 0.2}))
    assert DataCollatorForSimMIM.from_pretrained(tmp_path, tokenizer) == collator


@pytest.mark.parametrize("joint", [" ", "="])
def test_the_command_line_and_a_settings_file(tmp_path, joint):
    words = " ".join(f"--{name}{joint}{value}" for name, value in OLD.items()).split()
    words[0] = words[0].replace("lexicon_size", "lexicon-size")
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(OLD))
    for argv in (words, [str(settings)]):
        model_args, data_args, _ = parse(pretraining_parser(), argv)
        assert_new(model_args)
        assert_new(data_args)
    assert known_words(pretraining_parser(), ["--output_dir", "lexical_last"]) == ["--output_dir", "lexical_last"]
    assert words_of(OLD) == words_of(NEW)


def test_both_names_at_once_are_refused(tmp_path, capsys):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"lexicon_size": 24, "token_table_dim": 32}))
    assert "`lexicon_size` is the old name of `token_table_dim`" in refused(capsys, "pretrain", settings)


def test_a_run_that_is_resumed_is_the_same(tmp_path):
    (tmp_path / RECORD).write_text(json.dumps({"meaning": {"objective": CONFIG, "corruption": COLLATOR}}))
    new = {"objective": current_options(CONFIG), "corruption": current_options(COLLATOR)}
    assert not changes(tmp_path, {"meaning": new})
    new["objective"]["token_table_dim"] = 32
    assert changes(tmp_path, {"meaning": new}) == ["objective token_table_dim was 24 and is 32"]
