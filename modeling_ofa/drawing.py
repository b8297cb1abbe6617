"""Boxes and heat drawn on pictures, and pictures written whole or not at all."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .image_processing_pil_ofa import to_rgb


BOX_COLOURS = ("#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4")
_OPACITY = 0.8  # of the hottest place


def save_picture(picture: Image.Image, output: Path) -> None:
    """Writes a picture beside its place and moves it there, so that no half of one is ever seen.

    Raises:
        OSError: if it cannot be written, for example on a full disk.
    """
    handle, temporary = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.", suffix=output.suffix)
    try:
        with os.fdopen(handle, "wb") as file:
            picture.save(file, format=Image.registered_extensions()[output.suffix.lower()])
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp gives the owner alone access
        os.replace(temporary, output)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def font_for(height: float) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Gives Pillow's own font at about `height` pixels."""
    return ImageFont.load_default(size=max(10, height))


def draw_boxes(picture: Image.Image, boxes: Sequence[Sequence[float]], labels: Sequence[str]) -> Image.Image:
    """Draws labelled boxes on a copy of a picture.

    Args:
        picture: any PIL picture.
        boxes: one `(x0, y0, x1, y1)` a box, in pixels of `picture`.
        labels: one text a box.

    Returns:
        An RGB picture of the same size.
    """
    drawn = to_rgb(picture.copy())
    draw = ImageDraw.Draw(drawn)
    thickness = max(2, round(min(drawn.size) / 100))
    font = font_for(min(drawn.size) / 20)
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        colour = BOX_COLOURS[index % len(BOX_COLOURS)]
        left, right = sorted((box[0], box[2]))
        top, bottom = sorted((box[1], box[3]))
        # A white edge keeps the line visible on a ground of its own colour.
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="white", width=thickness + 2)
        draw.rectangle((left, top, right, bottom), outline=colour, width=thickness)
        text = draw.textbbox((0, 0), label, font=font)
        width, height = text[2] + 2 * thickness, text[3] + 2 * thickness
        x = min(max(left, 0), max(drawn.width - width, 0))
        y = top - height if top >= height else min(bottom, drawn.height - height)  # above the box, else below it
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        draw.text((x + thickness, y + thickness), label, fill="white", font=font)
    return drawn


def enlarged(
    picture: Image.Image, boxes: Sequence[Sequence[float]], width: int
) -> tuple[Image.Image, list[list[float]]]:
    """Brings a picture and its boxes to a width, so that lines and labels drawn on a small one are sharp.

    Args:
        picture: any PIL picture.
        boxes: one `(x0, y0, x1, y1)` a box, in pixels of `picture`.
        width: the new width, in pixels; the height follows.
    """
    scale = width / picture.width
    resized = to_rgb(picture).resize((width, max(1, round(picture.height * scale))), Image.Resampling.BICUBIC)
    return resized, [[float(side) * scale for side in box] for box in boxes]


def draw_heat(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """Lays heat over a picture that has lost its colours: the hottest place is yellow, and red stands for half of it.

    Args:
        picture: any PIL picture.
        heat: numbers from 0, of shape `(rows, columns)`: a grid over the whole picture.

    Returns:
        An RGB picture of the same size.
    """
    levels = np.asarray(heat, dtype=np.float64)
    levels = 255 * levels / (levels.max() or 1)
    smooth = Image.fromarray(levels.astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    colours = ImageOps.colorize(smooth, black="navy", mid="red", white="yellow")
    grey = to_rgb(picture).convert("L").convert("RGB")
    return Image.composite(colours, grey, smooth.point(lambda level: round(level * _OPACITY)))
