"""What a configuration promises: defaults, presets, round trips, pass-through properties and clear refusals."""

import json

import pytest
from helpers import FAMILIES, text_config, tiny_tokenizer
from transformers import AutoConfig, BertConfig, LlamaConfig, ModernBertConfig, RobertaConfig

from simmim_hf import SimMIMConfig, SimMIMModel


def test_defaults_are_the_contract():
    config = SimMIMConfig()
    expected = {
        "pooling": "mean",
        "similarity": "cosine",
        "temperature": 0.05,
        "contrastive_loss": "info_nce",
        "mlm_weight": 1.0,
        "contrastive_weight": 1.0,
        "clm_weight": 0.0,
        "positive_view": "masked",
        "projection_dim": None,
        "symmetric": False,
        "tie_word_embeddings": True,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.model_type == "simmim"


@pytest.mark.parametrize(
    ("objective", "mlm", "contrastive", "clm", "view"),
    [
        ("clm", 0, 0, 1, "masked"),
        ("mlm", 1, 0, 0, "masked"),
        ("simcse", 0, 1, 0, "dropout"),
        ("simmim", 1, 1, 0, "masked"),
        ("fused", 1, 1, 1, "masked"),
    ],
)
def test_presets(objective, mlm, contrastive, clm, view):
    config = SimMIMConfig.from_objective(objective, text_config=text_config())
    assert (config.mlm_weight, config.contrastive_weight, config.clm_weight) == (mlm, contrastive, clm)
    assert config.positive_view == view
    assert config.objective.is_causal == (objective == "clm")


def test_a_preset_takes_further_options():
    config = SimMIMConfig.from_objective("simmim", mlm_weight=0.1, temperature=0.2)
    assert (config.mlm_weight, config.temperature) == (0.1, 0.2)


@pytest.mark.parametrize("backbone", [None, "modernbert", {"model_type": "modernbert"}, ModernBertConfig()])
def test_a_backbone_from_scratch_gets_the_vocabulary_of_a_tokenizer(backbone):
    tokenizer = tiny_tokenizer()
    config = SimMIMConfig.from_objective("snippets", tokenizer, text_config=backbone, temperature=0.2).text_config
    assert (config.vocab_size, config.pad_token_id) == (len(tokenizer), tokenizer.pad_token_id)
    assert config.model_type == ("bert" if backbone is None else "modernbert")
    if backbone is not None:
        assert (config.cls_token_id, config.sep_token_id) == (tokenizer.cls_token_id, tokenizer.sep_token_id)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, BertConfig),
        ({}, BertConfig),
        ({"hidden_size": 32}, BertConfig),
        ({"model_type": "roberta"}, RobertaConfig),
        (BertConfig(hidden_size=48), BertConfig),
        (RobertaConfig(), RobertaConfig),
        (ModernBertConfig(local_attention=8), ModernBertConfig),
        (LlamaConfig(num_key_value_heads=4), LlamaConfig),
    ],
    ids=["None", "empty", "dict", "dict-roberta", "bert", "roberta", "modernbert", "llama"],
)
def test_round_trip(tmp_path, text, expected):
    config = SimMIMConfig(
        text_config=text,
        pooling="max",
        similarity="dot",
        temperature=0.3,
        contrastive_loss="decoupled",
        mlm_weight=0.3,
        contrastive_weight=2.0,
        clm_weight=0.5,
        positive_view="dropout",
        symmetric=True,
        gather_negatives=False,
        projection_dim=7,
        tie_word_embeddings=False,
    )
    assert type(config.text_config) is expected
    config.save_pretrained(tmp_path)
    for again in (SimMIMConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(again) is SimMIMConfig
        assert type(again.text_config) is expected
        differing = {k for k, v in config.to_dict().items() if again.to_dict().get(k) != v} - {"_name_or_path"}
        assert not differing
        assert again.to_json_string() == SimMIMConfig.from_dict(config.to_dict()).to_json_string()


def test_a_dict_keeps_its_options():
    config = SimMIMConfig(text_config={"hidden_size": 32, "num_attention_heads": 4})
    assert (config.text_config.hidden_size, config.text_config.num_attention_heads) == (32, 4)
    assert type(SimMIMConfig(text_config="modernbert").text_config) is ModernBertConfig


@pytest.mark.parametrize("family", FAMILIES)
def test_options_of_the_backbone_pass_through(family):
    config = SimMIMConfig(text_config=text_config(family))
    for name in ("hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "pad_token_id"):
        assert getattr(config, name) == getattr(config.text_config, name)
        setattr(config, name, 8)
        assert getattr(config, name) == getattr(config.text_config, name) == 8
    assert config.get_text_config() is config.text_config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_dropout_prob": 0.0}, "text_config"),
        ({"type_vocab_size": 1}, "text_config"),
        ({"temperature": 0}, "above 0"),
        ({"temperature": -0.1}, "above 0"),
        ({"temperature": float("nan")}, "above 0"),
        ({"mlm_weight": -1.0}, "`mlm_weight`"),
        ({"contrastive_weight": -1}, "`contrastive_weight`"),
        ({"clm_weight": float("nan")}, "`clm_weight`"),
        ({"mlm_weight": 0, "contrastive_weight": 0, "clm_weight": 0}, "nothing would be learned"),
        ({"pooling": "men"}, "`mean`"),
        ({"similarity": "cosin"}, "`cosine`"),
        ({"contrastive_loss": "infonce"}, "`info_nce`"),
        ({"positive_view": "masks"}, "`masked`"),
        ({"projection_dim": 0}, "`projection_dim`"),
        ({"projection_dim": "128"}, r"`projection_dim` is '128': it must be int \| None"),
        ({"tie_word_embeddings": {}}, "`tie_word_embeddings` is {}: it must be bool"),
        ({"text_config": {"model_type": "vit"}}, "not a text model"),
        ({"text_config": {"model_type": "clip"}}, "not a text model"),
        ({"text_config": {"model_type": "t5"}}, "encoder-decoder"),
        ({"text_config": {"model_type": "bart"}}, "encoder-decoder"),
    ],
    ids=str,
)
def test_refusals_name_the_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        SimMIMConfig(**options)


