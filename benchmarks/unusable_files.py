"""Files and folders that no one should have: damaged, of a wrong kind, or hardly readable."""

import gzip
import io
import json
import lzma
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import zstandard

WORDS = "the old river runs under a small stone bridge while green birds sing above quiet water every morning".split()
COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
NAMES = [
    "data",
    "dä ta",
    "名前",
    "[1]*?",
    "a%20b",
    "a\nb",
    "x" * 200,
    "-data",
    "a.b.jsonl",
    "{x}",
    "$HOME",
    "a,b",
    "'",
]


def lines(count: int) -> list[str]:
    """Texts of 3 to 11 words and a number, all different."""
    return [" ".join(WORDS[i * j % len(WORDS)] for j in range(1, 4 + i % 9)) + f" {i}" for i in range(1, count + 1)]


# Rows that are no rows of texts: a list of dicts of which the writers make a file.
def plain(rng: random.Random) -> list[dict]:
    return [{"text": text} for text in lines(40)]


def blank(rng: random.Random) -> list[dict]:
    return [{"text": rng.choice(["", " ", "\t", None])} for _ in range(40)]


def numbers(rng: random.Random) -> list[dict]:
    return [{"text": i} for i in range(40)]


def mixed(rng: random.Random) -> list[dict]:
    values = [None, 1, 0.5, True, "a b c", [], ["a"], {"a": 1}]
    return [*plain(rng), *({"text": rng.choice(values)} for _ in range(10))]


def nested(rng: random.Random) -> list[dict]:
    return [{"text": {"text": row["text"]}} for row in plain(rng)]


def lists(rng: random.Random) -> list[dict]:
    return [{"text": row["text"].split()} for row in plain(rng)]


def other_names(rng: random.Random) -> list[dict]:
    names = rng.choice([["Text"], ["a", "b"], [""], ["text "], ["id", "text"], ["negative"], ["text", "negative"]])
    return [{name: row["text"] for name in names} for row in plain(rng)]


def changing_names(rng: random.Random) -> list[dict]:
    return [*plain(rng)[:20], *({"other": row["text"]} for row in plain(rng)[20:])]


def same(rng: random.Random) -> list[dict]:
    return [{"text": "a b c"}] * rng.choice([1, 2, 40])


def few(rng: random.Random) -> list[dict]:
    return plain(rng)[: rng.choice([0, 1, 2, 3])]


def strange(rng: random.Random) -> list[dict]:
    letters = [
        "\x00",
        "\u2028",
        "\x1c",
        "\x85",
        "\ufeff",
        "\U0001f600",
        "\x1b",
        "e\u0301",
        "\u202e",
        "\r",
        "\n\n",
        '"',
        ",",
    ]
    return [{"text": row["text"].replace(" ", rng.choice(letters), 2)} for row in plain(rng)]


def unwritten(rng: random.Random) -> list[dict]:
    return [*plain(rng), {"text": "a \ud800 b"}]


def long(rng: random.Random) -> list[dict]:
    return [*plain(rng), {"text": rng.choice(["x", "x ", "é", "([", "1"]) * 30_000}]


ROWS = [
    plain,
    plain,
    blank,
    numbers,
    mixed,
    nested,
    lists,
    other_names,
    changing_names,
    same,
    few,
    strange,
    unwritten,
    long,
]


def write_text(rows: list[dict], rng: random.Random) -> bytes:
    return _encoded("\n".join(str(value) for row in rows for value in row.values()))


def write_jsonl(rows: list[dict], rng: random.Random) -> bytes:
    bad = rng.choice(
        ["", "", "", "", "\n\n", "{", "null", "[]", '"text"', "[" * 5000, "1", '{"text": "a", "text": "b"}', "NaN"]
    )
    return "\n".join([*map(json.dumps, rows), bad]).encode()


def write_json(rows: list[dict], rng: random.Random) -> bytes:
    return json.dumps(
        rng.choice([rows, rows, rows, {"data": rows}, {"text": [r.get("text") for r in rows]}, [rows], 1])
    ).encode()


def write_csv(rows: list[dict], rng: random.Random, separator: str = ",") -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = [[str(row.get(name, "")) for name in names] for row in rows]
    change = rng.choice(["", "", "", "ragged", "more", "less", "quote", "no header", "twice"])
    if change == "ragged":
        table = [row * rng.choice([1, 1, 1, 2]) for row in table]
    if change == "more":
        table = [[*row, ""] for row in table]
    if change == "less":
        names = [*names, "more"]
    if change == "quote":
        table.insert(rng.randrange(len(table) + 1), ['"' + "a b"])
    if change == "twice":
        names, table = names * 2, [row * 2 for row in table]
    header = [] if change == "no header" else [names]
    return _encoded("\n".join(separator.join(row) for row in [*header, *table]))


