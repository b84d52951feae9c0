"""One statement a line: no parallel assignment of unrelated things, no long or nested conditional expression."""

import ast
from pathlib import Path

import pytest

import simmim_hf

PACKAGE = Path(simmim_hf.__file__).parent
PLAIN = ["model"]  # the folders that are held to it
LONGEST = 60  # characters of a conditional expression: half a line


def faults(source: str) -> list[str]:
    """The statements that are two in one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Tuple)
            and isinstance(node.value, ast.Tuple)
        ):
            targets = sorted(ast.unparse(part) for part in node.targets[0].elts)
            values = sorted(ast.unparse(part) for part in node.value.elts)
            if targets != values:  # equal where things are swapped
                found.append(ast.unparse(node))
        elif isinstance(node, ast.IfExp):
            parts = (node.test, node.body, node.orelse)
            is_nested = any(isinstance(inner, ast.IfExp) for part in parts for inner in ast.walk(part))
            if is_nested or len(ast.unparse(node)) > LONGEST:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.NamedExpr):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("folder", PLAIN)
def test_a_line_is_one_statement(folder):
    found = {str(path): faults(path.read_text(encoding="utf-8")) for path in (PACKAGE / folder).rglob("*.py")}
    assert not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize(
    ("line", "is_fault"),
    [
        ("rows, columns = [], 3", True),
        ("first, second = second, first", False),
        ("batch, length = x.shape", False),
        ("size = 1 if small else 2", False),
        ("size = 1 if small else 2 if large else 3", True),
        ("size = function(argument, another) if a_condition and another_one else default", True),
        ("found = (size := 3)", True),
    ],
)
def test_what_is_one_statement(line, is_fault):
    assert bool(faults(line)) == is_fault
