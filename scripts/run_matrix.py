"""
Runs the default tests in fresh environments, one for each Python on this machine and each version of transformers.

    python scripts/run_matrix.py                       # or: make matrix
    python scripts/run_matrix.py --only 3.12 --transformers newest --tests tests/test_trie_ofa.py

What was run is kept in build/matrix: results.json, matrix.md (the table of README.md) and a log for each environment.
A run that was stopped goes on with the cells that are missing, or that were run on another state of the repository.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


ROOT = Path(__file__).parents[1]
NEWEST = "newest"  # what constraints.txt says
OLDEST = "5.17.0"
SHOWN = ("torch", "numpy", "pillow")  # versions in the table
_PROBE = "import sys, venv, ensurepip; print('.'.join(map(str, sys.version_info[:3])), sys.executable)"
_SUMMARY = re.compile(r"\d+ \w+(?:, \d+ [\w ]+)* in [\d.]+s")


@dataclass
class Cell:
    """One environment, and what the tests said in it."""

    python: str
    transformers: str
    """The version that was asked for; the one that was installed is among `versions`."""
    state: str = ""
    tests: Sequence[str] = ()
    outcome: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: int = 0

    @property
    def name(self) -> str:
        return f"{self.python}-{self.transformers}"


def find_pythons() -> dict[str, str]:
    """Gives the interpreters from 3.10 on that can make environments, one of each minor version, by version."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders += sorted(pyenv.glob("versions/*/bin"), reverse=True)
    found: dict[str, tuple[str, str]] = {}
    for folder in folders:
        for file in sorted(folder.glob("python3.[0-9][0-9]")):
            probe = subprocess.run([file, "-c", _PROBE], capture_output=True, text=True)
            if probe.returncode == 0:
                version, executable = probe.stdout.split(maxsplit=1)
                found.setdefault(file.name, (version, executable.strip()))
    return dict(sorted(found.values(), key=lambda one: tuple(map(int, one[0].split(".")))))


def state_of(root: Path) -> str:
    """Gives the commit, and a digest of what was changed since."""
    commit = subprocess.check_output(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, text=True).strip()
    changes = subprocess.check_output(["git", "diff", "HEAD"], cwd=root)
    return f"{commit}+{hashlib.sha256(changes).hexdigest()[:8]}" if changes else commit


def constraints_for(text: str, transformers: str) -> str:
    """Gives constraints with another transformers, whose own dependencies are then left to pip."""
    if transformers == NEWEST:
        return text
    lines = [line for line in text.splitlines() if not re.match(r"(transformers|huggingface_hub|tokenizers)==", line)]
    return "\n".join([*lines, f"transformers=={transformers}", ""])


def read_summary(log: str) -> tuple[dict[str, int], list[str]]:
    """
    Reads what pytest printed.

    Args:
        log (`str`): All of its output.

    Returns:
        `tuple[dict[str, int], list[str]]`: How many tests `passed`, `failed`, …, and the names of those that did not
        pass. Both are empty where pytest did not get to its end.
    """
    ends = _SUMMARY.findall(log)
    counts = {word.rstrip("s") if word == "errors" else word: int(n) for n, word in _pairs(ends[-1])} if ends else {}
    return counts, re.findall(r"^(?:FAILED|ERROR) (\S+)", log, re.MULTILINE)


def _pairs(summary: str) -> Iterator[tuple[str, str]]:
    """The numbers and words, but for those of subtests, which are parts of tests."""
    yield from re.findall(r"(\d+) (\w+)(?:,|$)", summary.split(" in ")[0])


def run_cell(cell: Cell, executable: str, folder: Path, workers: int, keep: bool) -> Cell:
    """Makes the environment, runs the tests in it, and says what came of it."""
    environment, log = folder / f"env-{cell.name}", folder / f"{cell.name}.log"
    constraints = folder / f"{cell.name}.txt"
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    constraints.write_text(constraints_for(text, cell.transformers), encoding="utf-8")
    python, start = environment / "bin" / "python", time.monotonic()
    commands = [
        [executable, "-m", "venv", "--clear", environment],
        [python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "-c", constraints, "-e", ".[all]"],
    ]
    tests = [python, "-m", "pytest", "-q", "-rfE", "-n", str(workers), "-m", "not slow", "-p", "no:cacheprovider"]
    with log.open("w", encoding="utf-8") as out:
        for command in commands:
            if subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT).returncode:
                cell.outcome = "not installed"
                break
        else:
            subprocess.run(
                [*tests, *cell.tests],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            listed = subprocess.check_output([python, "-m", "pip", "list", "--format=json"], text=True)
            cell.versions = {one["name"].lower(): one["version"] for one in json.loads(listed)}
    cell.seconds = round(time.monotonic() - start)
    if not cell.outcome:
        cell.counts, cell.failed = read_summary(log.read_text(encoding="utf-8", errors="replace"))
        passed = cell.counts.get("passed") and not cell.failed and not cell.counts.get("error")
        cell.outcome = "passed" if passed else "failed"
    if not keep:
        shutil.rmtree(environment, ignore_errors=True)
    return cell


def table(cells: Sequence[Cell]) -> str:
    """Gives what was run as Markdown, a row an environment."""
    rows = [["Python", "transformers", *SHOWN, "tests"], ["---"] * (len(SHOWN) + 3)]
    for cell in cells:
        tests = {word: number for word, number in cell.counts.items() if not word.startswith("warning")}
        counts = ", ".join(f"{number:,} {word}" for word, number in tests.items())
        installed = cell.versions.get("transformers", cell.transformers)
        versions = [cell.versions.get(name, "") for name in SHOWN]
        rows.append([cell.python, installed, *versions, counts or cell.outcome])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def load(file: Path) -> list[Cell]:
    """Reads what an earlier run has left."""
    return [Cell(**one) for one in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []


def save(cells: Sequence[Cell], folder: Path) -> None:
    """Writes results and table, each whole or not at all."""
    texts = {"results.json": json.dumps([asdict(cell) for cell in cells], indent=1) + "\n", "matrix.md": table(cells)}
    for name, text in texts.items():
        (folder / f"{name}.new").write_text(text, encoding="utf-8")
        os.replace(folder / f"{name}.new", folder / name)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers", nargs="+", default=[OLDEST, NEWEST], help="versions (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="3.X", help="these Pythons (default: all from 3.10 on)")
    parser.add_argument("--tests", nargs="+", default=[], help="these tests (default: all but the slow ones)")
    parser.add_argument("--workers", type=int, default=2, help="processes that test (%(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "matrix", help="folder (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the environments where they are, 2 GB each")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    pythons = {
        version: executable
        for version, executable in find_pythons().items()
        if args.only is None or version.rpartition(".")[0] in args.only
    }
    if not pythons:
        wish = " ".join(args.only or ["3.10 or newer"])
        print(f"run_matrix.py: error: there is no Python {wish} with the venv module", file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    state, file = state_of(ROOT), args.output / "results.json"
    cells = [cell for cell in load(file) if (cell.state, list(cell.tests)) == (state, args.tests)]
    done = {cell.name for cell in cells}
    for cell in [Cell(version, one, state, args.tests) for version in pythons for one in args.transformers]:
        if cell.name not in done:
            print(f"{cell.name}: installing and testing; {args.output / cell.name}.log", flush=True)
            cells.append(run_cell(cell, pythons[cell.python], args.output, args.workers, args.keep))
            cells.sort(key=lambda one: (tuple(map(int, one.python.split("."))), one.transformers))
            save(cells, args.output)
            print(f"{cell.name}: {cell.outcome} in {cell.seconds:,} seconds", flush=True)
    print(f"\n{table(cells)}")
    return 0 if all(cell.outcome == "passed" for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
