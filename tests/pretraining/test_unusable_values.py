"""Whatever word an option of `simmim pretrain` is given, the command takes it or refuses it in one clear line."""

import contextlib
import io
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from simmim_hf.cli import main
from simmim_hf.options import REFUSED, option_names
from simmim_hf.pretraining.options import PRETRAINING

# Those of transformers change the state of the whole process.
OF_TRANSFORMERS = {option.name for option in fields(TrainingArguments)}
NAMES = sorted({*option_names(PRETRAINING)} - OF_TRANSFORMERS - {"overwrite_output_dir"})
NUMBERS = ["nan", "inf", "-1", "0", "1", "0.5", "1e-30", "1e300", "99999999999999999999", "1_000", "1,5", "٣"]
WORDS = ["", " ", "x", "None", "true", "名前", "a\nb", "--", "{", "[]", '{"a": 1}', "a=1", "/dev/null", "x" * 5000]


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(name=st.sampled_from(NAMES), word=st.sampled_from([*NUMBERS, *WORDS]) | st.text(max_size=5))
def test_any_word_for_an_option_is_taken_or_refused_in_one_line(tmp_path_factory, name, word):
    errors = io.StringIO()
    words = ["pretrain", "--train_file", "no-such-file.txt", "--use_cpu", "--report_to", "none"]
    words += ["--output_dir", str(tmp_path_factory.getbasetemp() / "run"), f"--{name}={word}"]
    with contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as refusal:
        main(words)
    said = errors.getvalue().strip().splitlines()[-1]
    assert refusal.value.code == REFUSED and said.startswith("simmim pretrain: error: ") and len(said) < 1500
    assert name in said or "no-such-file.txt" in said or repr(word)[1:-1] in said, said
