"""
Draws the small world that the embedded checkpoint is trained on and tested in, and writes it as data sets.

    python scripts/build_world.py
    python scripts/build_world.py --write seen test far --rows 500 --output world

The first fetches icon sets by several designers from the npm registry, at pinned versions and licences, and draws each
thing as each of them shows it, into a file outside of the project. From these drawings scenes are composed, the same
for the same seed, while data is read: `world.splits.stream`. The second writes splits as files, each with a card.
docs/world.md says more.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from world.artwork import CACHE, FILE, SETS, TEST_DESIGN, WorldError, build
from world.processor import build_processor
from world.publish import write_negatives, write_split
from world.questions import questions
from world.scenes import World
from world.splits import SPLITS
from world.tasks import SCENE_TASKS
from world.texts import TEXT_TASKS
from world.words import absent, caption


def write_demo(world: World, folder: Path, seeds: Sequence[int]) -> None:
    """Scenes of the test design for `ofa demo` and the page: a picture a seed, and rows of what to ask of each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number, seed in enumerate(seeds, start=1):
        rng = np.random.default_rng([SPLITS["test"].stream, seed])
        scene = world.compose(rng, (TEST_DESIGN,), counts=(3,), size=320)
        image = {"image": f"scene_{number}.png"}
        Image.fromarray(scene.pixels).save(folder / image["image"], optimize=True)
        print(f"{folder / image['image']}: {caption(scene.names)}")
        asked = questions(scene, rng, world.names)
        asks = [asked[kind][0] for kind in ("count", "side", "where", "bigger", "exists") if kind in asked][:3]
        rows.append({"task": "caption", **image})
        rows += [{"task": "vqa", **image, "text": text} for text in asks]
        for task in ("visual_grounding", "grounded_caption", "visual_entailment", "image_text_matching"):
            if (columns := SCENE_TASKS[task].ask(scene, rng, world.names)) is not None:
                rows.append({"task": task, **image, "text": columns["text"]})
        rows.append({"task": "object_detection", **image})
    answers = sorted({absent(scene.names, world.names, rng) for _ in range(4)} | {scene.names[0]})
    rows.append({"task": "image_classification", **image, "answers": answers})
    for task, make in TEXT_TASKS.items():
        columns = make(rng, world.names)
        rows.append({"task": task, **{name: columns[name] for name in ("text", "text_pair") if name in columns}})
    (folder / "examples.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def write_preview(world: World, file: Path) -> None:
    """A sheet of scenes: a row for each split."""
    rows = [
        [world.compose(np.random.default_rng([part.stream, i]), part.designs, augment=part.augment) for i in range(10)]
        for part in SPLITS.values()
    ]
    Image.fromarray(np.vstack([np.hstack([scene.pixels for scene in row]) for row in rows])).save(file)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the artwork (%(default)s)")
    parser.add_argument("--write", nargs="+", default=[], choices=SPLITS, help="write these splits")
    parser.add_argument("--output", type=Path, default=Path("world"), help="into folders of their names in this one")
    parser.add_argument("--rows", type=int, default=500, help="so many rows of each part (%(default)s)")
    parser.add_argument(
        "--parts", nargs="+", type=_part, metavar="PART=ROWS", help="only these parts, each with its number of rows"
    )
    parser.add_argument("--seed", type=int, default=0, help="others give other rows (%(default)s)")
    parser.add_argument(
        "--processor", type=Path, metavar="DIR", help="also write the processor of a small model of it"
    )
    parser.add_argument("--demo", type=Path, metavar="DIR", help="also write demo scenes of the test design into DIR")
    parser.add_argument("--demo-seeds", type=int, nargs="+", default=[1, 2, 10], help="one scene a seed (%(default)s)")
    parser.add_argument("--preview", type=Path, metavar="PNG", help="also write a sheet of scenes of all splits")
    return parser.parse_args(arguments)


def _part(text: str) -> tuple[str, int]:
    name, _, rows = text.partition("=")
    return name, int(rows)


def run(args: argparse.Namespace) -> None:
    path = args.cache / FILE
    drawings = build(args.cache)
    for design, icons in SETS.items():
        print(f"{design} {icons.version} ({icons.licence}): {drawings.designs.count(design)} drawings")
    print(f"{path}: {len(set(drawings.names))} things, {path.stat().st_size / 1e6:.1f} MB")
    for split in args.write:
        write_split(split, args.output / split, dict(args.parts) if args.parts else args.rows, path, args.seed)
        print(args.output / split)
    if args.write:
        write_negatives(args.output / "negatives")
    if args.processor:
        build_processor(path).save_pretrained(args.processor)
        print(args.processor)
    if args.demo:
        write_demo(World(path), args.demo, args.demo_seeds)
    if args.preview:
        write_preview(World(path), args.preview)


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("world").setLevel(logging.INFO)
    try:
        run(parse_args(arguments))
    except (WorldError, ValueError, OSError, ImportError) as error:
        print(f"build_world.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
