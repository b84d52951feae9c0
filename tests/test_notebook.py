"""examples/first_steps.ipynb runs from top to bottom, without internet access, and keeps what it promises."""

import json
import re

import pytest
from helpers import EXAMPLES, environment, run_python

PATH = EXAMPLES / "first_steps.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
# As in a notebook, the value of an expression is shown.
RUN = "import ast, sys; exec(compile(ast.Interactive(ast.parse(sys.argv[1]).body), 'notebook', 'single'))"


def sources(cell_type: str) -> list[str]:
    return ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == cell_type]


def test_the_notebook_is_whole_and_has_no_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] in ("markdown", "code") and cell["metadata"] == {}
        assert len(cell["source"]) <= 25, cell["id"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_the_links_of_the_notebook_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(sources("markdown")))
    assert len(links) > 5
    for link in links:
        file, _, heading = link.partition("#")
        page = (PATH.parent / file).read_text(encoding="utf-8")
        titles = [title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", page, re.MULTILINE)]
        assert not heading or heading in titles, link


@pytest.mark.slow
@pytest.mark.pages
def test_the_notebook_runs_in_its_order(tmp_path):
    variables = {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "TMPDIR": str(tmp_path)}
    code = "\n".join(sources("code"))
    shown = run_python("-c", RUN, code, env=environment(**variables), cwd=tmp_path, timeout=1800).stdout

    def numbers(pattern: str) -> list[float]:
        return [float(found) for found in re.findall(pattern, shown, re.MULTILINE)]

    assert re.search(r"one view .*the other view", shown) and "[MASK]" in shown and "[PAD]" not in shown
    mlm_losses, accuracies = numbers(r"^\d0 +(\d\.\d+) +\d\.\d+$"), numbers(r"^\d0 +\d\.\d+ +(\d\.\d+)$")
    assert len(mlm_losses) == 8 and mlm_losses[-1] < mlm_losses[0] - 1
    assert max(accuracies[1:]) > accuracies[0] > 1 / 127  # of the last ones, some are of short documents

    nearest, guesses = numbers(r"^(\d\.\d{3})  \S+ .*$"), numbers(r"^(\d\.\d{3})  \S+$")
    assert len(nearest) == len(guesses) == 5
    assert nearest == sorted(nearest, reverse=True) and guesses == sorted(guesses, reverse=True)
    untrained, trained, word_overlap = numbers(r"MRR@10 (.+)$")
    assert untrained + 0.05 < trained < word_overlap and "Best: TF-IDF" in shown
    (accuracy,), (most_frequent,) = numbers(r"^accuracy .+: (.+)$"), numbers(r"^always .+: (.+)$")
    assert accuracy > most_frequent + 0.05
    assert not list(tmp_path.glob("tmp*/trained"))