def test_an_unknown_objective_names_the_nearest():
    with pytest.raises(ValueError, match="`simmim`"):
        SimMIMConfig.from_objective("simmin")


def test_a_speech_model_is_refused_when_it_is_built():
    tiny = {"model_type": "wav2vec2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    with pytest.raises(ValueError, match="not text"):
        SimMIMModel(SimMIMConfig(text_config=tiny))


def test_integers_are_numbers():
    config = SimMIMConfig(temperature=1, mlm_weight=2, contrastive_weight=0)
    assert (config.temperature, config.mlm_weight, config.contrastive_weight) == (1, 2, 0)


def test_a_folder_of_a_newer_version_loads_with_a_warning(tmp_path, caplog):
    SimMIMConfig(temperature=0.3).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"option_of_the_future": 1}))
    config = SimMIMConfig.from_pretrained(tmp_path)
    assert config.temperature == 0.3
    assert "option_of_the_future" in caplog.text
    assert "upgrade" in caplog.text


def test_a_folder_of_this_version_loads_without_a_warning(tmp_path, caplog):
    SimMIMConfig(text_config=text_config("modernbert")).save_pretrained(tmp_path)
    SimMIMConfig.from_pretrained(tmp_path)
    assert not caplog.text


def test_changes_at_loading_are_checked_too(tmp_path):
    SimMIMConfig().save_pretrained(tmp_path)
    assert SimMIMConfig.from_pretrained(tmp_path, temperature=0.5).temperature == 0.5
    with pytest.raises(ValueError, match="above 0"):
        SimMIMConfig.from_pretrained(tmp_path, temperature=0)
    with pytest.raises(ValueError, match="`mean`"):
        SimMIMConfig.from_pretrained(tmp_path, pooling="men")


def test_two_configs_do_not_share_the_default_backbone():
    first, second = SimMIMConfig(), SimMIMConfig()
    first.vocab_size = 10
    assert second.vocab_size != 10


def test_options_for_any_model_are_accepted():
    config = SimMIMConfig(num_labels=3, output_hidden_states=True, name_or_path="x", architectures=["SimMIMModel"])
    assert config.num_labels == 3
    assert config.output_hidden_states
