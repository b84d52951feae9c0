"""`import simmim_hf` registers the models and loads nothing that only training or evaluation need."""

import json

import pytest
from helpers import run_python

import simmim_hf
from simmim_hf.model.configuration_simmim import AUTO_MAP

SLOW_TO_IMPORT = ["datasets", "evaluate", "matplotlib", "pandas", "scipy.stats", "sklearn", "transformers.trainer"]

FRESH_PROCESS = f"""
import json, sys
import simmim_hf

loaded = [name for name in {SLOW_TO_IMPORT} if name in sys.modules]
import transformers
registered = {{
    name: getattr(transformers, name)._model_mapping[simmim_hf.SimMIMConfig].__name__
    for name in {sorted(set(AUTO_MAP) - {"AutoConfig"})}
}}
registered["AutoConfig"] = type(transformers.AutoConfig.for_model("simmim")).__name__
print(json.dumps([loaded, registered]))
"""


@pytest.mark.slow
def test_importing_the_package_registers_its_classes_and_loads_no_slow_library():
    loaded, registered = json.loads(run_python("-c", FRESH_PROCESS).stdout)
    assert loaded == []
    assert registered == {name: reference.split(".")[1] for name, reference in AUTO_MAP.items()}


def test_every_public_name_is_listed_and_found():
    assert set(simmim_hf.__all__) <= set(dir(simmim_hf))
    for name in simmim_hf.__all__:
        assert getattr(simmim_hf, name).__name__ == name


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="SimMIMForNothing"):
        _ = simmim_hf.SimMIMForNothing
