"""Random changes to the look of training pictures, as the official pre-training and ImageNet fine-tuning make them."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import torch
from torch import Generator


Fill = tuple[int, int, int]

_GREY: Fill = (128, 128, 128)
_ATTEMPTS = 10  # at drawing a rectangle that fits
_OFA_STRENGTH = 0.7


@dataclass(frozen=True)
class Randomness:
    """
    Where random numbers come from: the official code draws from three generators, and so does this package, in the
    same order. Without arguments these are the global ones of Python, numpy and torch.

    Args:
        python (`random.Random`, *optional*): Draws sizes, flips and places.
        numpy (`np.random.RandomState`, *optional*): Draws which augmentations are applied.
        torch (`torch.Generator`, *optional*): Draws scales, flips of ImageNet's pictures and noise.
    """

    # The modules' functions are methods of a hidden global generator.
    python: random.Random = cast(random.Random, random)
    numpy: np.random.RandomState = cast(np.random.RandomState, np.random)
    torch: Generator = torch.default_generator

    @classmethod
    def seeded(cls, seed: int) -> "Randomness":
        """Gives generators of its own, which draw what the global ones draw when all are seeded with `seed`."""
        return cls(random.Random(seed), np.random.RandomState(seed), Generator().manual_seed(seed))


def ofa_augment(picture: PIL.Image.Image, rng: Randomness) -> PIL.Image.Image:
    """
    Applies OFA's `RandomAugment(2, 7)`: two of ten operations, each with a probability of a half, at strength 7 of 10.

    Shears, shifts and rotations interpolate exactly as OpenCV does, on which the official code builds. Two operations
    do here what that code says it does, the same as Pillow, and not what it does: its `AutoContrast` makes all of a
    channel white that has no pixel of 0, and its `Sharpness` turns what gets brighter than 255 dark, and what gets
    darker than 0 bright.

    Args:
        picture (`PIL.Image.Image`): An RGB picture.
        rng ([`Randomness`]): The numbers come from its `numpy`.
    """
    for name in rng.numpy.choice(list(_OFA_OPERATIONS), 2):
        if rng.numpy.random() <= 0.5:
            picture = _OFA_OPERATIONS[name](picture, rng)
    return picture


def rand_augment(picture: PIL.Image.Image, rng: Randomness, fill: Fill = _GREY) -> PIL.Image.Image:
    """
    Applies timm's RandAugment with its setting `rand-m9-mstd0.5-inc1`: two of fifteen operations, each with a
    probability of a half, at a strength drawn from a normal distribution around 9 of 10.

    Args:
        picture (`PIL.Image.Image`): An RGB picture.
        rng ([`Randomness`]): `numpy` draws the operations, `python` the rest.
        fill (`tuple[int, int, int]`, *optional*, defaults to grey):
            Colour of what comes in from outside the picture; timm takes the mean with which pictures are normalised.
    """
    for name in rng.numpy.choice(list(_TIMM_OPERATIONS), 2):
        if rng.python.random() <= 0.5:
            strength = min(max(rng.python.gauss(9, 0.5) / 10, 0.0), 1.0)
            picture = _TIMM_OPERATIONS[name](picture, strength, rng, fill)
    return picture


def random_resized_crop(picture: PIL.Image.Image, rng: Randomness, size: int) -> PIL.Image.Image:
    """
    Resizes a random part of a picture to a square: 8 to 100 % of its area, of a shape between 3:4 and 4:3.

    Args:
        picture (`PIL.Image.Image`): The picture.
        rng ([`Randomness`]): The numbers come from its `python`.
        size (`int`): Side of the square.
    """
    width, height = picture.size
    for _ in range(_ATTEMPTS):
        area = rng.python.uniform(0.08, 1.0) * (width * height)
        ratio = math.exp(rng.python.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            top = rng.python.randint(0, height - h)
            left = rng.python.randint(0, width - w)
            break
    else:  # the largest part in the middle that is not too long
        w, h = min(width, round(height * 4 / 3)), min(height, round(width / (3 / 4)))
        left, top = (width - w) // 2, (height - h) // 2
    return picture.crop((left, top, left + w, top + h)).resize((size, size), PIL.Image.Resampling.BICUBIC)


def random_erase(pixel_values: torch.Tensor, rng: Randomness, probability: float = 0.25) -> torch.Tensor:
    """
    Replaces a random rectangle by noise: 2 to 33 % of the area, of a shape between 3:10 and 10:3.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(channels, height, width)`): A normalised picture.
        rng ([`Randomness`]): `python` draws the rectangle, `torch` the noise.
        probability (`float`, *optional*, defaults to 0.25): How likely there is such a rectangle.

    Returns:
        `torch.FloatTensor` of shape `(channels, height, width)`. `pixel_values` is left as it is.
    """
    if rng.python.random() > probability:
        return pixel_values
    channels, height, width = pixel_values.shape
    for _ in range(_ATTEMPTS):
        area = rng.python.uniform(0.02, 1 / 3) * (height * width)
        ratio = math.exp(rng.python.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < height and w < width:
            top = rng.python.randint(0, height - h)
            left = rng.python.randint(0, width - w)
            pixel_values = pixel_values.clone()
            noise = torch.empty((channels, h, w), dtype=pixel_values.dtype).normal_(generator=rng.torch)
            pixel_values[:, top : top + h, left : left + w] = noise
            break
    return pixel_values


def _warp(picture: PIL.Image.Image, matrix: tuple[float, ...]) -> PIL.Image.Image:
    """
    Moves each pixel from `(x, y)` to `(a x + b y + c, d x + e y + f)`, with grey outside of the picture.

    Interpolates as OpenCV's `warpAffine` does: linearly, between places rounded to 1/32 of a pixel, in integers.
    """
    a, b, c, d, e, f = matrix
    scale = 1 / (a * e - b * d)
    a, b, d, e = e * scale, -b * scale, -d * scale, a * scale  # the way back, from the new place to the old one
    c, f = -a * c - b * f, -d * c - e * f
    width, height = picture.size
    x, y = np.arange(width), np.arange(height)[:, None]

    # Places in 1/1024 of a pixel, then (the 16 is for rounding) in 1/32.
    old_x = (np.rint((b * y + c) * 1024) + 16 + np.rint(a * x * 1024)).astype(np.int32) >> 5  # (height, width)
    old_y = (np.rint((e * y + f) * 1024) + 16 + np.rint(d * x * 1024)).astype(np.int32) >> 5
    right, down = (old_x & 31)[..., None], (old_y & 31)[..., None]

    frame = np.full((height + 2, width + 2, 3), _GREY, dtype=np.int32)  # a pixel of grey around the picture
    frame[1:-1, 1:-1] = np.asarray(picture)
    rows = [np.clip((old_y >> 5) + i, 0, height + 1) * (width + 2) for i in (1, 2)]
    columns = [np.clip((old_x >> 5) + i, 0, width + 1) for i in (1, 2)]
    pixels = frame.reshape(-1, 3)
    upper, lower = (
        pixels.take(row + columns[0], axis=0) * (32 - right) + pixels.take(row + columns[1], axis=0) * right
        for row in rows
    )
    return PIL.Image.fromarray(((upper * (32 - down) + lower * down + 512) >> 10).astype(np.uint8))


def _shift(picture: PIL.Image.Image, rng: Randomness, along_x: bool) -> PIL.Image.Image:
    offset = -_negate_at_random(_OFA_STRENGTH * 10, rng)
    return _warp(picture, (1, 0, offset, 0, 1, 0) if along_x else (1, 0, 0, 0, 1, offset))


def _shear(picture: PIL.Image.Image, rng: Randomness, along_x: bool) -> PIL.Image.Image:
    factor = float(
        np.float32(_negate_at_random(_OFA_STRENGTH * 0.3, rng))
    )  # the official matrix is of single precision
    return _warp(picture, (1, factor, 0, 0, 1, 0) if along_x else (1, 0, 0, factor, 1, 0))


def _rotate(picture: PIL.Image.Image, rng: Randomness) -> PIL.Image.Image:
    degrees = _OFA_STRENGTH * 30
    angle = math.radians(-degrees if rng.numpy.random() < 0.5 else degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = picture.width / 2, picture.height / 2  # turned around this point
    return _warp(picture, (cos, sin, (1 - cos) * x - sin * y, -sin, cos, sin * x + (1 - cos) * y))


def _negate_at_random(value: float, rng: Randomness) -> float:
    return -value if rng.numpy.random() > 0.5 else value


_OFA_ENHANCEMENT = _OFA_STRENGTH * 1.8 + 0.1
_OFA_OPERATIONS: dict[str, Callable[[PIL.Image.Image, Randomness], PIL.Image.Image]] = {
    "identity": lambda picture, rng: picture,
    "auto_contrast": lambda picture, rng: PIL.ImageOps.autocontrast(picture),
    "equalize": lambda picture, rng: PIL.ImageOps.equalize(picture),
    "brightness": lambda picture, rng: PIL.ImageEnhance.Brightness(picture).enhance(_OFA_ENHANCEMENT),
    "sharpness": lambda picture, rng: PIL.ImageEnhance.Sharpness(picture).enhance(_OFA_ENHANCEMENT),
    "shear_x": partial(_shear, along_x=True),
    "shear_y": partial(_shear, along_x=False),
    "translate_x": partial(_shift, along_x=True),
    "translate_y": partial(_shift, along_x=False),
    "rotate": _rotate,
}

TimmOperation = Callable[[PIL.Image.Image, float, Randomness, Fill], PIL.Image.Image]


def _affine(picture: PIL.Image.Image, matrix: tuple[float, ...], fill: Fill) -> PIL.Image.Image:
    return picture.transform(
        picture.size, PIL.Image.Transform.AFFINE, matrix, resample=PIL.Image.Resampling.BICUBIC, fillcolor=fill
    )


def _timm_rotate(picture: PIL.Image.Image, strength: float, rng: Randomness, fill: Fill) -> PIL.Image.Image:
    angle = _either_sign(strength * 30, rng)
    return picture.rotate(angle, resample=PIL.Image.Resampling.BICUBIC, fillcolor=fill)


def _either_sign(value: float, rng: Randomness) -> float:
    return -value if rng.python.random() > 0.5 else value


def _posterize(picture: PIL.Image.Image, strength: float, rng: Randomness, fill: Fill) -> PIL.Image.Image:
    return PIL.ImageOps.posterize(picture, 4 - int(strength * 4))


def _solarize(picture: PIL.Image.Image, strength: float, rng: Randomness, fill: Fill) -> PIL.Image.Image:
    return PIL.ImageOps.solarize(picture, 256 - int(strength * 256))


def _brighten_dark(picture: PIL.Image.Image, strength: float, rng: Randomness, fill: Fill) -> PIL.Image.Image:
    added = int(strength * 110)
    return picture.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


def _enhance(enhancer: Callable) -> TimmOperation:
    """More or less of what `enhancer` changes: a factor of `1 ± 0.9 strength`, but 0.1 at least."""

    def operation(picture: PIL.Image.Image, strength: float, rng: Randomness, fill: Fill) -> PIL.Image.Image:
        return enhancer(picture).enhance(max(0.1, 1 + _either_sign(strength * 0.9, rng)))

    return operation


_TIMM_OPERATIONS: dict[str, TimmOperation] = {
    "auto_contrast": lambda picture, strength, rng, fill: PIL.ImageOps.autocontrast(picture),
    "equalize": lambda picture, strength, rng, fill: PIL.ImageOps.equalize(picture),
    "invert": lambda picture, strength, rng, fill: PIL.ImageOps.invert(picture),
    "rotate": _timm_rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _brighten_dark,
    "color": _enhance(PIL.ImageEnhance.Color),
    "contrast": _enhance(PIL.ImageEnhance.Contrast),
    "brightness": _enhance(PIL.ImageEnhance.Brightness),
    "sharpness": _enhance(PIL.ImageEnhance.Sharpness),
    "shear_x": lambda picture, strength, rng, fill: _affine(
        picture, (1, _either_sign(strength * 0.3, rng), 0, 0, 1, 0), fill
    ),
    "shear_y": lambda picture, strength, rng, fill: _affine(
        picture, (1, 0, 0, _either_sign(strength * 0.3, rng), 1, 0), fill
    ),
    "translate_x": lambda picture, strength, rng, fill: _affine(
        picture, (1, 0, _either_sign(strength * 0.45, rng) * picture.width, 0, 1, 0), fill
    ),
    "translate_y": lambda picture, strength, rng, fill: _affine(
        picture, (1, 0, 0, 0, 1, _either_sign(strength * 0.45, rng) * picture.height), fill
    ),
}


__all__ = ["Randomness", "ofa_augment", "rand_augment", "random_erase", "random_resized_crop"]
