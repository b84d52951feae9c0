"""The pages of this repository as a site that can be searched:

pip install ".[docs]" && sphinx-build -W -c docs . site     (then open site/index.html)
"""

from pathlib import Path

from simmim_hf import __version__

project, release, copyright = "simmim_hf", __version__, "the authors of simmim_hf"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]
html_theme = "furo"
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "examples/**.md", "benchmarks/**.md", "model_cards/**.md"]
suppress_warnings = ["toc.not_included"]  # results and reports, to which the pages lead
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # they stand in the docstrings

CONTENTS = """
```{toctree}
:hidden:

docs/adapt
docs/pretrain
docs/objectives
docs/compare
docs/evaluate
docs/export
docs/use
docs/distributed
docs/figures
docs/ecosystem
docs/articles
docs/api
examples/README
examples/comparisons/README
benchmarks/README
model_cards/README
CONTRIBUTING
CHANGELOG
RELEASE
中文 <README.zh>
```
"""


def add_contents(app, name: str, source: list[str]) -> None:
    """GitHub shows README.md, and knows no table of contents."""
    if name == root_doc:
        source[0] += CONTENTS


def write_index(app, error) -> None:
    if error is None:
        Path(app.outdir, "index.html").write_text('<meta http-equiv="refresh" content="0; url=README.html">\n')


def setup(app) -> None:
    app.connect("source-read", add_contents)
    app.connect("build-finished", write_index)
