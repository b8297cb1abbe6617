"""Composes pictures of the drawings, with all that is known about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from .artwork import CACHE, FILE, TRAIN_DESIGNS, Drawings, visible
from .grounds import draw_ground


COUNTS = (1, 1, 1, 2, 2, 2, 3, 3, 4, 5)  # objects in a scene, each number as likely as it is frequent here
# Side of the smallest and of the largest object, of the scene's, by how many there are.
_SIDES = ((0.35, 0.85), (0.3, 0.58), (0.27, 0.48), (0.25, 0.42), (0.24, 0.38))
_APART = 0.07  # of a scene's side: how far the centres of two objects are from each other, from left to right
_SEEN = 40 / 255  # opacity from which on a pixel belongs to an object
_HIDDEN = 0.25  # how much of an object another one may hide


@dataclass(frozen=True)
class Scene:
    """
    A composed picture.

    Args:
        pixels (`np.ndarray` of shape `(size, size, 3)`): uint8.
        names (`list[str]`): The objects, from left to right.
        boxes (`np.ndarray` of shape `(objects, 4)`): `x0, y0, x1, y1` in pixels of what can be seen of each of them.
        owner (`np.ndarray` of shape `(size, size)`): int8, the object that a pixel shows, -1 on the ground.
        drawings (`Sequence[int]`): Which drawing of [`Drawings`] each object is.
        ground (`str`, *optional*): The colour of the ground, if it is plain and its colour has a name.
    """

    pixels: np.ndarray
    names: list[str]
    boxes: np.ndarray
    owner: np.ndarray
    drawings: Sequence[int] = ()
    ground: str | None = None

    @property
    def centres(self) -> np.ndarray:
        """`np.ndarray` of shape `(objects, 2)`: x and y from the middle, of the side: from -0.5 to 0.5."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2 / len(self.pixels) - 0.5

    @property
    def areas(self) -> np.ndarray:
        """`np.ndarray` of shape `(objects,)`: of the boxes."""
        return np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1)


class World:
    """
    Composes scenes. A scene follows from the state of the generator and the drawings, and from nothing else.

    Args:
        path (`str` or `Path`, *optional*): What [`build`] wrote.

    Raises:
        WorldError: It has not.
    """

    def __init__(self, path: str | Path = CACHE / FILE):
        self.artwork = Drawings.load(path)
        self.names = sorted(set(self.artwork.names))
        self._levels = []  # for each drawing what is visible of it, whole, half and a quarter of the size
        for pixels in self.artwork.pixels:
            image = Image.fromarray(pixels)
            image = image.crop(visible(image)).convert("RGBa")  # colours times opacity, as everything here
            self._levels.append([image, image.reduce(2), image.reduce(4)])
        self._places: dict[tuple[str, ...], dict[str, list[list[int]]]] = {}

    def compose(
        self,
        rng: np.random.Generator,
        designs: Sequence[str] = TRAIN_DESIGNS,
        counts: Sequence[int] = COUNTS,
        size: int = 128,
        augment: bool = False,
    ) -> Scene:
        """
        Composes a scene.

        Args:
            rng (`np.random.Generator`): Where numbers are drawn.
            designs (`Sequence[str]`): Each object is drawn by one of these, all as likely where they have the thing.
            counts (`Sequence[int]`): How many objects there are at most, each number as likely.
            size (`int`): Pixels a side.
            augment (`bool`):
                Whether to change colours, shapes and outlines of objects, as only training does, so that a model
                learns more than the hands of a few designers.

        Returns:
            [`Scene`]: Objects of which at most a quarter is hidden, in a clear order from left to right.
        """
        things = self._of(tuple(designs))
        known = list(things)
        count = int(rng.choice(counts))
        canvas = _Canvas(*draw_ground(rng, size), hidden=_HIDDEN if rng.random() < 0.3 else 0.0)
        low, high = _SIDES[min(max(count, 1), len(_SIDES)) - 1]
        for _ in range(count):
            again = canvas.names and rng.random() < 0.2
            name = canvas.names[0] if again else known[rng.integers(len(known))]
            drawn = things[name][rng.integers(len(things[name]))]
            drawing = drawn[rng.integers(len(drawn))]
            stamp = self._stamp(drawing, rng, size * rng.uniform(low, high), augment)
            canvas.put(stamp, name, drawing, rng)
        return canvas.scene()

    def _of(self, designs: tuple[str, ...]) -> dict[str, list[list[int]]]:
        """The places of the drawings by thing: of each design that has it those of this design."""
        if designs not in self._places:
            found = self.artwork.of(designs)
            self._places[designs] = {name: list(found[name].values()) for name in sorted(found)}
        return self._places[designs]

    def _stamp(self, place: int, rng: np.random.Generator, side: float, augment: bool) -> np.ndarray:
        """
        Turns a drawing a little and scales it so that it has so many pixels a side at most.

        Returns:
            `np.ndarray` of shape `(height, width, 4)`: float32 in 0…1, colours times opacity, nothing around it.
        """
        angle, forward = rng.uniform(-12, 12), np.eye(2)
        if augment:
            angle, stretch = rng.uniform(-30, 30), np.exp(rng.uniform(-0.2, 0.2))
            mirror = (-1, 1)[rng.integers(2)]
            forward = np.array([[mirror * stretch, rng.uniform(-0.15, 0.15)], [0, 1 / stretch]])
        cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        forward = np.array([[cosine, -sine], [sine, cosine]]) @ forward
        *larger, image = self._levels[place]
        while larger and max(np.abs(forward) @ image.size) < 0.75 * side:
            image = larger.pop()
        forward *= side / max(np.abs(forward) @ image.size)
        image = _move(image, forward)
        if augment and rng.random() < 0.2:
            image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.2)))
        stamp = np.asarray(image, dtype=np.float32) / 255
        if augment:
            stamp = _redraw(_recolour(stamp, rng), rng)
        x0, y0, x1, y1 = _box(stamp[..., 3] > _SEEN)
        return stamp[y0:y1, x0:x1]


