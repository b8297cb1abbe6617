"""
The drawings: icon sets by several designers, fetched from the registry, checked, and drawn once.

Icon sets come as archives of the npm registry (`npm pack`: nothing is installed, and no node code runs). What is drawn
lies in one file outside of the project, `drawings.npz`, that [`Drawings`] reads.
"""

import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from .things import THINGS


CACHE = Path("~/.cache/modeling_ofa/world").expanduser()
FILE = "drawings.npz"
RENDER = 128  # pixels a side of a stored drawing
NEAR = 0.02  # mean difference of colours and opacity (of 1) up to which two drawings are copies of each other


class WorldError(Exception):
    """Artwork is missing, or is not what was pinned; the message says what to do."""


@dataclass(frozen=True)
class IconSet:
    """
    A design: the things as one hand has drawn them.

    Args:
        version (`str`), sha256 (`str`): Those of the package `@iconify-json/NAME`.
        licence (`str`): Of the artwork, an SPDX identifier.
        credit (`str`): Whose work it is.
        family (`str`): Sets of one family are versions of the same drawings, and tell nothing of one another.
        others (`str`, *optional*):
            Icons that the set calls otherwise than the rest of them, `theirs:its` with spaces between; `theirs:` says
            that it shows something else under this name.
    """

    version: str
    sha256: str
    licence: str
    credit: str
    family: str
    others: str = ""

    def its_name(self, slug: str) -> str:
        """Gives the set's own name of an icon; none is empty."""
        return dict(pair.split(":") for pair in self.others.split()).get(slug, slug)


SETS = {
    "noto": IconSet(
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        "Noto Emoji, Google Inc. (https://github.com/googlefonts/noto-emoji)",
        "google",
    ),
    "noto-v1": IconSet(
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
        "Noto Emoji of before 2017, Google Inc. (https://github.com/googlefonts/noto-emoji)",
        "google",
    ),
    "fluent-emoji-flat": IconSet(
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        "Fluent Emoji Flat, Microsoft Corporation (https://github.com/microsoft/fluentui-emoji)",
        "microsoft",
    ),
    "fluent-emoji": IconSet(
        "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        "MIT",
        "Fluent Emoji, Microsoft Corporation (https://github.com/microsoft/fluentui-emoji)",
        "microsoft",
    ),
    "fxemoji": IconSet(
        "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0",
        "FxEmojis, Mozilla Foundation (https://github.com/mozilla/fxemoji)",
        "mozilla",
        others=(
            "cat:catside dog:dogside tiger:tigerside mouse:mouseside pig:pigside rabbit:bunnyside ewe:sheep "
            "camel:dromedarycamel two-hump-camel:bactriancamel spouting-whale:spurtingwhale bird: chicken: "
            "front-facing-baby-chick:frontfacingchick eggplant:aubergine ear-of-corn:earofmaize "
            "hot-pepper:chilipepper evergreen-tree:evergreen fallen-leaf:fallingleaf pizza:sliceofpizza "
            "gem-stone:gem locked:lock tennis: high-heeled-shoe:heels mans-shoe:mensshoe mobile-phone:cellphone "
            "telephone:blacktelephone wrapped-gift:present hourglass-done:hourglass "
            "hourglass-not-done:hourglassflowingsand scissors:blackscissors sun:whitesun "
            "magnifying-glass-tilted-left:leftmagnifyingglass magnifying-glass-tilted-right:rightmagnifyingglass "
            "backpack:schoolsatchel castle:europeancastle basketball:basketballandhoop "
            "globe-showing-americas:americasglobe globe-showing-europe-africa:europeafricaglobe "
            "globe-showing-asia-australia:asiaaustraliaglobe blue-heart:heartblue green-heart:heartgreen "
            "yellow-heart:heartyellow purple-heart:heartpurple sunglasses:darksunglasses"
        ),
    ),
    "emojione": IconSet(
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
        "EmojiTwo, Emoji One and the EmojiTwo contributors (https://github.com/EmojiTwo/emojitwo)",
        "emojione",
    ),
    "streamline-emojis": IconSet(
        "1.2.4",
        "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        "CC-BY-4.0",
        "Streamline Emojis, Streamline (https://github.com/webalys-hq/streamline-vectors)",
        "streamline",
        others=(
            "wine-glass:red-wine-glass backpack:school-backpack game-die:game-dice envelope: headphone: castle: "
            "ferris-wheel: rainbow: tent: tennis:"
        ),
    ),
    "twemoji": IconSet(
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        "Twemoji, Twitter, Inc and other contributors (https://github.com/jdecked/twemoji)",
        "twitter",
    ),
    "openmoji": IconSet(
        "1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "CC-BY-SA-4.0",
        "OpenMoji, HfG Schwäbisch Gmünd (https://github.com/hfg-gmuend/openmoji)",
        "openmoji",
    ),
}
TEST_DESIGN, FAR_DESIGN, VALIDATION_DESIGN = "twemoji", "openmoji", "emojione"
TRAIN_DESIGNS = tuple(name for name in SETS if name not in (TEST_DESIGN, FAR_DESIGN))
# For whatever is to be chosen: training without the validation design, and measuring on it.
EXPLORE_DESIGNS = tuple(name for name in TRAIN_DESIGNS if SETS[name].family != SETS[VALIDATION_DESIGN].family)


