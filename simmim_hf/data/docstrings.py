"""The built-in corpus: the documentation inside the installed Python, torch and transformers, read as text."""

import ast
import functools
import gc
import importlib.util
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset
from datasets.utils import tqdm

# The parts of a docstring that are not prose: code, the name of a parameter before its description, markup.
_CODE_DIRECTIVE = re.compile(r"\.\. *(code|math|test|image|plot|figure|doctest|graphviz|_)")
_PARAMETER = re.compile(r"([-*`\w][\w., *`]* ?\([^)]*\) ?:|:\w+( [\w*]+)*:|[\w*`]+ ?:)(\s+|$)")
_ROLE = re.compile(r":[\w:]+:`~?([^`]*)`|\[`~?([^`\]]*)`\](\([^)]*\))?")
_NOISE = re.compile(r"<[^<>]*>|`+|\*\*(?=\w)|(?<=\w)\*\*|https?://\S+")


@functools.cache
def built_in_corpus() -> Dataset:
    """The docstrings of the installed Python standard library, torch and transformers: English text for offline use.

    The source files are parsed, not imported. Cleaned of code and markup, without repeats, in the order of the paths.

    The rows are kept in the cache of `datasets` until one of the files changes.

    Returns:
        One row per docstring: `text`, `summary` (its first sentence), `body` (the rest, possibly empty) and `source`
        (such as `torch/nn/modules/linear.py`).
    """
    folders = {"python": sysconfig.get_paths()["stdlib"]}
    for package in ("torch", "transformers"):
        spec = importlib.util.find_spec(package)
        if spec and spec.submodule_search_locations:
            folders[package] = spec.submodule_search_locations[0]
    files = [Path(folder, path) for folder in folders.values() for path in _modules(folder)]
    newest = max(file.stat().st_mtime_ns for file in [*files, Path(__file__)])  # this file too: it reads the others
    state = {"folders": folders, "files": len(files), "newest": newest}
    return Dataset.from_generator(_scanned, gen_kwargs=state)


def retrieval_pairs(corpus: Dataset) -> Dataset:
    """`query` and `document`, the summary and the body of each docstring with ten words or more in its body, and
    `source`, its package."""
    pairs = corpus.filter(lambda row: len(row["body"].split()) >= 10)
    pairs = pairs.map(lambda row: {"source": row["source"].partition("/")[0]})
    pairs = pairs.select_columns(["summary", "body", "source"])
    return pairs.rename_columns({"summary": "query", "body": "document"})


def _scanned(folders: dict[str, str | Path], **state) -> Iterator[dict[str, str]]:
    """The rows of `scan_docstrings`; where the state of the files is another, so is the name in the cache."""
    yield from scan_docstrings(folders)


def scan_docstrings(folders: dict[str, str | Path]) -> list[dict[str, str]]:
    """Collect the prose of all docstrings below some folders.

    Args:
        folders: the folder of each name; the name begins the `source` of its rows.

    Returns:
        The rows of [`built_in_corpus`].
    """
    files: list[tuple[str, Path]] = []
    for name, folder in folders.items():
        files += [(f"{name}/{path}", Path(folder, path)) for path in _modules(folder)]
    rows: list[dict[str, str]] = []
    raw_seen: set[str] = set()
    seen: set[str | tuple[str, str]] = set()
    for source, file in tqdm(sorted(files), desc="Reading docstrings", unit=" files"):
        for docstring in _docstrings(file):
            if docstring in raw_seen:
                continue
            raw_seen.add(docstring)
            text = clean_docstring(docstring)
            if len(text.split()) < 8:
                continue
            summary, body = _split_summary(text)
            # Models repeat each other's documentation under other names, so names and numbers do not count here:
            # only plain lower-case words. A repeated summary, or a repeated start of the body, is a repeat.
            parts = {"summary": _plain_words(summary), "body": _plain_words(body)[:100]}
            keys = {(part, words) for part, words in parts.items() if len(words) >= 20}
            if text in seen or not seen.isdisjoint(keys):
                continue
            seen |= keys | {text}
            rows.append({"text": text, "summary": summary, "body": body, "source": source})
    return rows


def _modules(folder: str | Path) -> Iterator[str]:
    skipped = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "__pycache__"}
    for root, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if name not in skipped and not name.startswith(".")]
        for name in names:
            if name.endswith(".py") and not name.startswith("test_"):
                yield Path(root, name).relative_to(folder).as_posix()


def _docstrings(file: Path) -> Iterator[str]:
    collecting = gc.isenabled()
    gc.disable()  # a tree has no cycles, yet building one sets off collections that scan all of torch: twice as slow
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError):
        return
    finally:
        if collecting:
            gc.enable()
    pending: list[ast.AST] = [tree]
    while pending:  # statements only: walking the expressions too would take three times as long
        node = pending.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield docstring
        children: list[ast.AST] = []
        for block in ("body", "handlers", "orelse", "finalbody"):
            children += getattr(node, block, [])
        statements = [child for child in children if isinstance(child, (ast.stmt, ast.excepthandler))]
        pending += reversed(statements)  # the first is popped first


def clean_docstring(docstring: str) -> str:
    """The prose of a docstring: no code, doctests, formulas, headings, underlines or markup; one line a paragraph."""
    paragraphs: list[list[str]] = [[]]
    block: int | None = None  # the indent that a block of code has to exceed
    fenced = False
    doctest = False
    for line in inspect.cleandoc(docstring).splitlines():
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if stripped.startswith("```"):
            fenced = not fenced
            continue
        if not stripped:
            doctest = False
            paragraphs.append([])
            continue
        if block is not None and indent <= block:
            block = None
        doctest = doctest or stripped.startswith((">>>", "... "))
        if fenced or doctest or block is not None:
            continue
        if stripped.startswith(".."):
            if _CODE_DIRECTIVE.match(stripped):
                block = indent
            after_name = stripped.partition("::")[2].strip()
            stripped = after_name if block is None else ""
        elif stripped.endswith("::"):
            block = indent
            stripped = stripped[:-1]
        parameter = _PARAMETER.match(stripped)
        if parameter:
            stripped = stripped[parameter.end() :]
        stripped = stripped.lstrip("-*+# ")
        stripped = _NOISE.sub("", _ROLE.sub(r"\1\2", stripped))
        letters = sum(character.isalpha() or character.isspace() for character in stripped)
        if letters > 0.7 * len(stripped):
            paragraphs[-1].append(stripped)
    texts = (" ".join(" ".join(lines).split()) for lines in paragraphs)
    return "\n".join(text for text in texts if " " in text)


def _split_summary(text: str) -> tuple[str, str]:
    end = re.search(r"\n|(?<!e\.g\.)(?<!i\.e\.)(?<=[.!?])\s+(?=[A-Z])", text)
    if end is None:
        return text, ""
    return text[: end.start()], text[end.end() :]


def _plain_words(text: str) -> str:
    return " ".join(re.findall(r"\b[a-z]+\b", text[:500]))
