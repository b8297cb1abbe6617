"""How two tasks see their pictures: text to be read undistorted, a picture to be completed without its middle."""

import copy
import random
from typing import TypeVar

import numpy as np
import PIL.Image
import torch

from .image_processing_pil_ofa import to_rgb


Pixels = TypeVar("Pixels", torch.Tensor, np.ndarray)

_LINE_HEIGHT = 64  # pixels, the least that a line of text is resized to
_DOCUMENT_STRIPS = 4


def ocr_resize(
    picture: PIL.Image.Image, side: int, document: bool = False, rng: random.Random | None = None
) -> PIL.Image.Image:
    """
    Resizes a picture of text to a square.

    Its longer side becomes `side` and the shorter one keeps the proportion, but has 64 pixels at least; what is
    missing to the square repeats the outermost pixels. Where in the square the picture lies is random in the official
    code, at evaluation too; here only if there is an `rng` to draw from, else it lies in the middle.

    A `document`, which is one very long line, is first resized to a height of 64 and a width of four times `side`
    whatever its shape, and its four quarters are put below each other.

    Args:
        picture (`PIL.Image.Image`): The picture, of any mode.
        side (`int`): Height and width of the square, 64 at least, of a `document` 256 at least (officially 480).
        document (`bool`, *optional*, defaults to `False`): Whether it is a long line that is to be wrapped.
        rng (`random.Random`, *optional*): Draws the place; `random.Random(seed)` gives the official code's places.

    Returns:
        `PIL.Image.Image`: An RGB picture of `side` times `side` pixels.

    Raises:
        ValueError: `side` is too small.
    """
    least = _LINE_HEIGHT * (_DOCUMENT_STRIPS if document else 1)
    if side < least:
        raise ValueError(f"A {'document' if document else 'picture'} for OCR needs {least} pixels a side, not {side}.")
    picture = to_rgb(picture)
    width, height = picture.size
    if document:
        size = (_DOCUMENT_STRIPS * side, _LINE_HEIGHT)
    elif width >= height:
        size = (side, max(_LINE_HEIGHT, int(side * (height / width))))
    else:
        size = (max(_LINE_HEIGHT, int(side * (width / height))), side)
    pixels = np.asarray(picture.resize(size, PIL.Image.Resampling.BICUBIC))  # (height, width, 3)
    if document:
        pixels = np.concatenate(np.split(pixels, _DOCUMENT_STRIPS, axis=1))  # (256, side, 3)

    axis = 1 if pixels.shape[1] < side else 0
    space = side - pixels.shape[axis]
    before = space // 2 if rng is None else rng.randint(0, space)
    padding = [(0, 0), (0, 0), (0, 0)]
    padding[axis] = (before, space - before)
    return PIL.Image.fromarray(np.pad(pixels, padding, mode="edge"))


def hide_middle(pixel_values: Pixels) -> Pixels:
    """
    Makes the middle of pictures zero, half as wide and half as high as the whole: what image infilling is to paint.

    Args:
        pixel_values (`torch.FloatTensor` or `np.ndarray` of shape `(..., height, width)`):
            Normalised; 4 divides the sides.

    Returns:
        The same with a hole; `pixel_values` is left as it is.
    """
    height, width = pixel_values.shape[-2:]
    hidden = copy.deepcopy(pixel_values)
    hidden[..., height // 4 : height - height // 4, width // 4 : width - width // 4] = 0
    return hidden


__all__ = ["hide_middle", "ocr_resize"]