_RECIPE = hashlib.sha256(repr((SETS, THINGS, RENDER)).encode()).hexdigest()  # what a file of drawings is made by


def fetch(design: str, folder: Path) -> Path:
    """
    Gives the path of a set's archive in a folder, fetched if it isn't there yet.

    Raises:
        WorldError: It cannot be fetched, or is not the one that was pinned.
    """
    icons = SETS[design]
    archive = folder / f"iconify-json-{design}-{icons.version}.tgz"
    package = f"@iconify-json/{design}@{icons.version}"
    if not archive.exists():
        if shutil.which("npm") is None:
            raise WorldError(
                f"npm was not found, and {archive} does not exist. Install Node.js (it brings npm), or run "
                f"`npm pack {package}` on another machine and copy {archive.name} to {folder}."
            )
        done = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, capture_output=True, text=True)
        if done.returncode or not archive.exists():
            reason = done.stderr.strip() or "no archive was written"
            raise WorldError(f"`npm pack {package}` failed in {folder}: {reason}")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != icons.sha256:
        raise WorldError(
            f"{archive} is not the pinned archive (sha256 {found}, not {icons.sha256}). Delete it and try again."
        )
    return archive


def read_icons(design: str, archive: Path) -> dict:
    """
    Reads the set's `icons.json`.

    Raises:
        WorldError: Its version or licence is another than was pinned.
    """
    icons = SETS[design]
    with tarfile.open(archive) as tar:
        package, info, body = (
            json.load(tar.extractfile(f"package/{name}.json"))  # type: ignore[arg-type]  # they are files
            for name in ("package", "info", "icons")
        )
    found = (package["version"], package["license"], info["license"]["spdx"])
    if found != (icons.version, icons.licence, icons.licence):
        raise WorldError(
            f"{archive}: version and licences are {found}, expected {icons.version} under {icons.licence}."
        )
    return body


def find_icons(icons: Mapping, slug: str) -> list[str]:
    """
    Gives the names of the icons that a set has under a name (hyphens do not count), or under this name and a number.
    """
    aliases = icons.get("aliases", {})
    names = {name.replace("-", ""): name for name in (*aliases, *icons["icons"])}
    slug = slug.replace("-", "")
    found = [names[key] for key in ([slug] if slug in names else [f"{slug}{i}" for i in range(1, 4)]) if key in names]
    while any(name in aliases for name in found):
        found = [aliases[name]["parent"] if name in aliases else name for name in found]
    return found


def draw(icons: Mapping, name: str) -> np.ndarray:
    """
    Draws an icon of a set.

    Args:
        icons (`Mapping`): The set's `icons.json`.
        name (`str`): The icon's name.

    Returns:
        `np.ndarray` of shape `(RENDER, RENDER, 4)`: uint8, RGBA.
    """
    import resvg_py

    icon = {"width": icons.get("width", 16), "height": icons.get("height", 16), **icons["icons"][name]}
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {icon['width']} {icon['height']}"
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {namespaces} viewBox="{box}">{icon["body"]}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=RENDER, height=RENDER, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA").resize((RENDER, RENDER)))


