"""
Makes the checkpoint that ships inside the package, from nothing to its model card.

    pip install -e '.[train,metrics,world]'
    python scripts/train_embedded.py --output modeling_ofa/assets/checkpoint

In a working folder, the current one unless `--work` names another, it builds the small world, trains the ResNet and
then the rest (recipes/world_*.yaml), saves the model in half precision, and measures it. The same command goes on
where it was stopped. `--records docs/curves` keeps the logs that docs/world.md shows, and the digests of all drawings.
docs/world.md says how long it takes.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from evaluate_embedded import EVALUATED, evaluate, write_card
from plot_curves import keep
from world.artwork import CACHE, FILE, Drawings

from modeling_ofa import OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.cli.errors import CommandError, first_line
from modeling_ofa.data.lines import write_whole


ROOT = Path(__file__).resolve().parents[1]
# Where the recipes look for things in the working folder.
DATA, PROCESSOR = Path("runs/world/data"), Path("runs/world/processor")
# What is trained on: folders, with their seeds and the rows of their parts; and rows of each task of what is measured.
TRAINING_DATA = (
    (DATA, 0, {"crowds": 80_000, "image_text": 160_000, "detection": 40_000, "text": 40_000}),
    (Path("runs/world/more"), 2, {"single": 50_000}),
    (Path("runs/world/lessons"), 3, {"lessons": 150_000}),
    (Path("runs/world/places"), 5, {"places": 60_000}),
    (Path("runs/world/pointed"), 4, {"pointed": 130_000}),
    (Path("runs/world/counted"), 7, {"counted": 160_000}),
)
TEST_ROWS = 500
# Runs in their order, with their scripts; recipes and folders, in runs/, are called like them.
RUNS = {
    "world_backbone": "pretrain_backbone",
    "world_model": "pretrain",
    "world_tasks": "pretrain",
    "world_lessons": "pretrain",
    "world_places": "pretrain",
    "world_pointed": "pretrain",
    "world_middles": "pretrain_backbone",
    "world_counted": "pretrain",
}
# Runs that begin with something computed: by which script, of which run, and the name of what it writes.
COMPUTED = {
    "world_tasks": ("align_heads", "world_model", "world_aligned"),
    "world_places": ("point_heads", "world_lessons", "world_marked"),
    "world_counted": ("count_heads", "world_middles", "world_countable"),
}
LONGEST_ANSWER = 64  # tokens: a caption or the boxes of five things
DRAWINGS = "world_drawings.json"


def call(words: Sequence[object], work: Path) -> None:
    """
    Runs a script in the working folder.

    Raises:
        CommandError: It failed.
    """
    command = [sys.executable, *map(str, words)]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    if subprocess.run(command, cwd=work, env={**os.environ, "PYTHONPATH": paths}).returncode:
        raise CommandError(f"this failed, and says above why: {' '.join(command)}")


def build(work: Path, cache: Path) -> None:
    """Draws the world and writes what is trained on and what is measured; files that are there stay."""
    script = [ROOT / "scripts" / "build_world.py", "--cache", cache]
    for folder, seed, rows in TRAINING_DATA:
        parts = [f"{part}={number}" for part, number in rows.items()]
        call([*script, "--write", "train", "--output", folder, "--seed", seed, "--parts", *parts], work)
    call([*script, "--write", *EVALUATED, "--output", DATA, "--rows", TEST_ROWS, "--processor", PROCESSOR], work)


def train(work: Path, cache: Path, processes: int, settings: Sequence[str] = ()) -> None:
    """Makes all runs, with these settings in place of the recipes'; what is over ends at once."""
    for name, script in RUNS.items():
        if name in COMPUTED:
            computing, source, made = COMPUTED[name]
            call([ROOT / "scripts" / f"{computing}.py", f"runs/{source}", f"runs/{made}", "--cache", cache], work)
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
        command += [ROOT / "scripts" / f"{script}.py", "--output_dir", Path("runs", name)]
        command += ["--config", ROOT / "recipes" / f"{name}.yaml"]
        call([*command, *settings], work)


def save(run: Path, folder: Path) -> None:
    """Writes float16 weights under a configuration that says float32, in which a CPU is to compute."""
    model = OFAForConditionalGeneration.from_pretrained(run)
    model.generation_config.update(max_new_tokens=LONGEST_ANSWER)
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_whole(folder / "config.json", json.dumps({**config, "dtype": "float32"}, indent=2, sort_keys=True) + "\n")
    OFAProcessor.from_pretrained(run).save_pretrained(folder)


def keep_records(work: Path, cache: Path, folder: Path) -> None:
    """Keeps the logs of all runs, and the digests of all drawings by their designs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in RUNS:
        keep(work / "runs" / name / "trainer_state.json", folder)
    digests: dict[str, list[str]] = {}
    drawings = Drawings.load(cache / FILE)
    for design, digest in zip(drawings.designs, drawings.digests, strict=True):
        digests.setdefault(design, []).append(digest)
    write_whole(folder / DRAWINGS, json.dumps(digests, indent=0) + "\n")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--work", type=Path, default=Path(), help="working folder (the current one)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the artwork (%(default)s)")
    parser.add_argument("--records", type=Path, help="folder for logs and digests")
    parser.add_argument(
        "--processes",
        type=int,
        default=torch.cuda.device_count() or os.cpu_count() or 1,
        help="that train together (%(default)s: as many as there are GPUs, or cores)",
    )
    parser.add_argument(
        "--settings", nargs=argparse.REMAINDER, default=[], help="of all recipes, in place of theirs: --use_cpu true …"
    )
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    build(work, args.cache)
    train(work, args.cache, args.processes, args.settings)
    save(work / "runs" / list(RUNS)[-1], args.output)
    if args.records:
        keep_records(work, args.cache, args.records)
    write_card(args.output, evaluate(args.output.resolve(), work / DATA, work / "runs/world/evaluation"))


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        run(args)
    except (CommandError, ValueError, OSError, ImportError) as error:
        print(f"train_embedded.py: error: {first_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
