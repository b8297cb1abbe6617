"""What scenes stand on: plain colours, gradients, textures, noise, patterns, landscapes and rooms."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw


# What people call colours, and examples of them; between these nobody is asked.
COLOURS = {
    "black": (15, 15, 18),
    "white": (250, 250, 248),
    "gray": (128, 128, 128),
    "red": (205, 30, 35),
    "orange": (245, 140, 25),
    "yellow": (248, 225, 60),
    "green": (50, 150, 60),
    "blue": (40, 85, 200),
    "purple": (125, 50, 160),
    "pink": (248, 165, 195),
    "brown": (110, 68, 35),
}
_SPREAD = 12  # of 255: how far a named ground may be from the example


def draw_ground(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str | None]:
    """
    Draws a ground.

    Args:
        rng (`np.random.Generator`): Where numbers are drawn.
        size (`int`): Pixels a side.

    Returns:
        `np.ndarray` of shape `(size, size, 3)`, float32 in 0…1, and the name of its colour if it has one.
    """
    if rng.random() < 0.12:
        colour = list(COLOURS)[rng.integers(len(COLOURS))]
        pixels = (np.array(COLOURS[colour]) + rng.uniform(-_SPREAD, _SPREAD, 3)) / 255
        return np.full((size, size, 3), pixels.clip(0, 1), dtype=np.float32), colour
    kinds, odds = zip(*_KINDS, strict=True)
    pixels = kinds[rng.choice(len(kinds), p=odds)](rng, size)
    if rng.random() < 0.2:
        pixels = _scatter(pixels, rng, size)
    if rng.random() < 0.25:  # as of a camera
        grain = rng.standard_normal((size, size, 1), dtype=np.float32)
        pixels = (pixels + grain * np.float32(rng.uniform(0.01, 0.06))).clip(0, 1)
    return pixels, None


def _colours(rng: np.random.Generator, number: int = 2) -> np.ndarray:
    """Colours of which half are light all together, `(number, 3)`."""
    colours = rng.random((number, 3), dtype=np.float32)
    return 0.65 + 0.35 * colours if rng.random() < 0.5 else colours


def _mix(amount: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Goes from the first colour to the second, `(size, size)` → `(size, size, 3)`."""
    return colours[0] + amount[..., None] * (colours[1] - colours[0])


def _plain(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.broadcast_to(_colours(rng)[0], (size, size, 3)).copy()


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    along = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    if rng.random() < 0.3:  # round
        x, y = rng.uniform(-0.5, 0.5, 2).astype(np.float32)
        return _mix(np.hypot(along - x, (along - y)[:, None]).clip(0, 1), _colours(rng))
    angle = np.float32(rng.uniform(0, 2 * np.pi))
    return _mix(0.5 + 0.7 * (np.cos(angle) * along + np.sin(angle) * along[:, None]), _colours(rng))


def _cloudy(rng: np.random.Generator, size: int) -> np.ndarray:
    """Two colours in patches of some size."""
    return _mix(_field(rng, size, int(rng.integers(3, 40))) * np.float32(rng.uniform(0.15, 0.6)), _colours(rng))


def _blotched(rng: np.random.Generator, size: int) -> np.ndarray:
    """Coarse and fine patches of any colours, as photographs out of focus have them."""
    colour, contrast = _colours(rng)[0], np.float32(rng.uniform(0.15, 0.5))
    layers = [
        np.stack([_field(rng, size, cells) for _ in range(3)], axis=-1) - 0.5
        for cells in (int(rng.integers(2, 6)), int(rng.integers(8, 33)))
    ]
    return (colour + contrast * (layers[0] + 0.5 * layers[1])).clip(0, 1)


def _field(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise in 0…1, `(size, size)`."""
    grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BILINEAR))


def _pattern(rng: np.random.Generator, size: int) -> np.ndarray:
    """Stripes, checks or dots."""
    along = np.arange(size, dtype=np.float32)
    period, angle = rng.uniform(0.06, 0.25) * size, np.float32(rng.uniform(0, np.pi))
    u = (np.cos(angle) * along + np.sin(angle) * along[:, None]) / period
    v = (np.cos(angle) * along[:, None] - np.sin(angle) * along) / period
    kind = rng.integers(3)
    if kind == 0:
        amount = np.mod(u, 1) < 0.5
    elif kind == 1:
        amount = (np.floor(u) + np.floor(v)) % 2 == 0
    else:
        amount = np.hypot(np.mod(u, 1) - 0.5, np.mod(v, 1) - 0.5) < rng.uniform(0.15, 0.4)
    return _mix(amount.astype(np.float32) * np.float32(rng.uniform(0.15, 0.7)), _colours(rng))


def _landscape(rng: np.random.Generator, size: int) -> np.ndarray:
    """Sky above, and one to three hills, nearer ones darker."""
    sky = np.array([[0.45, 0.7, 0.95], [0.85, 0.92, 1.0]]) + rng.normal(0, 0.12, (2, 3))
    pixels = _mix(
        np.broadcast_to(np.linspace(0, 1, size, dtype=np.float32)[:, None], (size, size)), sky.astype(np.float32)
    )
    land = np.array([[0.4, 0.7, 0.35], [0.85, 0.75, 0.5], [0.5, 0.5, 0.5], [0.95, 0.95, 0.98]])[rng.integers(4)]
    along, number = np.arange(size, dtype=np.float32) / size, int(rng.integers(1, 4))
    for i in range(number):
        phase, bends, height = rng.uniform(0, 2 * np.pi), rng.uniform(2, 9), rng.uniform(0.01, 0.08)
        edge = rng.uniform(0.4, 0.6) + 0.3 * i / number + height * np.sin(bends * along + phase)
        colour = land * (1 - 0.15 * i) + rng.normal(0, 0.05, 3)
        pixels[along[:, None] > edge] = colour
    return pixels.clip(0, 1).astype(np.float32)


def _room(rng: np.random.Generator, size: int) -> np.ndarray:
    """A wall, perhaps papered, and a floor or a table."""
    wall, floor = _colours(rng), _colours(rng)
    pixels = np.broadcast_to(wall[0], (size, size, 3)).copy()
    if rng.random() < 0.4:
        pixels[:, :: int(rng.integers(6, 20))] = 0.8 * wall[0] + 0.2 * wall[1]
    edge = int(size * rng.uniform(0.5, 0.8))
    depth = np.linspace(0, 0.5, size - edge, dtype=np.float32)[:, None]
    pixels[edge:] = _mix(np.broadcast_to(depth, (size - edge, size)), floor)
    return pixels


def _scatter(pixels: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Lines, dots and scribbles that are no things and have no names."""
    image = Image.fromarray((pixels * 255).clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 12)):
        x, y = rng.uniform(0, size, 2)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        if rng.random() < 0.5:
            radius = size * rng.uniform(0.004, 0.02)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        else:
            steps = rng.normal(0, 0.12 * size, (int(rng.integers(1, 4)), 2)).cumsum(axis=0) + (x, y)
            pen.line([(x, y), *map(tuple, steps)], fill=colour, width=max(1, size // 128))
    return np.asarray(image, dtype=np.float32) / 255


_KINDS: tuple[tuple[Callable[[np.random.Generator, int], np.ndarray], float], ...] = (
    (_plain, 0.15),
    (_gradient, 0.2),
    (_cloudy, 0.15),
    (_blotched, 0.15),
    (_pattern, 0.1),
    (_landscape, 0.15),
    (_room, 0.1),
)