def write_tsv(rows: list[dict], rng: random.Random) -> bytes:
    return write_csv(rows, rng, "\t")


def write_parquet(rows: list[dict], rng: random.Random) -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["text"]
    try:
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    except (pyarrow.ArrowException, UnicodeEncodeError):
        table = pyarrow.table({name: [_encoded(repr(row.get(name))) for row in rows] for name in names})
    if rng.random() < 0.2 and not pyarrow.types.is_nested(table.column(0).type):
        table = table.set_column(0, names[0], table.column(0).dictionary_encode())
    written = io.BytesIO()
    pyarrow.parquet.write_table(table, written)
    return written.getvalue()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


FORMATS = {".txt": write_text, ".jsonl": write_jsonl, ".json": write_json, ".csv": write_csv, ".tsv": write_tsv}
FORMATS |= {".parquet": write_parquet}


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bytes with something that goes wrong with bytes."""
    at = rng.randrange(len(content) + 1)
    junk = rng.randbytes(rng.choice([1, 8, 200]))
    return rng.choice(
        [
            content[:at],
            content[:at] + junk + content[at:],
            content[:at] + junk + content[at + len(junk) :],
            content[:at] + b"\x00" * 10 + content[at:],
            content + junk,
            content * 2,
            junk,
            b"",
            b"\n" * 50,
            b"\xef\xbb\xbf" + content,
            content.replace(b"a", b"\xe9", 3),
            content.decode("latin-1").encode("utf-16"),
            content.replace(b"\n", b"\r"),
            content.replace(b"\n", b"\r\n"),
        ]
    )


def damaged_file(rng: random.Random, folder: Path) -> str:
    """Writes a file of text, or what goes by the name of one, into a folder, and returns its path."""
    ending, compression = rng.choice(list(FORMATS)), rng.choice(["", "", "", *COMPRESSIONS])
    content = FORMATS[ending](rng.choice(ROWS)(rng), rng)
    if rng.random() < 0.4:
        content = damaged_bytes(rng, content)
    if rng.random() < 0.9:
        content = COMPRESSIONS[compression](content)
    if compression and rng.random() < 0.4:
        content = damaged_bytes(rng, content)
    if rng.random() < 0.1:
        ending = rng.choice(list(FORMATS))  # of another kind than it says
    name = rng.choice([*["data"] * 10, *NAMES]) + ending + compression
    path = folder / (name.upper() if rng.random() < 0.05 else name)
    form = rng.random()
    if form < 0.9:
        path.write_bytes(content)
    elif form < 0.92:
        path.mkdir()
    elif form < 0.94:
        path.symlink_to(path.name)
    elif form < 0.96:
        os.mkfifo(path)
    else:  # a folder with it and others
        path = folder / rng.choice(["texts", "te xts.txt"])
        path.mkdir()
        (path / name).write_bytes(content)
        (path / "b.txt").write_text("\n".join(lines(30)))
        (path / "loop").symlink_to(".")
    return rng.choice([str(path), path.name]) if not path.name.startswith("-") else str(path)


def damaged_folder(rng: random.Random, folder: Path, names: Sequence[str] | None = None) -> str:
    """Damages a file of a saved model, and returns its name."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    path = rng.choice([file for file in files if not names or file.name in names])
    if rng.random() < 0.5:
        path = rng.choice(
            [file for file in files if file.suffix in (".json", ".safetensors") and (not names or file.name in names)]
        )
    kind = rng.random()
    if kind < 0.2:
        path.unlink()
    elif kind < 0.3:
        path.unlink()
        path.mkdir()
    elif kind < 0.45:
        path.write_text(rng.choice(["{}", "[]", "null", "1", "", "{", '{"a": 1}', '{"model_type": "x"}', "\x00"]))
    elif kind < 0.7 and path.suffix == ".json":
        path.write_text(json.dumps(_other_value(rng, json.loads(path.read_text()))))
    else:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    if rng.random() < 0.05:
        shutil.rmtree(folder)
    return path.name


def _other_value(rng: random.Random, content):
    """A JSON value of which one part is another."""
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(list(content))
        if rng.random() < 0.2:
            return {name: value for name, value in content.items() if name != key}
        return {**content, key: _other_value(rng, content[key])}
    if isinstance(content, list) and content and rng.random() < 0.9:
        at = rng.randrange(len(content))
        return [*content[:at], _other_value(rng, content[at]), *content[at + 1 :]]
    return rng.choice([None, 0, -1, 1, 10**12, 0.5, "x", "", [], {}, True])
