"""Files of tasks, for several tests of this folder."""

import json
import random

# Quotation marks and commas that no format may trip over.
PAIRS = [('"quoted bird', "a stone", 4.5), ("the river", "it's \"far", 0.0), ("one, two", "three", 2.25)]


def sentences(count, seed=0):
    generator = random.Random(seed)
    return [" ".join(f"w{generator.randrange(59)}" for _ in range(generator.randint(2, 9))) for _ in range(count)]


def write_lines(path, rows):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_tasks(folder) -> dict[str, str]:
    """A task of each kind."""
    texts = sentences(60)
    pairs = zip(texts[:20], texts[20:40], strict=True)
    scored = [{"sentence1": a, "sentence2": b, "score": i % 6} for i, (a, b) in enumerate(pairs)]
    found = [{"query": texts[i], "document": texts[30 + i // 2], "source": "ab"[i % 2]} for i in range(24)]
    minimal = [{"sentence_good": texts[i], "sentence_bad": texts[20 + i]} for i in range(20)]
    labelled = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)]
    write_lines(folder / "given" / "train.jsonl", labelled[:40])
    write_lines(folder / "given" / "test.jsonl", labelled[40:])
    write_lines(folder / "plain" / "train.txt", [text + "\n" for text in texts])
    write_lines(folder / "plain" / "test.txt", [text + "\n" for text in sentences(12, seed=1)])
    return {
        "similarity": write_lines(folder / "pairs.jsonl", scored),
        "retrieval": write_lines(folder / "found.jsonl", found),
        "transfer": write_lines(folder / "labelled.jsonl", labelled),
        "given split": str(folder / "given"),
        "minimal pairs": write_lines(folder / "minimal.jsonl", minimal),
        "language modelling": str(folder / "plain"),
    }
