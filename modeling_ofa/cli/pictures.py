"""Pictures for the `ofa` command: what is wrong with one is said in one line, and as early as it can be known."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from PIL import Image

from ..drawing import save_picture
from ..image_processing_pil_ofa import read_picture as processor_read_picture
from .errors import CommandError, first_line


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
    try:
        save_picture(picture, output)
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror or first_line(error)}") from error
