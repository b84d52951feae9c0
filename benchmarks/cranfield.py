"""The Cranfield collection for `adapt.py`: 1,400 abstracts of aeronautics as text, and its questions as a task.

git clone https://github.com/oussbenk/cranfield-trec-dataset
python benchmarks/cranfield.py --source cranfield-trec-dataset --output_dir .

writes cranfield.txt, a document a line, and cranfield-queries.jsonl, a row of `query` and `document` for each pair of
them that was judged relevant (Cleverdon 1967).
"""

import argparse
import json
import re
from pathlib import Path


def elements(xml: str, name: str) -> list[str]:
    """What stands in each element of a name, on one line."""
    found = re.findall(rf"<{name}>(.*?)</{name}>", xml, flags=re.DOTALL)
    return [" ".join(text.split()) for text in found]


def documents(xml: str) -> dict[int, str]:
    """Title and abstract by number; most abstracts begin with the title."""
    found = {}
    for document in re.findall(r"<doc>(.*?)</doc>", xml, flags=re.DOTALL):
        (number,), (title,), (text,) = (elements(document, name) or [""] for name in ("docno", "title", "text"))
        found[int(number)] = f"{title} {text.removeprefix(title).strip()}".strip()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of the collection in the format of TREC")
    parser.add_argument("--output_dir", type=Path, required=True)
    arguments = parser.parse_args()
    texts = documents((arguments.source / "cran.all.1400.xml").read_text(encoding="utf-8"))
    queries = elements((arguments.source / "cran.qry.xml").read_text(encoding="utf-8"), "title")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    with open(arguments.output_dir / "cranfield.txt", "w", encoding="utf-8") as file:
        file.writelines(text + "\n" for text in texts.values() if text)
    with open(arguments.output_dir / "cranfield-queries.jsonl", "w", encoding="utf-8") as file:
        for line in (arguments.source / "cranqrel.trec.txt").read_text(encoding="utf-8").splitlines():
            query, _, document, relevance = map(int, line.split())
            if relevance > 0 and texts[document]:  # the judgements number the queries from 1, in their order
                file.write(json.dumps({"query": queries[query - 1], "document": texts[document]}) + "\n")


if __name__ == "__main__":
    main()
