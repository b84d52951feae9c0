"""How the package is written, in numbers, by drawer: density, idioms, comments, size, complexity, doors, import time.

python benchmarks/code_counts.py [simmim_hf] [--json] [--no_run]

It reads source with `tokenize` and `ast` only, so it counts an older checkout too: give its folder. The options in
`--help` and the seconds of an import are those of that checkout; they start processes, and `--no_run` leaves them out.
"""

import argparse
import ast
import json
import os
import resource
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

NOT_CODE = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case, ast.comprehension)
COMPLEX = 10
IMPORTS = (
    "import simmim_hf",
    "from transformers import AutoModel, AutoTokenizer",
    "from transformers import BertModel",
)
TOTALS = ("files", "lines", "code lines", "tokens", "comment lines", "docstring lines")
IDIOMS = ("parallel assignments", "conditional expressions", "dict splats")


def docstring_lines(tree: ast.Module) -> set[int]:
    """The numbers of the lines that docstrings cover."""
    lines = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) or ast.get_docstring(node) is None:
            continue
        docstring = node.body[0]
        lines.update(range(docstring.lineno, docstring.end_lineno + 1))
    return lines


def is_parallel_assignment(node: ast.AST) -> bool:
    """`a, b = x, y`, unless it swaps the same names or reads shapes."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    targets = node.targets[0]
    if not isinstance(targets, ast.Tuple):
        return False
    names = {ast.unparse(part) for part in targets.elts}
    values = [ast.unparse(part) for part in node.value.elts]
    is_swap = names == set(values)
    reads_shapes = all(".shape" in value for value in values)
    return not is_swap and not reads_shapes


def complexity(function: ast.AST) -> int:
    """Cyclomatic: 1, and 1 for each branch and each further operand of `and` and `or`; inner functions included."""
    paths = 1
    for node in ast.walk(function):
        if isinstance(node, BRANCHES):
            paths += 1
        elif isinstance(node, ast.BoolOp):
            paths += len(node.values) - 1
    return paths


def counts_of_file(path: Path) -> Counter:
    """All counts of one file; each adds up over files."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    docstrings = docstring_lines(tree)
    counts = Counter({"files": 1, "lines": len(source.splitlines()), "docstring lines": len(docstrings)})
    code_lines = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            line = token.start[0]
            counts["comment lines"] += token.type == tokenize.COMMENT
            if token.type not in NOT_CODE and line not in docstrings:
                counts["tokens"] += 1
                code_lines.add(line)
    counts["code lines"] = len(code_lines)
    for node in ast.walk(tree):
        counts["parallel assignments"] += is_parallel_assignment(node)
        counts["conditional expressions"] += isinstance(node, ast.IfExp)
        counts["dict splats"] += node.keys.count(None) if isinstance(node, ast.Dict) else 0
    return counts


def functions_of(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, lines from `def` to the end without the docstring, and complexity of each function of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = docstring_lines(tree)
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            lines = set(range(node.lineno, node.end_lineno + 1))
            yield f"{path.name}:{node.name}", len(lines - docstrings), complexity(node)


def import_graph(package: Path) -> dict[str, set[str]]:
    """Each module by its dotted name, with those of the package that it imports, also inside functions."""
    modules = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(part for part in parts if part != "__init__")] = path
    graph = {}
    for name, path in modules.items():
        around = name if path.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                source = resolve_name("." * node.level + (node.module or ""), around).rstrip(".")
                imported = (f"{source}.{alias.name}" for alias in node.names)
                graph[name].update(each if each in modules else source for each in imported)
    return graph


def within(graph: dict[str, set[str]], names: set[str]) -> dict[str, set[str]]:
    """The part of a graph between some modules."""
    return {name: (graph[name] & names) - {name} for name in names}