@dataclass(frozen=True)
class Drawings:
    """
    All drawings.

    Args:
        pixels (`np.ndarray` of shape `(drawings, RENDER, RENDER, 4)`): uint8, RGBA.
        designs (`Sequence[str]`), names (`Sequence[str]`): Of each drawing its design, and which thing it shows.
    """

    pixels: np.ndarray
    designs: Sequence[str]
    names: Sequence[str]

    @classmethod
    def load(cls, path: str | Path = CACHE / FILE) -> "Drawings":
        """
        Reads what [`build`] has written.

        Raises:
            WorldError: There is no such file, or an older version wrote it.
        """
        if not Path(path).is_file():
            raise WorldError(f"{path} does not exist. Build it first: python scripts/build_world.py")
        with np.load(path, allow_pickle=False) as data:
            if "recipe" not in data or str(data["recipe"]) != _RECIPE:
                raise WorldError(f"{path} is of an older version. Build it anew: python scripts/build_world.py")
            return cls(data["pixels"], data["designs"].tolist(), data["names"].tolist())

    def save(self, path: Path) -> None:
        """Writes the file whole, or not at all."""
        partial = path.with_name(f"partial-{path.name}")
        np.savez_compressed(
            partial, pixels=self.pixels, designs=list(self.designs), names=list(self.names), recipe=_RECIPE
        )
        partial.replace(path)

    def of(self, designs: Sequence[str]) -> dict[str, dict[str, list[int]]]:
        """Gives the places of the drawings by thing and, of these, by design."""
        found: dict[str, dict[str, list[int]]] = {}
        for place, (design, name) in enumerate(zip(self.designs, self.names, strict=True)):
            if design in designs:
                found.setdefault(name, {}).setdefault(design, []).append(place)
        return found

    @cached_property
    def digests(self) -> list[str]:
        """`list[str]`: The SHA-256 of each drawing's pixels."""
        return [hashlib.sha256(one.tobytes()).hexdigest() for one in self.pixels]

    def copies(self) -> Iterator[tuple[int, int]]:
        """Gives the pairs of a drawing to test with and one to train with that are the same, or nearly (`NEAR`)."""
        looks = np.stack([_look(one) for one in self.pixels])
        trained = [place for place, design in enumerate(self.designs) if design in TRAIN_DESIGNS]
        for held_out, design in enumerate(self.designs):
            if design not in TRAIN_DESIGNS:
                apart = np.abs(looks[trained] - looks[held_out]).mean(axis=1)
                yield from ((held_out, trained[i]) for i in np.flatnonzero(apart < NEAR))


def _look(drawing: np.ndarray) -> np.ndarray:
    """What is visible of a drawing, at 32 x 32, colours multiplied by opacity, float32 in 0…1, flat."""
    image = Image.fromarray(drawing)
    image = image.crop(visible(image)).resize((32, 32), Image.Resampling.BILINEAR)
    return np.asarray(image.convert("RGBa"), dtype=np.float32).ravel() / 255


_VISIBLE = [255 * (alpha > 40) for alpha in range(256)]


def visible(image: Image.Image) -> tuple[int, int, int, int]:
    """Gives the box of what can be seen of an RGBA picture."""
    return image.getchannel("A").point(_VISIBLE).getbbox() or (0, 0, *image.size)


def build(folder: Path = CACHE) -> Drawings:
    """
    Fetches and draws all sets, and writes the drawings into a folder, unless they are there.

    Raises:
        WorldError: A set is not what was pinned, or something is drawn nowhere, or a drawing to test with is one to
            train with.
    """
    with contextlib.suppress(WorldError):
        return Drawings.load(folder / FILE)
    folder.mkdir(parents=True, exist_ok=True)
    pixels, designs, names = [], [], []
    for design in SETS:
        icons = read_icons(design, fetch(design, folder))
        for name, thing in THINGS.items():
            slugs = filter(None, map(SETS[design].its_name, thing.slugs))
            for icon in dict.fromkeys(icon for slug in slugs for icon in find_icons(icons, slug)):
                pixels.append(draw(icons, icon))
                designs.append(design)
                names.append(name)
    drawings = Drawings(np.stack(pixels), designs, names)
    for design in (TEST_DESIGN, FAR_DESIGN, VALIDATION_DESIGN):
        if missing := THINGS.keys() - drawings.of([design]):
            raise WorldError(f"The set {design} has no drawing of {', '.join(sorted(missing))}.")
    for held_out, trained in drawings.copies():
        raise WorldError(
            f"{designs[held_out]} and {designs[trained]} draw a {names[held_out]} alike: the test would not be fair. "
            "Leave one of the two out."
        )
    drawings.save(folder / FILE)
    return drawings
