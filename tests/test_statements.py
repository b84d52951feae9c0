"""One statement a line: no assignment of several unrelated things, no long or nested conditional expression."""

import ast
from pathlib import Path

import pytest

import simmim_hf

PACKAGE = Path(simmim_hf.__file__).parent
HALF_A_LINE = 60
# How many each file still has. A number may only become smaller, and a file without one has none.
ALLOWED = {
    "options.py": 10,
    "pretraining/adapt.py": 4,
    "pretraining/build.py": 2,
    "pretraining/checks.py": 2,
    "pretraining/console.py": 1,
    "pretraining/options.py": 2,
    "training/agreement.py": 2,
    "training/checkpoints.py": 3,
    "training/curves.py": 1,
    "training/facts.py": 1,
    "training/measuring.py": 1,
    "training/signals.py": 2,
}
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def is_parallel_assignment(node: ast.AST) -> bool:
    """`a, b = x, y`, unless the names are those of the values: a swap."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    targets = node.targets[0]
    if not isinstance(targets, ast.Tuple):
        return False
    return {ast.unparse(part) for part in targets.elts} != {ast.unparse(part) for part in node.value.elts}


def is_hard_to_read(node: ast.AST) -> bool:
    """A conditional expression that is longer than half a line, or has another one inside."""
    if not isinstance(node, ast.IfExp):
        return False
    is_nested = any(isinstance(inner, ast.IfExp) for inner in ast.walk(node) if inner is not node)
    return is_nested or len(ast.unparse(node)) > HALF_A_LINE


def dense_lines(source: str) -> list[int]:
    """The numbers of the lines that hold more than one statement should."""
    nodes = ast.walk(ast.parse(source))
    return sorted(node.lineno for node in nodes if is_parallel_assignment(node) or is_hard_to_read(node))


@pytest.mark.parametrize("file", FILES)
def test_a_line_holds_one_statement(file):
    lines = dense_lines((PACKAGE / file).read_text(encoding="utf-8"))
    allowed = ALLOWED.get(file, 0)
    assert len(lines) <= allowed, f"{file} has {len(lines)}, and {allowed} may be: write plain `if`s. Lines {lines}"


def test_every_file_with_a_number_exists():
    assert set(ALLOWED) <= set(FILES)


@pytest.mark.parametrize(
    "line",
    [
        "first, second = one, {}",
        "a, b = b, c",
        "value = x if a else (y if b else z)",
        f"value = {'x' * 30} if {'y' * 30} else z",
    ],
)
def test_a_dense_line_is_found(line):
    assert dense_lines(f"import os\n{line}") == [2]


@pytest.mark.parametrize(
    "line", ["a, b = b, a", "rows, width = states.shape", "first, *rest = words", "x = a if b else c"]
)
def test_a_plain_line_is_none(line):
    assert not dense_lines(line)
