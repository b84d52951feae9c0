"""Does `simmim` take, or refuse in one clear line, whatever it is given?

Draws options of the commands with values that no one should give, and files that no one should have; runs each in a
process of its own, over a run of two steps. Right is exit code 0 with the results there and finite weights, or 2 with
one line that names an option, a value or a file of the case; 1 only with the words of `MAY_FAIL`. A traceback, another
code, a result that is not there, or more than `--seconds` is a failure, and is printed with the command that shows it.

python benchmarks/fuzz.py [--runs 200] [--seed 0] [--only NUMBER ...] [--folder FOLDER] [--output results/fuzz.json]

With `--output`, the same command goes on after a kill or a mend: what failed is run again, then what is missing.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import shlex
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from children import prepare, run_command
from safetensors.torch import load_file
from unusable_files import damaged_file, damaged_folder, lines
from unusable_values import FEW, LENGTHS, STRINGS, unusable_backbone, unusable_json, unusable_value

from simmim_hf import records
from simmim_hf.comparison.comparison import ComparisonArguments
from simmim_hf.data import docstrings
from simmim_hf.evaluation.command import EvaluationArguments
from simmim_hf.export import ExportArguments
from simmim_hf.model.configuration_simmim import OBJECTIVES
from simmim_hf.options import Parser
from simmim_hf.training import report
from simmim_hf.training.arguments import pretraining_parser
from simmim_hf.training.card import CardArguments

NETWORK = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
MEMORY = 6 * 2**30  # that a child may ask for beyond what it begins with, in bytes
LONGEST_LINE = 1500  # characters of a refusal
MAY_FAIL = ("not finite", "is full", "differs from its source", "held-out loss is")

LEFT_OUT = ("help", "use_cpu", "log_level", "log_level_replica")


@dataclass
class Case:
    """A command line, and the words by which a refusal may say what is wrong."""

    words: list[str]
    names: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        given = [self.words[i + 1] for i, word in enumerate(self.words) if word == "--output_dir"]
        given += [word.partition("=")[2] for word in self.words if word.startswith("--output_dir=")]
        return os.path.expanduser(given[-1]) if given else "out"


def pretrain_words(material: Path) -> list[str]:
    words = ["pretrain", "--use_cpu", "--train_file", str(material / "text.txt"), "--output_dir", "out"]
    words += ["--text_config", json.dumps(NETWORK), "--vocab_size", "80", "--max_seq_length", "16"]
    words += ["--per_device_train_batch_size", "8", "--max_steps", "2", "--max_minutes", "0.05"]
    return [*words, "--report_to", "none", "--disable_tqdm", "true"]


class Fuzz:
    """Cases by number: the same seed and number make the same case, whatever was run before.

    Args:
        material: a folder for what the cases read
    """

    def __init__(self, material: Path, seed: int = 0):
        self.material, self.seed = material, seed
        self.options = {"pretrain": options_of(pretraining_parser())}
        for command, arguments in (
            ("evaluate", EvaluationArguments),
            ("export", ExportArguments),
            ("card", CardArguments),
            ("compare", ComparisonArguments),
        ):
            self.options[command] = options_of(Parser(arguments))
        self.options["compare"] += self.options["pretrain"]
        self.kinds = {
            self.pretrain: 50,
            self.text: 25,
            self.evaluate: 8,
            self.export: 4,
            self.card: 4,
            self.compare: 3,
        }
        self.kinds |= {self.backbone: 4, self.settings: 2}

    def prepare(self) -> None:
        """Makes the material, with a plain run."""
        folder = self.material
        (folder / "text.txt").write_text("\n".join(lines(60)))
        pairs = [{"sentence1": a, "sentence2": b, "score": i} for i, (a, b) in enumerate(zip(lines(9), lines(20)[9:]))]
        (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
        (folder / "labels.csv").write_text("text,label\n" + "\n".join(f"{t},{i % 2}" for i, t in enumerate(lines(20))))
        (folder / "arms.yaml").write_text("warm: {objective: mlm, temperature: 0.1}\n")
        for name, content in (
            ("empty.txt", b""),
            ("junk.txt", b"\xff\x00\xfe"),
            ("junk.json", b"{]"),
            ("é.txt", b"a b"),
        ):
            (folder / name).write_bytes(content)
        (folder / "folder").mkdir()
        (folder / "loop.txt").symlink_to("loop.txt")
        prepare([*pretrain_words(folder), "--output_dir", str(folder / "model")])

    def case(self, number: int) -> tuple[Case, Path]:
        """A case and its folder, in which its files lie."""
        rng = random.Random(f"{self.seed} {number}")
        folder = self.material / "cases" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        for path in self.material.iterdir():
            if path.name not in ("cases", "model"):
                os.symlink(path, folder / path.name)
        make = rng.choices(list(self.kinds), weights=list(self.kinds.values()))[0]
        return make(rng, folder), folder

    def pretrain(self, rng: random.Random, folder: Path) -> Case:
        case = Case(pretrain_words(self.material))
        return self._with_options(case, rng, folder, "pretrain", rng.choice([1, 1, 2, 3]))

    def text(self, rng: random.Random, folder: Path) -> Case:
        case, file = Case(pretrain_words(self.material)), damaged_file(rng, folder)
        case.names.append(Path(file).name)
        where = rng.choice(
            ["train_file"] * 4 + ["train_file stream"] * 2 + ["validation_file", "similarity_file", "tasks"]
        )
        option, _, stream = where.partition(" ")
        case.names.append(f"--{option}")
        if option == "tasks":
            case.words = self._evaluate_words(self._model(folder))
        case.words += [
            f"--{option}",
            file,
            *([str(self.material / "text.txt")] if rng.random() < 0.2 and stream else []),
        ]
        if stream:
            case.words += ["--streaming", "--validation_file", str(self.material / "text.txt")]
        return case

    def evaluate(self, rng: random.Random, folder: Path) -> Case:
        model = self._model(folder)
        if rng.random() < 0.4:
            case = Case(self._evaluate_words(model), ["model", damaged_folder(rng, model)])
        else:
            case = self._with_options(Case(self._evaluate_words(model)), rng, folder, "evaluate", rng.choice([1, 2]))
        if rng.random() < 0.3:
            case.words += ["--tasks", *rng.sample(["pairs.jsonl", "labels.csv", "text.txt"], 2)]
        return case

    def export(self, rng: random.Random, folder: Path) -> Case:
        model, forms = self._model(folder), ["backbone", "backbone", "safetensors-only", "sentence-transformers"]
        words = ["export", "--model", str(model), "--to", rng.choice(forms), "--output_dir", "out"]
        if rng.random() < 0.6:
            return Case(words, ["model", damaged_folder(rng, model)])
        return self._with_options(Case(words), rng, folder, "export", 1)

    def card(self, rng: random.Random, folder: Path) -> Case:
        model = self._model(folder)
        case = Case(["card", "--model", str(model)], ["model"])
        if rng.random() < 0.6:
            case.names.append(damaged_folder(rng, model, ["results.json", "trainer_state.json", "README.md"]))
            return case
        return self._with_options(case, rng, folder, "card", rng.choice([1, 2]))

    def compare(self, rng: random.Random, folder: Path) -> Case:
        base = pretrain_words(self.material)
        for option in ("--max_steps", "--max_minutes"):
            del base[base.index(option) : base.index(option) + 2]
        words = [
            "compare",
            *base[1:],
            "--objectives",
            rng.choice(list(OBJECTIVES)),
            "--seeds",
            "1",
            "--budget_tokens",
            "3000",
        ]
        return self._with_options(Case(words), rng, folder, "compare", rng.choice([1, 2]))

    def backbone(self, rng: random.Random, folder: Path) -> Case:
        changed = unusable_backbone(rng)
        words = [*pretrain_words(self.material), "--text_config", json.dumps({**NETWORK, **changed})]
        if rng.random() < 0.2:
            words[-1] = words[-1][: rng.randrange(len(words[-1]))]
        return Case(words, [*changed, "text_config", "built"])

    def settings(self, rng: random.Random, folder: Path) -> Case:
        base = pretrain_words(self.material)[2:]
        settings = dict(zip([word.removeprefix("--") for word in base[::2]], base[1::2])) | {"use_cpu": True}
        option = rng.choice(self.options["pretrain"])
        name = option.option_strings[0].removeprefix("--")
        if name not in (*LENGTHS, *FEW, *LEFT_OUT, "no_cuda"):
            settings[name] = rng.choice([unusable_json(rng), rng.choice(STRINGS)])
        text = json.dumps(settings, ensure_ascii=False)
        if rng.random() < 0.4:
            at = rng.randrange(len(text))
            text = rng.choice(
                [text[:at], text[:at] + "\x00" + text[at:], f"[{text}]", text[:at] + "\n\t" + text[at:], ""]
            )
        file = folder / rng.choice(["settings.yaml", "settings.json", "sé ttings.yml"])
        file.write_text(text, errors="surrogateescape")
        return Case(["pretrain", str(file), "--max_steps", "2"], [name, "settings", "ttings", "option"])

    def _evaluate_words(self, model: Path) -> list[str]:
        return [
            "evaluate",
            "--model",
            str(model),
            "--device",
            "cpu",
            "--output_dir",
            "out",
            "--max_samples",
            "1",
            "--tasks",
            "pairs.jsonl",
        ]

    def _model(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.material / "model", folder / "model"))

    def _with_options(self, case: Case, rng: random.Random, folder: Path, command: str, count: int) -> Case:
        chosen = rng.sample(self.options[command], min(count, len(self.options[command])))
        if command == "compare" and rng.random() < 0.6:
            chosen[0] = rng.choice(self.options[command][: len(ComparisonArguments.__dataclass_fields__)])
        names = [option.option_strings[0].removeprefix("--") for option in chosen]
        lengths = [name for name in names if name in LENGTHS]
        for option, name in zip(chosen, names):
            if name in LEFT_OUT or name in lengths[1:]:
                continue
            value = unusable_value(rng, option, name)
            values = [value] if value is not None else []
            if option.nargs == "+" and rng.random() < 0.3:
                values = [value or "x", unusable_value(rng, option, name) or "y"]
                case.words += [f"--{name}", *values]
            else:
                case.words += [f"--{name}={value}" if values else f"--{name}"]
            case.names += [name, name.removeprefix("no_"), *(value for value in values if len(value) > 1)]
            if name in ("model_name_or_path", "resume_from_checkpoint", "model", "tokenizer_name"):
                with contextlib.suppress(FileExistsError):
                    self._model(folder)
        return case


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.dest not in LEFT_OUT]


# What is right


def fault(case: Case, folder: Path, code: int | None, said: Path) -> str | None:
    """What is wrong with how a case came out; None where nothing is."""
    errors = Path(f"{said}.err").read_text(errors="replace")
    if code is None:
        return "hangs"
    if "Traceback (most recent call last)" in errors:
        return f"traceback: {errors.strip().splitlines()[-1]}"
    told = [line for line in errors.splitlines() if line.startswith(f"simmim {case.words[0]}: ")]
    if code == 0:
        return wrong_result(case, folder)
    if code == 1:
        expected = case.words[0] == "compare" or any(words in errors for words in MAY_FAIL)
        return None if expected else "exit code 1"
    if code != 2:
        return f"exit code {code}"
    if len(told) != 1 or errors.rstrip().splitlines()[-1] != told[0] or "error: " not in told[0]:
        return "a refusal that is not one line at the end"
    if len(told[0]) > LONGEST_LINE:
        return f"a line of {len(told[0])} characters"
    spellings = [spelling for name in case.names for spelling in (" ".join(name.split()), repr(name)[1:-1])]
    if not any(spelling.strip() and spelling in told[0] for spelling in spellings):
        return f"a line that names nothing: {told[0]}"
    return None


def wrong_result(case: Case, folder: Path) -> str | None:
    output = folder / case.output
    if case.words[0] == "pretrain":
        wanted = ["model.safetensors", "config.json", "tokenizer.json", "results.json", "README.md"]
    else:
        wanted = {"evaluate": ["results.json", "results.md"], "compare": ["results.json", "report.md"]}.get(
            case.words[0], []
        )
    missing = [name for name in wanted if not (output / name).is_file()]
    if missing:
        return f"exit code 0 without {', '.join(missing)}"
    if case.words[0] == "pretrain":
        weights = load_file(output / "model.safetensors")
        bad = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
        if bad:
            return f"weights that are not finite: {', '.join(bad[:3])}"
        if not records.read_json(output / "results.json")["steps"]:
            return "exit code 0 without a step"
    return None


def run(fuzz: Fuzz, number: int, seconds: float) -> tuple[str, Case, str | None, str]:
    """Runs a case; its outcome, itself, what is wrong, and the end of what it said."""
    case, folder = fuzz.case(number)
    said = folder / "said"
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    def begin() -> None:
        report.plot_training = lambda *arguments: None  # it takes most of the time of such a run
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))

    code = run_command(case.words, said, seconds, begin)
    wrong = fault(case, folder, code, said)
    errors = Path(f"{said}.err").read_text(errors="replace")
    if not wrong:
        shutil.rmtree(folder)
    return str(code), case, wrong, errors[-3000:]


def used() -> float:
    """Seconds of the processor that cases have taken."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", default=None, help="the numbers of cases of this seed")
    parser.add_argument("--seconds", type=float, default=30, help="of the processor that a case may take")
    parser.add_argument("--folder", default=None, help="keep the files of what fails here")
    parser.add_argument("--output", default=None, help="write the summary here, as JSON; if it is there, go on")
    parser.add_argument("--verbose", action="store_true", help="print each case with its last line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        material = Path(arguments.folder or temporary).resolve()
        shutil.rmtree(material, ignore_errors=True)
        material.mkdir(parents=True)
        fuzz = Fuzz(material, arguments.seed)
        docstrings.built_in_corpus()  # the cases read it from the cache; the first time takes most of a minute
        fuzz.prepare()
        output = Path(arguments.output) if arguments.output and not arguments.only else None
        summary = {"cases": 0, "seconds": 0, "outcomes": {}, "failures": []}
        if output and output.exists():  # goes on: what failed is run again, then what is missing
            summary = records.read_json(output)
            if summary["seed"] != arguments.seed:
                parser.error(f"{output} is of the seed {summary['seed']}")
        summary |= {"command": shlex.join(["python", "benchmarks/fuzz.py", *sys.argv[1:]]), "seed": arguments.seed}
        summary |= {"versions": records.versions(), "revision": records.git_revision()}
        failures = {failure["number"]: failure for failure in summary["failures"]}
        numbers = arguments.only or [*failures, *range(summary["cases"], arguments.runs)]
        outcomes, spent, begun = collections.Counter(summary["outcomes"]), summary["seconds"], time.monotonic()
        for number in numbers:
            started = used()
            code, case, wrong, errors = run(fuzz, number, arguments.seconds)
            if failures.pop(number, None):
                outcomes[f"{case.words[0]}: failed"] -= 1
            outcomes[f"{case.words[0]}: {'failed' if wrong else f'exit code {code}'}"] += 1
            line = f"cd {material}/cases/{number} && {shlex.join(['simmim', *case.words])}"
            if arguments.verbose:
                last = errors.strip().splitlines()[-1:]
                print(f"{number} {code} {used() - started:.1f} s {line[:3000]}\n    {''.join(last)[:600]}")
            if wrong:
                failures[number] = {"number": number, "what": wrong, "command": records.command(case.words)}
                print(f"FAILED {number}, {wrong[:500]}\n    {line}\n{errors[-1500:]}")
            summary |= {"cases": max(summary["cases"], number + 1), "seconds": round(spent + time.monotonic() - begun)}
            summary |= {"outcomes": dict(sorted((+outcomes).items())), "failures": list(failures.values())}
            if output:
                records.write_json(output, summary)
    print(f"{len(numbers)} cases in {time.monotonic() - begun:.0f} s: {len(failures)} failed")
    for outcome, count in summary["outcomes"].items():
        print(f"{count:6} {outcome}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
