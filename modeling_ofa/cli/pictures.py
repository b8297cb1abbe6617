"""Pictures for the `ofa` command: reading them safely, drawing boxes, writing them whole or not at all."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..image_processing_pil_ofa import read_picture as processor_read_picture
from ..image_processing_pil_ofa import to_rgb
from .errors import CommandError, first_line


BOX_COLOURS = ("#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4")


def check_picture(source: str) -> None:
    """Says early, before a model is loaded, that there is no such picture.

    Raises:
        CommandError: if `source` is neither a URL nor the path of a file.
    """
    if source.startswith(("http://", "https://", "file://", "data:")):
        return
    if not os.path.exists(source):
        raise CommandError(f"no such picture: {source} (seen from {os.getcwd()})")
    if os.path.isdir(source):
        raise CommandError(f"{source} is a folder; name a picture, such as {os.path.join(source, 'picture.jpg')}")


def read_picture(source: str) -> Image.Image:
    """Reads and decodes a picture file or URL, as the image processor does.

    Raises:
        CommandError: if it is missing, unreadable, not a picture, cut short, or too large to decode safely.
    """
    check_picture(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow also warns of what the error below says
            return processor_read_picture(source)
    except (OSError, ValueError) as error:
        raise CommandError(first_line(error)) from error


def check_output(path: str) -> Path:
    """Says early, before any work is done, that a picture cannot be written to `path`.

    Raises:
        CommandError: if the folder is missing, `path` is a folder, or its ending is of no picture format.
    """
    output = Path(path)
    if output.is_dir():
        raise CommandError(f"--output {path} is a folder; name a file, such as {output / 'boxes.png'}")
    if not output.parent.is_dir():
        raise CommandError(f"--output {path}: the folder {output.parent} does not exist; make it first")
    if not os.access(output.parent, os.W_OK):
        raise CommandError(f"--output {path}: the folder {output.parent} may not be written to")
    file_format = Image.registered_extensions().get(output.suffix.lower())
    if file_format not in Image.SAVE:
        raise CommandError(f"--output {path}: no picture format ends in {output.suffix!r}; use .png or .jpg")
    return output


def write_picture(picture: Image.Image, output: Path) -> None:
    """Writes a picture beside its place and moves it there, so that no half of one is ever seen.

    Raises:
        CommandError: if it cannot be written, for example on a full disk.
    """
    handle, temporary = -1, ""
    try:
        handle, temporary = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.", suffix=output.suffix)
        with os.fdopen(handle, "wb") as file:
            picture.save(file, format=Image.registered_extensions()[output.suffix.lower()])
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp gives the owner alone access
        os.replace(temporary, output)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CommandError(f"cannot write {output}: {error.strerror or first_line(error)}") from error
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
