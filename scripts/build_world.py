"""A world of pictures to train on: scenes composed of emoji artwork by several designers, with exact boxes.

`python scripts/build_world.py` fetches the icon sets below at their pinned versions (`npm pack`: archives only, no
node code runs), checks versions and licences, draws every icon once and stores the drawings in a cache folder outside
of the project. `World` composes scenes from them: the same seed gives the same scene. They are composed scenes, not
photographs.

Five designs are for training; Twemoji is for testing only; OpenMoji (outlines) is reported as a far design.
"""

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


DEFAULT_CACHE = Path("~/.cache/modeling_ofa/world").expanduser()
RENDER = 128  # pixels of a stored drawing

# set: (version, licence, sha256 of the packed archive)
SETS = {
    "noto": ("1.2.9", "Apache-2.0", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "noto-v1": ("1.2.5", "Apache-2.0", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    "fluent-emoji-flat": ("1.2.6", "MIT", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
    "fxemoji": ("1.2.2", "Apache-2.0", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
    "emojione": ("1.2.3", "CC-BY-4.0", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
    "twemoji": ("1.2.5", "CC-BY-4.0", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    "openmoji": ("1.2.29", "CC-BY-SA-4.0", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5"),
}
TRAIN_DESIGNS = ("noto", "noto-v1", "fluent-emoji-flat", "fxemoji", "emojione")
TEST_DESIGN, FAR_DESIGN = "twemoji", "openmoji"
TRAIN_STREAM, SEEN_STREAM, TEST_STREAM, FAR_STREAM = range(4)  # first half of a seed: streams share no scene

# slug, or slug=word where the plain English word differs; `|` gives another slug that a set uses
ICONS = """airplane alarm-clock=clock automobile=car balloon banana bear bell bicycle bird birthday-cake=cake bus
cactus camera candle cat closed-book=book cloud cow crescent-moon=moon crown deciduous-tree=tree delivery-truck=truck
dog doughnut=donut dress elephant fire fish frog ghost guitar hamburger helicopter hibiscus=flower honeybee=bee horse
hot-beverage=cup house-with-garden=house jack-o-lantern=pumpkin key koala lady-beetle=ladybug light-bulb=light_bulb
maple-leaf=leaf monkey motorcycle mouse mushroom octopus palm-tree=palm_tree pencil penguin pig pineapple
pizza|slice-of-pizza=pizza rainbow red-apple=apple red-heart=heart rocket sailboat=boat snail snake snowflake
snowman-without-snow=snowman soccer-ball=soccer_ball star strawberry sun-with-face=sun sunflower
telephone|black-telephone=telephone tiger tomato top-hat=hat train trophy turtle umbrella watermelon whale
wine-glass=wine_glass"""
SLUGS = {entry.split("=")[-1].replace("_", " "): entry.split("=")[0].split("|") for entry in ICONS.split()}
NAMES = sorted(SLUGS)
NUMBERS = ("no", "one", "two", "three", "four")
PLURALS = {
    "bus": "buses", "fish": "fish", "leaf": "leaves", "mouse": "mice", "strawberry": "strawberries",
    "wine glass": "wine glasses",
}  # fmt: skip


# --- the artwork: archives → drawings -------------------------------------------------------------------------------
def fetch(design: str, cache: Path) -> Path:
    """Path of the set's packed archive in `cache`, fetched with `npm pack` when it isn't there, its digest checked."""
    version, _, digest = SETS[design]
    archive = cache / f"iconify-json-{design}-{version}.tgz"
    if not archive.exists():
        if shutil.which("npm") is None:
            raise SystemExit(
                f"npm was not found, and {archive} does not exist. Install Node.js (it brings npm), or run "
                f"`npm pack @iconify-json/{design}@{version}` on another machine and copy {archive.name} to {cache}."
            )
        command = ["npm", "pack", "--silent", f"@iconify-json/{design}@{version}"]
        done = subprocess.run(command, cwd=cache, capture_output=True, text=True)
        if done.returncode or not archive.exists():
            reason = done.stderr.strip() or "no archive was written"
            raise SystemExit(f"`{' '.join(command)}` failed in {cache}: {reason}")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != digest:
        raise SystemExit(
            f"{archive} is not the pinned archive (sha256 {found}, not {digest}). Delete it and try again."
        )
    return archive


def read_set(design: str, archive: Path) -> dict:
    """The set's `icons.json`, after its version and licence were compared with the table above."""
    version, licence, _ = SETS[design]
    with tarfile.open(archive) as tar:
        package, info, icons = (
            json.load(tar.extractfile(f"package/{name}.json")) for name in ("package", "info", "icons")
        )
    seen = (package["version"], package["license"], info["license"]["spdx"])
    if seen != (version, licence, licence):
        raise SystemExit(f"{archive}: version and licences are {seen}, expected {version} under {licence}.")
    return icons


def draw(icons: dict, slugs: list[str]) -> np.ndarray:
    """The first of `slugs` that the set has (hyphens do not count), as RGBA `uint8` of shape `(RENDER, RENDER, 4)`."""
    import resvg_py

    aliases = icons.get("aliases", {})
    table = {slug.replace("-", ""): slug for slug in (*aliases, *icons["icons"])}
    slug = next((table[key] for key in (slug.replace("-", "") for slug in slugs) if key in table), None)
    if slug is None:
        raise SystemExit(f"The set {icons['prefix']} has no icon named {' or '.join(slugs)}.")
    while slug in aliases:
        slug = aliases[slug]["parent"]
    icon = {**{key: icons[key] for key in ("width", "height") if key in icons}, **icons["icons"][slug]}
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {icon['width']} {icon['height']}"
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {namespaces} viewBox="{box}">{icon["body"]}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=RENDER, height=RENDER, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA").resize((RENDER, RENDER)))


def build(cache: Path) -> Path:
    """Writes `world.npz` (drawings of shape `(designs, names, RENDER, RENDER, 4)`) into `cache` and returns its path.

    Raises:
        SystemExit: if a set is not what was pinned, or a test drawing has exactly the pixels of a training drawing.
    """
    cache.mkdir(parents=True, exist_ok=True)
    drawings = []
    for design in SETS:
        icons = read_set(design, fetch(design, cache))
        drawings.append(np.stack([draw(icons, SLUGS[name]) for name in NAMES]))
        print(f"{design} {SETS[design][0]} ({SETS[design][1]}): {len(NAMES)} drawings")
    drawings = np.stack(drawings)
    digests = {d: {hashlib.sha256(x.tobytes()).digest() for x in rows} for d, rows in zip(SETS, drawings, strict=True)}
    for held_out in (TEST_DESIGN, FAR_DESIGN):
        if digests[held_out] & set().union(*(digests[design] for design in TRAIN_DESIGNS)):
            raise SystemExit(f"A drawing of {held_out} is also a training drawing: the test would not be fair.")
    path = cache / "world.npz"
    partial = cache / "world.partial.npz"
    np.savez_compressed(partial, drawings=drawings, designs=list(SETS), names=NAMES)
    partial.replace(path)
    return path


# --- the scenes: drawings → pictures, boxes, texts ------------------------------------------------------------------
@dataclass
class Scene:
    """A composed picture.

    `pixels` is uint8 `(size, size, 3)`; `names` and `boxes` (x0, y0, x1, y1 in pixels) belong to its objects from left
    to right; `owner` int8 `(size, size)` is the index of the object that a pixel shows, -1 on the ground.
    """

    pixels: np.ndarray
    names: list[str]
    boxes: np.ndarray
    owner: np.ndarray


class World:
    """Composes scenes from the drawings that `build` stored."""

    def __init__(self, path: str | Path = DEFAULT_CACHE / "world.npz"):
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist. Build it first: python scripts/build_world.py")
        with np.load(path, allow_pickle=False) as data:
            self.names, self.designs = data["names"].tolist(), data["designs"].tolist()
            drawings = data["drawings"]
        half = np.empty((*drawings.shape[:2], RENDER // 2, RENDER // 2, 4), np.uint8)
        for index in np.ndindex(drawings.shape[:2]):
            half[index] = Image.fromarray(drawings[index]).reduce(2)
        self.drawings = {RENDER: drawings, RENDER // 2: half}

    def compose(
        self,
        rng: np.random.Generator,
        designs: tuple[str, ...] = TRAIN_DESIGNS,
        counts: tuple[int, ...] = (1, 2, 3, 4),
        size: int = 128,
        augment: bool = False,
    ) -> Scene:
        """A scene of at most `counts[i]` objects (i drawn by `rng`), each of a random design.

        Objects overlap by less than 5 % and their centres stand at least 7 % of the width apart, so that their order
        from left to right is clear. `augment` adds what only training sees: mirrored, stretched, recoloured drawings.
        """
        count = int(rng.choice(counts))
        pixels = _ground(rng, size)
        owner = np.full((size, size), -1, dtype=np.int8)
        names: list[str] = []
        boxes: list[tuple[int, int, int, int]] = []
        low, high = ((0.35, 0.8), (0.3, 0.55), (0.26, 0.46), (0.24, 0.42))[min(count, 4) - 1]
        for _ in range(count):
            name = names[0] if names and rng.random() < 0.2 else self.names[rng.integers(len(self.names))]
            design = self.designs.index(designs[rng.integers(len(designs))])
            scale = size * rng.uniform(low, high)
            level = self.drawings[RENDER if scale > RENDER // 2 else RENDER // 2]
            stamp = _vary(level[design, self.names.index(name)], rng, scale, augment)
            height, width = stamp.shape[:2]
            for _ in range(40):
                x, y = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
                box = (x, y, x + width, y + height)
                if all(_apart(box, other, size) for other in boxes):
                    region = (slice(y, y + height), slice(x, x + width))
                    alpha = stamp[..., 3:]
                    pixels[region] += (stamp[..., :3] - pixels[region]) * alpha
                    owner[region][alpha[..., 0] > 0.5] = len(boxes)
                    names.append(name)
                    boxes.append(box)
                    break
        order = np.argsort([(box[0] + box[2]) / 2 for box in boxes], kind="stable")
        rank = np.append(np.argsort(order), -1).astype(np.int8)  # the last entry keeps the ground at -1
        picture = np.clip(pixels * 255 + 0.5, 0, 255).astype(np.uint8)
        return Scene(picture, [names[i] for i in order], np.array([boxes[i] for i in order], dtype=float), rank[owner])


_VISIBLE = [255 * (alpha > 40) for alpha in range(256)]  # what counts as part of an object


def _apart(box: tuple, other: tuple, size: int) -> bool:
    """Whether two boxes overlap by less than 5 % of the smaller one and their order from left to right is clear."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    overlap = max(width, 0) * max(height, 0) / min(areas)
    return overlap < 0.05 and abs(box[0] + box[2] - other[0] - other[2]) / 2 >= 0.07 * size


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """A plain, graded or textured ground, float32 `(size, size, 3)` in 0…1."""
    first, second = rng.random((2, 3), dtype=np.float32)
    if rng.random() < 0.5:  # half of the grounds are light
        first, second = 0.65 + 0.35 * first, 0.65 + 0.35 * second
    kind = rng.integers(3)
    if kind == 0:
        return np.broadcast_to(first, (size, size, 3)).copy()
    if kind == 1:
        angle = rng.uniform(0, 2 * np.pi)
        along = np.linspace(-0.35, 0.35, size, dtype=np.float32)
        mix = 0.5 + np.float32(np.cos(angle)) * along + np.float32(np.sin(angle)) * along[:, None]
    else:
        grid = Image.fromarray(rng.random((rng.integers(3, 40),) * 2, dtype=np.float32))
        mix = np.asarray(grid.resize((size, size), Image.Resampling.BILINEAR)) * np.float32(rng.uniform(0.1, 0.5))
    return first + mix[..., None] * (second - first)


def _vary(drawing: np.ndarray, rng: np.random.Generator, size: float, augment: bool) -> np.ndarray:
    """The drawing turned a little, cropped to what is visible, its longer side at most `size` pixels.

    Returns a float32 array in 0…1 of shape `(height, width, 4)`.
    """
    angle, stretch = rng.uniform(-12, 12), 1.0
    if augment:
        angle, stretch = rng.uniform(-25, 25), np.exp(rng.uniform(-0.2, 0.2))
        if rng.random() < 0.5:
            drawing = np.ascontiguousarray(drawing[:, ::-1])
    shape = max(int(size * min(stretch, 1)), 8), max(int(size / max(stretch, 1)), 8)
    image = Image.fromarray(drawing).resize(shape, Image.Resampling.BILINEAR)
    image = image.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    image = image.crop(image.getchannel("A").point(_VISIBLE).getbbox())
    image.thumbnail((int(size),) * 2, Image.Resampling.BILINEAR)  # turning makes a drawing larger
    stamp = np.asarray(image, dtype=np.float32) / 255
    if augment and rng.random() < 0.8:
        colours = np.eye(3) * rng.uniform(0.7, 1.2) + rng.normal(0, 0.12, (3, 3))
        grey = rng.uniform(0.5, 1.0) * (rng.random() < 0.3)
        colours = (colours * (1 - grey) + grey / 3).astype(np.float32)
        stamp[..., :3] = np.clip((stamp[..., :3] - 0.5) @ colours + np.float32(0.5 + rng.uniform(-0.12, 0.12)), 0, 1)
    return stamp


def one(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(name: str) -> str:
    return PLURALS.get(name, name + "s")


def caption(scene: Scene) -> str:
    """The objects from left to right, equal ones counted, as OFA's captions without commas: "a dog and two cups"."""
    counts = {name: scene.names.count(name) for name in scene.names}
    return " and ".join(one(name) if n == 1 else f"{NUMBERS[n]} {plural(name)}" for name, n in counts.items())


def questions(scene: Scene, rng: np.random.Generator, names: list[str]) -> dict[str, tuple[str, str]]:
    """One question and its answer for every kind of question that the scene answers without doubt."""
    size = scene.pixels.shape[0]
    centres = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2 / size - 0.5  # (objects, x and y) from the middle
    others = [name for name in names if name not in scene.names]
    absent, present = others[rng.integers(len(others))], scene.names[rng.integers(len(scene.names))]
    asked = present if rng.random() < 0.5 else absent
    found: dict[str, tuple[str, str]] = {
        "exists": (f"is there {one(asked)}?", "yes" if asked == present else "no"),
        "count": ("how many objects are there?", str(len(scene.names))),
    }
    counted = present if rng.random() < 0.8 else absent
    found["count of"] = (f"how many {plural(counted)} are there?", str(scene.names.count(counted)))
    if len(scene.names) == 1:
        found["what"] = ("what is this?", present)
    else:
        side, axis, sign = (("left", 0, 1), ("right", 0, -1), ("top", 1, 1), ("bottom", 1, -1))[rng.integers(4)]
        order = np.argsort(sign * centres[:, axis])
        if abs(centres[order[0], axis] - centres[order[1], axis]) > 0.12:
            found["side"] = (f"what is {'at the' if axis else 'on the'} {side}?", scene.names[order[0]])
    if scene.names.count(present) == 1:
        x, y = centres[scene.names.index(present)]
        if max(abs(x), abs(y)) > 0.12 and max(abs(x), abs(y)) > 1.4 * min(abs(x), abs(y)):
            place = ("left" if x < 0 else "right") if abs(x) > abs(y) else ("top" if y < 0 else "bottom")
            found["where"] = (f"where is the {present}?", place)
    return found


def phrases(scene: Scene, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """A phrase and the box it means, for each object whose name is unique in the scene, in random order."""
    unique = [i for i, name in enumerate(scene.names) if scene.names.count(name) == 1]
    forms = ("{0}", "the {0}", "{1}")
    picks = [(forms[rng.integers(3)].format(scene.names[i], one(scene.names[i])), scene.boxes[i]) for i in unique]
    return [picks[i] for i in rng.permutation(len(picks))]


def write_demo(world: World, folder: Path, seeds: list[int]) -> None:
    """Scenes of the test design for `ofa demo`: one picture a seed, and `index.json` with what to ask of each."""
    folder.mkdir(parents=True, exist_ok=True)
    index = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        scene = world.compose(rng, (TEST_DESIGN,), counts=(3,), size=320)
        file = f"scene_{seed}.png"
        Image.fromarray(scene.pixels).save(folder / file, optimize=True)
        asked = questions(scene, rng, world.names)
        kinds = [kind for kind in ("count", "side", "where", "exists") if kind in asked][:3]
        index.append(
            {
                "file": file,
                "questions": [asked[kind][0] for kind in kinds],
                "phrase": (phrases(scene, rng) or [(scene.names[0], None)])[0][0],
            }
        )
        print(f"{folder / file}: {caption(scene)}")
    (folder / "index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of the artwork (%(default)s)")
    parser.add_argument("--demo", type=Path, metavar="DIR", help="also write demo scenes of the test design into DIR")
    parser.add_argument("--demo-seeds", type=int, nargs="+", default=[1, 2, 3], help="one scene a seed (%(default)s)")
    parser.add_argument("--preview", type=Path, metavar="PNG", help="also write a sheet of training and test scenes")
    args = parser.parse_args()
    path = build(args.cache)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    world = World(path)
    if args.demo:
        write_demo(world, args.demo, args.demo_seeds)
    if args.preview:
        rows = [(TRAIN_DESIGNS, True), (TRAIN_DESIGNS, False), ((TEST_DESIGN,), False), ((FAR_DESIGN,), False)]
        rngs = [[np.random.default_rng([i, j]) for j in range(8)] for i in range(4)]
        lines = zip(rngs, rows, strict=True)
        sheet = [np.hstack([world.compose(r, d, augment=a).pixels for r in line]) for line, (d, a) in lines]
        Image.fromarray(np.vstack(sheet)).save(args.preview)


if __name__ == "__main__":
    main()
