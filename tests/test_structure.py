"""Which part of the package may import which, read from the source: an import inside a function counts as well."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest
from helpers import tiny_model

import simmim_hf
from simmim_hf.model.configuration_simmim import AUTO_MAP, remote_files

PACKAGE = Path(simmim_hf.__file__).parent
TOP_LEVEL = {"options", "records", "metric_catalogue", "tables", "folders", "memory"}
# What each part may import beside its own files. The package itself gives names and is imported by none of them.
MAY_IMPORT = {
    "records": TOP_LEVEL,
    "folders": TOP_LEVEL,
    "memory": TOP_LEVEL,
    "metric_catalogue": TOP_LEVEL,
    "tables": TOP_LEVEL,
    "options": {"model"} | TOP_LEVEL,
    "model": set(),
    "data": {"model"} | TOP_LEVEL,
    "evaluation": {"model", "data"} | TOP_LEVEL,
    "training": {"model", "data", "evaluation"} | TOP_LEVEL,
    "pretraining": {"model", "data", "evaluation", "training", "export"} | TOP_LEVEL,
    "comparison": {"model", "data", "evaluation", "training", "pretraining"} | TOP_LEVEL,
    "export": {"model", "data"} | TOP_LEVEL,
    "cli": {"data", "evaluation", "training", "pretraining", "comparison", "export"} | TOP_LEVEL,
}
WITH_A_CHECKPOINT = {"torch", "transformers", "safetensors"}


def name_of(file: str | Path) -> str:
    """The dotted name of a file of the package."""
    return ".".join(["simmim_hf", *(part for part in Path(file).with_suffix("").parts if part != "__init__")])


MODULES = {name_of(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(name: str, path: Path) -> Iterator[str]:
    """The dotted names of all that a module imports: of modules, or of what is in them."""
    around = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), around).rstrip(".")
            yield from (f"{source}.{alias.name}" for alias in node.names)


def depends_on(name: str, path: Path) -> set[str]:
    """The modules of the package that a module imports."""

    def module_of(found: str) -> str:
        return found if found in MODULES else module_of(found.rpartition(".")[0])

    return {module_of(found) for found in imported(name, path) if found.split(".")[0] == "simmim_hf"}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Each module with those that it imports."""
    return {name: depends_on(name, path) for name, path in MODULES.items()}


def with_line(graph: dict[str, set[str]], file: str, line: str, tmp_path: Path) -> dict[str, set[str]]:
    """The graph as it would be with one more line in a file."""
    path = tmp_path / Path(file).name
    path.write_text(f"{(PACKAGE / file).read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    return {**graph, name_of(file): depends_on(name_of(file), path)}


def part_of(module: str) -> str:
    """The drawer of a module, or the module itself at the top level; the package itself is ''."""
    return module.partition(".")[2].split(".")[0]


def forbidden(graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    """The imports that no rule allows."""
    found = {(name, other) for name, others in graph.items() for other in others if part_of(name)}
    return {
        (name, other)
        for name, other in found
        if part_of(other) not in MAY_IMPORT[part_of(name)] | {part_of(name)} or other == "simmim_hf"
    }


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_part_has_a_rule():
    assert {part_of(name) for name in MODULES} == {"", *MAY_IMPORT}


def test_no_part_imports_what_it_must_not_know(graph):
    assert not forbidden(graph)


def test_no_import_runs_in_a_circle(graph):
    assert not circle(graph)
    assert not circle({part: others - TOP_LEVEL for part, others in MAY_IMPORT.items()})


@pytest.mark.parametrize(
    ("file", "line", "other"),
    [
        ("model/losses.py", "from ..options import option", "options"),
        ("model/losses.py", "def later():\n    from simmim_hf.data import collator", "data.collator"),
        ("data/collator.py", "import simmim_hf.training.trainer", "training.trainer"),
        ("evaluation/metrics.py", "from ..training.trainer import SimMIMTrainer", "training.trainer"),
        ("training/card.py", "from .. import comparison", "comparison"),
        ("comparison/report.py", "from ..cli import main", "cli"),
        ("comparison/report.py", "from .. import SimMIMConfig", ""),
        ("records.py", "from .model.losses import gather_rows", "model.losses"),
    ],
)
def test_a_wrong_import_is_found(graph, file, line, other, tmp_path):
    found = forbidden(with_line(graph, file, line, tmp_path))
    assert found == {(name_of(file), f"simmim_hf.{other}".rstrip("."))}


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("model/losses.py", "from .heads import SimMIMForMaskedLM"),
        ("comparison/plots.py", "from . import report"),
    ],
)
def test_a_circle_within_a_drawer_is_found(graph, file, line, tmp_path):
    assert name_of(file) in circle(with_line(graph, file, line, tmp_path))


def test_the_commands_only_call(graph):
    """`cli.py` defines functions, and imports each drawer where a command needs it: `--help` waits for none."""
    tree = ast.parse((PACKAGE / "cli.py").read_text(encoding="utf-8"))
    assert not [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    at_once = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
    assert set(at_once) <= TOP_LEVEL
    assert not [name for name, others in graph.items() if "simmim_hf.cli" in others]


def imported_at_once(path: Path) -> set[str]:
    """The packages that a module imports when it is imported itself."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_the_trainer_is_imported_without_the_libraries_of_evaluation(graph):
    reached, pending = set(), ["simmim_hf.training.trainer"]
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += graph[name]
    packages = {package for name in reached for package in imported_at_once(MODULES[name])}
    assert "torch" in packages
    assert not packages & {"sklearn", "scipy", "evaluate", "matplotlib"}


# What travels with a checkpoint.


def test_the_files_that_travel_are_the_drawer_of_the_model():
    assert set(remote_files()) == {path.name for path in (PACKAGE / "model").iterdir() if path.suffix == ".py"} - {
        "__init__.py"
    }
    assert {reference.split(".")[0] + ".py" for reference in AUTO_MAP.values()} <= set(remote_files())


def test_a_checkpoint_has_exactly_these_files(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.py")} == {
        name: (PACKAGE / "model" / name).read_bytes() for name in remote_files()
    }


@pytest.mark.parametrize("file", remote_files())
def test_a_file_that_travels_needs_its_neighbours_torch_and_transformers_only(file):
    """And names a neighbour as `from .x import y`, the one form that loading with `trust_remote_code` understands."""
    path = PACKAGE / "model" / file
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and f"{node.module}.py" in remote_files(), ast.unparse(node)
    roots = {name.split(".")[0] for name in imported(f"simmim_hf.model.{path.stem}", path)}
    assert roots - {"simmim_hf"} <= WITH_A_CHECKPOINT | sys.stdlib_module_names
