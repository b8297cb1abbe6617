"""OFA's image processor on Pillow, the backend that gives the official pixels, and how pictures are read safely."""

import base64
import binascii
import http.client
import io
import os
import re
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, url2pathname, urlopen

import numpy as np
import PIL.Image
import PIL.ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import (
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    infer_channel_dimension_format,
    is_torch_tensor,
    is_valid_image,
)
from transformers.utils import logging


logger = logging.get_logger(__name__)

_EXIF_ORIENTATION = 0x0112
_URL_TIMEOUT = 30.0
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{64,}={0,2}")


def read_picture(source: str | os.PathLike | bytes) -> PIL.Image.Image:
    """
    Reads and decodes one picture.

    Args:
        source (`str`, `os.PathLike` or `bytes`):
            A path, an `http(s)://` or `file://` URL, a `data:` URL, base64 text (also the URL-safe kind, in which the
            official data comes), or the bytes of a picture file.

    Returns:
        `PIL.Image.Image`: The decoded picture, turned upright; of an animation, the first frame.

    Raises:
        `FileNotFoundError`: if there is no such file.
        `ConnectionError`: if a URL cannot be fetched.
        `ValueError`: if `source` is no picture, is cut short or damaged, or would unpack to more than Pillow's limit.
    """
    name, data = _open(source)
    try:
        picture = PIL.Image.open(data)
    except PIL.Image.DecompressionBombError as error:
        raise _too_many_pixels(name) from error
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a picture, or of a kind that Pillow cannot read.") from error
    except (PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # each of Pillow's readers has its own errors for a broken header
        raise ValueError(f"{name} is damaged, Pillow cannot read its header: {error}") from error
    with picture:
        if PIL.Image.MAX_IMAGE_PIXELS is not None and picture.width * picture.height > PIL.Image.MAX_IMAGE_PIXELS:
            raise _too_many_pixels(name, picture)
        return upright(picture, name)


def upright(picture: PIL.Image.Image, name: str | None = None) -> PIL.Image.Image:
    """
    Decodes a picture and turns it as its EXIF orientation says, so that boxes count in what a viewer shows.

    Args:
        picture (`PIL.Image.Image`): the picture, decoded or not.
        name (`str`, *optional*): what error messages call it.

    Raises:
        `ValueError`: if the pixels cannot be decoded.
    """
    name = name or getattr(picture, "filename", None) or f"The {picture.format or 'PIL'} image"
    try:
        picture.load()
    except PIL.Image.DecompressionBombError as error:
        raise _too_many_pixels(name) from error
    except Exception as error:  # each of Pillow's decoders has its own errors for broken data
        raise ValueError(f"{name} is truncated or damaged, its pixels cannot be decoded: {error}") from error
    try:
        if picture.getexif().get(_EXIF_ORIENTATION, 1) != 1:
            return PIL.ImageOps.exif_transpose(picture)
    except Exception as error:  # damaged metadata does not make a picture unusable
        logger.warning(f"{name} has damaged EXIF data ({error}); it is taken as it lies.")
    # A copy lives on when the file behind `picture` is closed.
    return picture.copy() if getattr(picture, "fp", None) is not None else picture


def to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """
    Converts a picture of any mode to 8-bit RGB.

    Transparency is dropped and not blended, as in the official code. Modes of more than 8 bits are scaled to the
    range of 8 bits; Pillow alone would clip them, which turns most of a 16-bit picture white.
    """
    if picture.mode == "RGB":
        return picture
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = PIL.Image.fromarray(to_eight_bits(np.asarray(picture)))
    elif picture.mode == "P":
        picture = picture.convert("RGBA")  # without this step Pillow warns about palettes with transparency
    return picture.convert("RGB")


def to_eight_bits(pixels: np.ndarray) -> np.ndarray:
    """
    Scales pixels of any type to `uint8`.

    `uint16` counts to 65,535. Other types say nothing about their range, so it is the smallest of [0, 1] (floats
    only), [0, 255], [0, 65535] and (integers only) [0, 2³¹ - 1] that holds all pixels.

    Raises:
        `ValueError`: if pixels are negative, not finite, or beyond all of these ranges.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    low, high = pixels.min(), pixels.max()
    is_float = np.issubdtype(pixels.dtype, np.floating)
    ranges = [65535] if pixels.dtype == np.uint16 else [1, 255, 65535] if is_float else [255, 65535, 2**31 - 1]
    scale = next((top for top in ranges if high <= top), None)
    if scale is None or not low >= 0:
        raise ValueError(
            f"Pixels of type {pixels.dtype} must lie in [0, {ranges[-1]}], but these lie in [{low}, {high}]. If they "
            "are normalised already, pass them to the model directly."
        )
    return np.rint(pixels * (255 / scale)).astype(np.uint8)


class PictureInput:
    """What the backends share: the defaults, and that all kinds of input become upright 8-bit RGB, channels first."""

    resample = PILImageResampling.BICUBIC
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    size = {"height": 480, "width": 480}
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """
        Reads pictures, and gives them back in the nesting in which they came.

        Args:
            image_url_or_urls (`str`, `os.PathLike`, `bytes`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `list`):
                Whatever [`read_picture`] takes, pictures, arrays, or (nested) lists of these.

        Returns:
            Upright pictures for paths, URLs, bytes and pictures; arrays and tensors as they are, a two-dimensional
            (grey) one with a channel axis before it.

        Raises:
            `TypeError`: if something is none of these.
        """
        images = image_url_or_urls
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, str | os.PathLike | bytes):
            return read_picture(images)
        if isinstance(images, PIL.Image.Image):
            return upright(images)
        if is_valid_image(images):
            return images[None] if images.ndim == 2 else images
        raise TypeError(
            "A picture is a path, a URL, base64 text, bytes, a PIL image, an array or a tensor, not "
            f"{'None' if images is None else type(images).__name__}."
        )

    def to_pixels(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None,
        do_rescale: bool | None,
        input_data_format: str | ChannelDimension | None,
    ) -> np.ndarray:
        """
        Gives the pixels of one image, an array of shape `(channels, height, width)`.

        With `do_convert_rgb` there are three channels: grey is repeated, a fourth (or second) one is dropped. Floats
        keep their type and range when they are not to be rescaled.
        """
        if isinstance(image, PIL.Image.Image):
            pixels = np.asarray(to_rgb(image) if do_convert_rgb else image)
            return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        if is_torch_tensor(image):
            image = image.detach().cpu()
            image = (image.float() if image.is_floating_point() else image).numpy()
        if image.size == 0:
            raise ValueError(f"An image of shape {image.shape} has no pixels.")
        try:
            layout = input_data_format or infer_channel_dimension_format(image, num_channels=(1, 2, 3, 4))
        except ValueError as error:
            raise ValueError(
                f"An image array has 1 to 4 channels, first or last, but this one is of shape {image.shape}."
            ) from error
        pixels = np.moveaxis(image, -1, 0) if ChannelDimension(layout) == ChannelDimension.LAST else image
        if do_rescale or not np.issubdtype(pixels.dtype, np.floating):
            pixels = to_eight_bits(pixels)
        if do_convert_rgb and pixels.shape[0] != 3:
            pixels = np.repeat(pixels[:1], 3, axis=0) if pixels.shape[0] < 3 else pixels[:3]
        return pixels


class OFAImageProcessorPil(PictureInput, PilBackend):
    r"""
    OFA's image processor: a picture becomes RGB, is resized to a square with Pillow's bicubic filter (the aspect ratio
    is not kept) and normalised to [-1, 1]. These are the pixels of the official code.

    Pictures may be anything that [`read_picture`] reads, PIL images of any mode, arrays or tensors. Differences from
    the official code, on purpose: pictures are turned upright (EXIF), and those of more than 8 bits a channel are
    scaled and not clipped.

    Args:
        size (`dict[str, int]` or `int`, *optional*, defaults to `{"height": 480, "width": 480}`):
            Size of the square. Pre-training used 384 and less, visual grounding uses 512.
        resample (`PILImageResampling`, *optional*, defaults to `BICUBIC`): the filter of the resize.
        image_mean, image_std (`list[float]`, *optional*, default to 0.5 for every channel):
            Normalisation. The ImageNet fine-tuned checkpoints want `IMAGENET_DEFAULT_MEAN` and `_STD`.
        do_resize, do_rescale, do_normalize, do_convert_rgb (`bool`, *optional*, default to `True`): the steps.
        rescale_factor (`float`, *optional*, defaults to 1/255): what the `uint8` pixels are multiplied with.
    """

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = True,
        **kwargs: Any,
    ) -> np.ndarray:
        """Gives the pixels of one image before resizing, an array of shape `(channels, height, width)`."""
        return self.to_pixels(image, do_convert_rgb, do_rescale, input_data_format)


def _open(source: str | os.PathLike | bytes) -> tuple[str, Any]:
    """Gives the name of a picture for messages, and a path or file object for Pillow."""
    if isinstance(source, bytes):
        return "The picture given as bytes", io.BytesIO(source)
    text = os.fspath(source)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    short = text if len(text) <= 200 else f"{text[:60]}… ({len(text):,} characters)"
    if text.startswith(("http://", "https://")):
        try:
            with urlopen(Request(text, headers={"User-Agent": "modeling-ofa"}), timeout=_URL_TIMEOUT) as response:
                return f"What {short} sends", io.BytesIO(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ConnectionError(f"Cannot fetch the picture {short}: {error}") from error
    if text.startswith("data:"):
        data = _decode_base64(text.partition(",")[2])
        if data is None:
            raise ValueError(f"The data URL {short} does not hold base64 text.")
        return "The picture given as a data URL", io.BytesIO(data)
    path = url2pathname(urlsplit(text).path) if text.startswith("file://") else text
    if os.path.isdir(path):
        raise IsADirectoryError(f"{short} is a folder; a picture file is needed.")
    if os.path.exists(path):
        return short, path
    data = _decode_base64(text)
    if data is None:
        raise FileNotFoundError(f"No such picture: {short} (a relative path is seen from {os.getcwd()}).")
    return f"{short}, which is no file, read as base64 text", io.BytesIO(data)


def _decode_base64(text: str) -> bytes | None:
    """Decodes standard or URL-safe base64, or gives `None` if `text` is not that."""
    text = "".join(text.split())
    if not _BASE64.fullmatch(text):
        return None
    text = text.translate(str.maketrans("+/", "-_", "="))
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return None


def _too_many_pixels(name: str, picture: PIL.Image.Image | None = None) -> ValueError:
    size = "" if picture is None else f"{picture.width:,} × {picture.height:,} pixels, "
    return ValueError(
        f"{name} would unpack to {size}more than the {PIL.Image.MAX_IMAGE_PIXELS:,} that Pillow allows (a "
        "decompression bomb?). Scale it down first, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
    )


__all__ = ["OFAImageProcessorPil"]
