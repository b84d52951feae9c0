"""Search in your own text: the passages nearest to a question, by a SimMIM checkpoint or any other encoder.

    python examples/search.py --model adapted --text notes/ --question "the pump does not start"
    python examples/search.py --model adapted --text notes/          # asks, until an empty line
    python examples/search.py --model adapted --text notes/ --web    # a page in the browser; needs: pip install gradio

The vectors are kept in the folder --index, and made again where the text or the model has changed. A question is
compared with every passage: a matter of milliseconds for 100,000 of them. Beyond that, give the vectors to faiss.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_from_disk

from simmim_hf import encode, records
from simmim_hf.data.corpora import TEXT_UNITS, load_text
from simmim_hf.data.tokenization import load_tokenizer
from simmim_hf.evaluation.encoding import load_encoder


def passages(rows: dict[str, list[str]], words: int) -> dict[str, list[str]]:
    """Documents cut into passages of so many words at most."""
    split = [text.split() for text in rows["text"]]
    return {"text": [" ".join(text[i : i + words]) for text in split for i in range(0, len(text), words)]}


def state_of(model: str) -> dict[str, int]:
    """When the files of a model were written; of a model on the Hub nothing."""
    return {file.name: file.stat().st_mtime_ns for file in sorted(Path(model).glob("*.safetensors"))}


class Search:
    """Passages and their vectors.

    Args:
        model: a folder or a Hub id
        documents: with the column `text`
        index: the folder where the vectors are kept
        words: of a passage, at most
    """

    def __init__(self, model: str, documents: Dataset, index: Path, words: int):
        self.encoder, self.tokenizer = load_encoder(model), load_tokenizer(model)
        self.encoder.to("cuda" if torch.cuda.is_available() else "cpu")
        self.max_length = min(512, self.encoder.max_length, self.tokenizer.model_max_length)
        made_of = {"model": model, "weights": state_of(model), "text": records.fingerprint(documents), "words": words}
        if not (index / "made_of.json").is_file() or json.loads((index / "made_of.json").read_text()) != made_of:
            cut = documents.map(
                passages, batched=True, remove_columns=documents.column_names, fn_kwargs={"words": words}
            )
            cut.save_to_disk(index / "passages")
            np.save(index / "vectors.npy", self.vectors(list(cut["text"]), show_progress=True))
            records.write_json(index / "made_of.json", made_of)
        self.passages = load_from_disk(index / "passages")["text"]
        self.matrix = np.load(index / "vectors.npy", mmap_mode="r")  # (passages, dim), of unit length

    def vectors(self, texts: list[str], **options) -> np.ndarray:
        return encode(self.encoder, texts, self.tokenizer, self.max_length, **options)

    def ask(self, question: str, top: int) -> list[tuple[float, str]]:
        """The nearest passages with their cosines, the nearest first."""
        cosines = self.matrix @ self.vectors([question])[0]  # (passages,)
        return [(float(cosines[row]), self.passages[int(row)]) for row in np.argsort(-cosines)[:top]]


def show(found: list[tuple[float, str]]) -> str:
    return "\n".join(f"{cosine:.3f}  {passage}" for cosine, passage in found)


def open_page(search: Search, top: int) -> None:
    import gradio  # an option of this script, not of the package

    def ask(question: str) -> list[list[str]]:
        return [[f"{cosine:.2f}", passage] for cosine, passage in search.ask(question, top)]

    with gradio.Blocks(title="Search in your own text") as page:
        gradio.Markdown("# Search in your own text")
        question = gradio.Textbox(label="Question")
        columns = {"headers": ["cosine", "passage"], "column_widths": ["20%", "80%"], "wrap": True}
        question.submit(ask, question, gradio.Dataframe(**columns, label="Nearest passages"))
    page.launch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or a Hub id")
    parser.add_argument("--text", nargs="+", required=True, help="files, globs or folders, as of `simmim pretrain`")
    parser.add_argument("--text_unit", choices=TEXT_UNITS, help="what a document is in .txt and .md files")
    parser.add_argument("--words", type=int, default=120, help="longer documents are cut into passages of so many")
    parser.add_argument("--index", type=Path, default=Path("search-index"), help="where the vectors are kept")
    parser.add_argument("--top", type=int, default=5, help="how many passages are shown")
    parser.add_argument("--question", nargs="+", help="default: asks on the terminal")
    parser.add_argument("--web", action="store_true", help="a page in the browser")
    args = parser.parse_args()

    search = Search(args.model, load_text(args.text, text_unit=args.text_unit), args.index, args.words)
    if args.web:
        open_page(search, args.top)
        return
    for question in args.question or iter(lambda: input("question: ").strip(), ""):
        print(show(search.ask(question, args.top)))


if __name__ == "__main__":
    main()
