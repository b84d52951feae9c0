"""One statement a line: no assignment of several unrelated things, no long or nested conditional expression."""

import ast
from pathlib import Path

import pytest

import simmim_hf

PACKAGE = Path(simmim_hf.__file__).parent
HALF_A_LINE = 60
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
    assert not lines, f"{file}, lines {lines}: write one assignment a line, and plain `if`s."


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