def floors(graph: dict[str, set[str]]) -> int:
    """How many modules the longest chain of imports has; 0 where the imports run in a circle."""
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError:
        return 0
    count = 0
    while sorter.is_active():
        sorter.done(*sorter.get_ready())
        count += 1
    return count


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of a circle of imports; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def summary(paths: list[Path], graph: dict[str, set[str]]) -> dict:
    """Counts of some files, with the densities that they give; `graph` holds the imports between them."""
    counts = sum((counts_of_file(path) for path in paths), Counter())
    functions = [function for path in paths for function in functions_of(path)]
    longest = max(functions, key=lambda function: function[1], default=("", 0, 0))
    thousands = counts["lines"] / 1000
    result = {name: counts[name] for name in TOTALS}
    result["tokens a code line"] = round(counts["tokens"] / max(counts["code lines"], 1), 2)
    for name in IDIOMS:
        result[f"{name} per 1,000 lines"] = round(counts[name] / thousands, 1)
    result["comment lines, %"] = round(100 * counts["comment lines"] / counts["lines"], 1)
    result["longest function"] = longest[1]
    result["its name"] = longest[0]
    result[f"functions of complexity over {COMPLEX}"] = sum(function[2] > COMPLEX for function in functions)
    result["imports within"] = sum(map(len, graph.values()))
    result["floors"] = floors(graph)
    return result


def run(package: Path, *words: str) -> tuple[str, float]:
    """Output and seconds of user time of a fresh Python that finds the package beside its folder."""
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    process = subprocess.run(
        [sys.executable, *words], env=environment, cwd=package.parent, capture_output=True, text=True, check=True
    )
    return process.stdout, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def options_shown(package: Path, option: str) -> int:
    """The options that `simmim pretrain` shows, without those of the help itself."""
    shown, _ = run(package, "-m", "simmim_cli", "pretrain", option)
    options = [line for line in shown.splitlines() if line.startswith("  --")]
    return sum(not line.startswith("  --help") for line in options)


def type_errors(package: Path) -> str:
    """The last line of mypy without any settings, in which torch and transformers are `Any`."""
    words = ["-m", "mypy", "--config-file=", "--follow-imports=skip", "--ignore-missing-imports", str(package)]
    process = subprocess.run([sys.executable, *words], cwd=package.parent, capture_output=True, text=True)
    return (process.stdout or process.stderr).splitlines()[-1]


def measured(package: Path) -> dict:
    """What only running the package says; seconds are the least of three processes."""
    result = {f"options in pretrain {option}": options_shown(package, option) for option in ("--help", "--help_all")}
    for statement in IMPORTS:
        result[f"{statement}, seconds"] = round(min(run(package, "-c", statement)[1] for _ in range(3)), 2)
    result["mypy"] = type_errors(package)
    return result


def table(drawers: dict[str, dict]) -> str:
    """A Markdown table: a row for each count, a column for each drawer."""
    rows = [["", *drawers], ["---", *["---:"] * len(drawers)]]
    for count in next(iter(drawers.values())):
        rows.append([count, *(str(counts[count]) for counts in drawers.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", type=Path, default=Path("simmim_hf"), help="the folder of the package")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--no_run", action="store_true", help="count source only: start no process")
    arguments = parser.parse_args()
    package = arguments.package.resolve()
    files = sorted(package.rglob("*.py"))
    if not files:
        parser.error(f"`{arguments.package}` has no .py files: give the folder of the package.")

    graph = import_graph(package)
    drawers = {"all": summary(files, within(graph, set(graph) - {package.name}))}
    for folder in sorted({path.parent for path in files}):
        name = "top level" if folder == package else folder.relative_to(package).as_posix()
        around = ".".join(folder.relative_to(package.parent).parts)
        inside = {module for module in graph if module.rpartition(".")[0] == around}
        drawers[name] = summary([path for path in files if path.parent == folder], within(graph, inside))
    whole = {"circle of imports": " -> ".join(circle(graph)) or "none"}
    if not arguments.no_run:
        whole |= measured(package)

    if arguments.json:
        print(json.dumps({"drawers": drawers, "whole": whole}, indent=2))
        return
    print(table(drawers), end="\n\n")
    for name, value in whole.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
