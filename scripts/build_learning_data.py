"""
Writes the pictures of docs/learning.md as folders that `load_examples("folder", …)` and recipes/learning/ read.

    python scripts/build_learning_data.py scenes
    python scripts/build_learning_data.py fashion-mnist --source /usr/share/datasets/fashion-mnist

`scenes` composes captioned scenes of one design, by default of OpenMoji, which the embedded checkpoint was never
trained on; scripts/build_world.py must have run. Training and held-out scenes are of different seeds. `fashion-mnist`
reads the four files of Debian's package dataset-fashion-mnist (MIT licence, Zalando), some of its training pictures
and some of its test pictures.
"""

import argparse
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from world.artwork import CACHE, FAR_DESIGN, FILE
from world.scenes import World
from world.splits import SIZE
from world.words import caption


DATA = Path("runs/learning/data")
TUNING_STREAM, TUNED_STREAM = 10, 11  # first numbers of seeds that no split of the world has
# Names as they are answered; the order is that of the labels.
GARMENTS = ("top", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def write(folder: Path, rows: Iterable[tuple[np.ndarray, str]]) -> None:
    """Writes pictures, uint8 `(height, width[, 3])`, and their targets."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (pixels, target) in enumerate(rows):
        name = f"{number:05d}.png"
        Image.fromarray(pixels).save(folder / name)
        lines.append(json.dumps({"file_name": name, "target": target}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{folder}: {len(lines)} pictures")


def write_scenes(folder: Path, world: World, design: str, sizes: dict[str, int]) -> None:
    """Scenes of one to five objects with their captions."""
    for (split, number), stream in zip(sizes.items(), (TUNING_STREAM, TUNED_STREAM), strict=True):
        rngs = (np.random.default_rng([stream, 0, i]) for i in range(number))
        scenes = (world.compose(rng, (design,), size=SIZE) for rng in rngs)
        write(folder / split, ((scene.pixels, caption(scene.names)) for scene in scenes))


def read_idx(path: Path) -> np.ndarray:
    """
    Reads a file of MNIST's format: two zeros, 8 for bytes, the number of axes, their lengths as big-endian int32.

    Raises:
        SystemExit: if there is no such file, or it is of another format.
    """
    if not path.is_file():
        raise SystemExit(f"{path} does not exist: install dataset-fashion-mnist, or give --source its folder.")
    content = gzip.decompress(path.read_bytes())
    if content[:3] != bytes([0, 0, 8]):
        raise SystemExit(f"{path} is not a file of bytes in MNIST's format.")
    shape = np.frombuffer(content, ">i4", content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def write_garments(folder: Path, source: Path, sizes: dict[str, int]) -> None:
    """The first pictures of Fashion-MNIST's training part and of its test part, and the list of names."""
    for (split, number), part in zip(sizes.items(), ("train", "t10k"), strict=True):
        pixels = read_idx(source / f"{part}-images-idx3-ubyte.gz")[:number]
        labels = read_idx(source / f"{part}-labels-idx1-ubyte.gz")[:number]
        write(folder / split, zip(pixels, (GARMENTS[label] for label in labels), strict=True))
    (folder / "answers.txt").write_text("\n".join(GARMENTS) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["scenes", "fashion-mnist"])
    parser.add_argument("--output", type=Path, help=f"folder to write (default: {DATA}/KIND)")
    parser.add_argument("--train", type=int, default=6000, help="pictures to train with (%(default)s)")
    parser.add_argument("--held-out", type=int, default=1000, help="pictures to measure with (%(default)s)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="what build_world.py wrote (%(default)s)")
    parser.add_argument("--design", default=FAR_DESIGN, help="icon set of the scenes (%(default)s)")
    parser.add_argument(
        "--source", type=Path, default="/usr/share/datasets/fashion-mnist", help="of Fashion-MNIST (%(default)s)"
    )
    args = parser.parse_args()
    folder, sizes = args.output or DATA / args.kind, {"train": args.train, "val": args.held_out}
    if args.kind == "scenes":
        write_scenes(folder, World(args.cache / FILE), args.design, sizes)
    else:
        write_garments(folder, args.source, sizes)


if __name__ == "__main__":
    main()