def _move(image: Image.Image, forward: np.ndarray) -> Image.Image:
    """Applies a linear map to a picture, on a canvas of the size that it needs."""
    old = np.array(image.size)
    new = np.maximum(np.abs(forward) @ old, 1).astype(int)
    back = np.linalg.inv(forward)
    offset = old / 2 - back @ (new / 2)
    matrix = (*back[0], offset[0], *back[1], offset[1])
    return image.transform(tuple(new), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _recolour(stamp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes the colours of a stamp: mixed and turned, paler, brighter or darker."""
    if rng.random() < 0.15:
        return stamp
    colours = np.eye(3) * rng.uniform(0.7, 1.2) + rng.normal(0, 0.12, (3, 3))
    if rng.random() < 0.2:
        colours = colours @ _turned_hue(rng.uniform(-np.pi, np.pi))
    if rng.random() < 0.3:
        pale = rng.uniform(0.5, 1.0)
        colours = colours * (1 - pale) + pale / 3
    light = 0.5 - colours.sum(axis=0) / 2 + rng.uniform(-0.15, 0.15)  # middle grey stays middle grey, nearly
    changed = stamp @ np.vstack([colours, light]).astype(np.float32)
    stamp[..., :3] = changed.clip(0, stamp[..., 3:])
    return stamp


def _turned_hue(angle: float) -> np.ndarray:
    """The matrix that turns colours around the axis of greys."""
    cosine, sine = np.cos(angle), np.sin(angle) / np.sqrt(3)
    even = (1 - cosine) / 3
    return np.array(
        [
            [cosine + even, even - sine, even + sine],
            [even + sine, cosine + even, even - sine],
            [even - sine, even + sine, cosine + even],
        ]
    )


def _redraw(stamp: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes the hand: with an outline, or with a piece missing."""
    if rng.random() < 0.2:
        stamp = np.pad(stamp, ((1, 1), (1, 1), (0, 0)))
        alpha = stamp[..., 3]
        wide = alpha.copy()
        for axis in (0, 1):
            wide = np.maximum(wide, np.maximum(np.roll(wide, 1, axis), np.roll(wide, -1, axis)))
        colour = np.append(rng.uniform(0, 0.35, 3), 1).astype(np.float32)
        stamp = stamp + (wide * (1 - alpha))[..., None] * colour
    if rng.random() < 0.15:
        sides = np.array(stamp.shape[:2])
        gone = np.maximum(sides * rng.uniform(0.15, 0.4, 2), 1).astype(int)
        y, x = rng.integers(0, sides - gone + 1)
        stamp[y : y + gone[0], x : x + gone[1]] = 0
    return stamp


class _Canvas:
    """A scene that is being made: on `pixels`, objects of which no more than a share is `hidden` by later ones."""

    def __init__(self, pixels: np.ndarray, ground: str | None, hidden: float):
        self.pixels, self.ground, self.hidden = pixels, ground, hidden
        self.owner = np.full(pixels.shape[:2], -1, dtype=np.int8)
        self.names: list[str] = []
        self.drawings: list[int] = []
        self.areas = np.zeros(0, dtype=int)  # pixels of each object, and how many of them can be seen
        self.seen = np.zeros(0, dtype=int)
        self.middles = np.zeros(0)

    def put(self, stamp: np.ndarray, name: str, drawing: int, rng: np.random.Generator) -> None:
        """Puts an object at a random place, if one is found soon."""
        size, (height, width) = len(self.pixels), stamp.shape[:2]
        alpha = stamp[..., 3:]
        mask = alpha[..., 0] > _SEEN
        for _ in range(40):
            x, y = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
            region, middle = (slice(y, y + height), slice(x, x + width)), x + width / 2
            covered = np.bincount(self.owner[region][mask] + 1, minlength=len(self.names) + 1)[1:]
            seen = self.seen - covered
            if (seen >= (1 - self.hidden) * self.areas).all() and (abs(self.middles - middle) >= _APART * size).all():
                self.pixels[region] = self.pixels[region] * (1 - alpha) + stamp[..., :3]
                self.owner[region][mask] = len(self.names)
                area = np.count_nonzero(mask)
                self.areas, self.seen = np.append(self.areas, area), np.append(seen, area)
                self.middles = np.append(self.middles, middle)
                self.names.append(name)
                self.drawings.append(drawing)
                return

    def scene(self) -> Scene:
        boxes = np.array([_box(self.owner == i) for i in range(len(self.names))], dtype=float).reshape(-1, 4)
        order = np.argsort(boxes[:, 0] + boxes[:, 2], kind="stable")
        rank = np.append(np.argsort(order), -1).astype(np.int8)  # the last entry keeps the ground at -1
        pixels = (self.pixels * 255 + 0.5).clip(0, 255).astype(np.uint8)
        names, drawings = ([listed[i] for i in order] for listed in (self.names, self.drawings))
        return Scene(pixels, names, boxes[order], rank[self.owner], drawings, self.ground)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
