"""The image processor: official pixels, every kind of picture and source, and refusals."""

import base64
import http.server
import io
import json
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available

from modeling_ofa import OFAImageProcessor, OFAImageProcessorPil


GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def processor():
    return OFAImageProcessorPil(size=64)


@pytest.fixture
def picture():
    """An RGB picture, 40 wide and 30 high, no two rows or columns alike."""
    pixels = np.arange(30 * 40 * 3, dtype=np.uint32).reshape(30, 40, 3) * 2654435761 >> 7
    return Image.fromarray((pixels % 256).astype(np.uint8))


def encode(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def pixels(processor, image, **options) -> torch.Tensor:
    """The pixels of one image, a tensor of shape (3, height, width)."""
    values = processor(image, return_tensors="pt", **options)["pixel_values"]
    assert values.dtype == torch.float32 and values.shape[0] == 1
    return values[0]


def expected(picture: Image.Image, size: int = 64) -> torch.Tensor:
    """What torchvision's transforms on PIL images (resize, to tensor, normalise) give, in one formula."""
    resized = picture.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255).permute(2, 0, 1).sub(0.5).div(0.5)


@pytest.mark.parametrize("name", ["data_caption", "data_caption_cn", "data_refcoco", "data_vqa_gen"])
def test_pixels_are_the_official_ones(name):
    data = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    processor = OFAImageProcessorPil()
    for variant in data["variants"]:
        options = {}
        if variant["kwargs"].get("imagenet_default_mean_and_std"):
            options = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
        for row, recorded in zip(data["tsv_rows"], variant["items"], strict=True):
            golden = recorded["item"]["patch_image"]
            if golden["shape"] != [3, 480, 480]:
                options["size"] = {"height": golden["shape"][1], "width": golden["shape"][2]}
            image = pixels(processor, row[1], **options)
            assert list(image.shape) == golden["shape"]
            # recorded with six digits
            tolerance = {"rtol": 0, "atol": 2e-6}
            grid = image[:, golden["grid_y"]][:, :, golden["grid_x"]]
            torch.testing.assert_close(grid, torch.tensor(golden["grid"]), **tolerance)
            torch.testing.assert_close(image.mean((1, 2)), torch.tensor(golden["channel_mean"]), **tolerance)
            assert image.std().item() == pytest.approx(golden["std"], abs=2e-6)
            assert [image.min().item(), image.max().item()] == pytest.approx([golden["min"], golden["max"]], abs=2e-6)


def test_an_image_keeps_no_aspect_ratio_and_lies_between_minus_one_and_one(processor, picture):
    torch.testing.assert_close(pixels(processor, picture), expected(picture), rtol=0, atol=1e-6)


# Modes. What Pillow's own conversion gives is what the official code sees.


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_the_rgb_of_pillow(processor, picture, mode):
    image = picture.convert(mode)
    torch.testing.assert_close(pixels(processor, image), expected(image.convert("RGB")), rtol=0, atol=1e-6)


def test_transparency_is_dropped_and_not_blended(processor, picture):
    image = picture.copy()
    image.putalpha(Image.new("L", image.size, 40))
    for data in (encode(image), encode(image, "WEBP", lossless=True, exact=True), encode(image, "TIFF")):
        torch.testing.assert_close(pixels(processor, data), expected(picture), rtol=0, atol=1e-6)


@pytest.mark.parametrize("transparency", [3, bytes(range(256))], ids=["one colour", "each colour"])
@pytest.mark.filterwarnings("error::UserWarning:PIL")
def test_a_palette_with_transparency_keeps_its_colours(processor, picture, transparency):
    image = picture.quantize(256)
    data = encode(image, transparency=transparency)
    torch.testing.assert_close(pixels(processor, data), expected(image.convert("RGB")), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(processor, kind):
    grey = np.linspace(0, 65535, 30 * 40).reshape(30, 40).astype(np.uint16)
    data = encode(Image.fromarray(grey), kind)
    reference = Image.fromarray(np.rint(grey / 257).astype(np.uint8)).convert("RGB")
    for image in (data, Image.open(io.BytesIO(data)), grey, torch.from_numpy(grey)):
        torch.testing.assert_close(pixels(processor, image), expected(reference), rtol=0, atol=1e-6)


@pytest.mark.parametrize("top, mode", [(255, "I"), (65535, "I"), (2**31 - 1, "I"), (1, "F"), (255, "F"), (65535, "F")])
def test_integers_and_floats_are_scaled_by_the_range_that_holds_them(processor, top, mode):
    grey = np.linspace(0, 1, 30 * 40).reshape(30, 40)
    values = (grey * top).astype(np.int32 if mode == "I" else np.float32)
    reference = Image.fromarray(np.rint(values.astype(np.float64) * 255 / top).astype(np.uint8)).convert("RGB")
    torch.testing.assert_close(pixels(processor, Image.fromarray(values)), expected(reference), rtol=0, atol=1e-6)


def test_an_animation_gives_its_first_frame(processor, picture):
    frames = [picture.convert("P"), Image.new("P", picture.size), Image.new("P", picture.size)]
    for kind in ("GIF", "PNG", "WEBP"):
        data = encode(frames[0].convert("RGB"), kind, save_all=True, append_images=frames[1:], lossless=True)
        first = Image.open(io.BytesIO(data))
        assert first.n_frames > 1
        torch.testing.assert_close(pixels(processor, data), expected(first.convert("RGB")), rtol=0, atol=1e-6)


UNDO = dict(zip(range(1, 9), [None, 0, 3, 1, 5, 4, 6, 2], strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(processor, picture, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    path.write_bytes(encode(picture, exif=exif))
    upright = picture if UNDO[orientation] is None else picture.transpose(Image.Transpose(UNDO[orientation]))
    assert processor.fetch_images(path).size == upright.size
    for image in (path, Image.open(path)):
        torch.testing.assert_close(pixels(processor, image), expected(upright), rtol=0, atol=1e-6)


@pytest.mark.parametrize("exif", [b"Exif\0\0no metadata", b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1\1\x12"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_does_not_spoil_a_picture(processor, picture, exif):
    data = encode(picture, exif=exif)
    torch.testing.assert_close(pixels(processor, data), expected(picture), rtol=0, atol=1e-6)


# Sources.


@pytest.fixture
def server(tmp_path):
    """The address of a web server that sends the files of `tmp_path`."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_every_source_gives_the_same_pixels(processor, picture, tmp_path, server, monkeypatch):
    path = tmp_path / "a picture.png"
    data = encode(picture)
    path.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    text = base64.b64encode(data).decode()
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy())
    sources = {
        "path": path,
        "string": str(path),
        "relative": "a picture.png",
        "file URL": path.as_uri(),
        "URL": f"{server}/a%20picture.png",
        "base64": text,
        "base64 without padding": text.rstrip("="),
        "URL-safe base64": base64.urlsafe_b64encode(data).decode(),
        "base64 in lines": base64.encodebytes(data).decode(),
        "data URL": f"data:image/png;base64,{text}",
        "bytes": data,
        "picture": Image.open(path),
        "array": array,
        "array, channels first": array.transpose(2, 0, 1),
        "array of int64": array.astype(np.int64),
        "array of floats to 1": array / 255,
        "array of floats to 255": array.astype(np.float64),
        "tensor": tensor,
        "tensor, channels first": tensor.permute(2, 0, 1),
        "tensor of floats": tensor.permute(2, 0, 1) / 255,
        "tensor with gradient": (tensor / 255).requires_grad_(),
        "list of one": [picture],
    }
    for name, source in sources.items():
        torch.testing.assert_close(
            pixels(processor, source),
            expected(picture),
            rtol=0,
            atol=1e-6,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_grey_and_transparent_arrays_become_rgb(processor, picture):
    grey = np.asarray(picture.convert("L"))
    for array in (grey, grey[None], grey[..., None], torch.from_numpy(grey.copy())):
        image = pixels(processor, array)
        torch.testing.assert_close(image, expected(picture.convert("L").convert("RGB")), rtol=0, atol=1e-6)
    transparent = np.asarray(picture.convert("RGBA")).copy()
    transparent[..., 3] = 9
    torch.testing.assert_close(pixels(processor, transparent), expected(picture), rtol=0, atol=1e-6)
    black_and_white = np.asarray(picture.convert("1"))
    assert black_and_white.dtype == np.bool_
    torch.testing.assert_close(
        pixels(processor, black_and_white), expected(picture.convert("1").convert("RGB")), rtol=0, atol=1e-6
    )


def test_a_batch_may_mix_sizes_sources_and_nesting(processor, picture):
    wide = picture.resize((90, 20))
    rows = torch.stack([expected(picture), expected(wide)])
    for batch in ([picture, wide], [encode(picture), np.asarray(wide)], [[picture], [encode(wide)]], (picture, wide)):
        values = processor(batch, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(values, rows, rtol=0, atol=1e-6)
    stack = np.stack([np.asarray(picture), np.asarray(picture)])
    assert processor(stack, return_tensors="np")["pixel_values"].shape == (2, 3, 64, 64)


def test_floats_that_are_not_to_be_rescaled_keep_their_range(processor, picture):
    array = np.asarray(picture.resize((64, 64))) / np.float32(255)
    image = pixels(processor, array, do_rescale=False, do_resize=False)
    torch.testing.assert_close(image, torch.from_numpy(array).permute(2, 0, 1) * 2 - 1, rtol=0, atol=1e-6)


# Refusals: each names the picture and what is wrong with it.


def png_of(width: int, height: int) -> bytes:
    """A PNG file of the given size, black, a few hundred bytes for any width."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_a_missing_file_is_named(processor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such picture: .*nowhere\.png"):
        processor(tmp_path / "nowhere.png")
    with pytest.raises(FileNotFoundError, match="No such picture: photo"):
        processor("photo")


def test_a_folder_is_no_picture(processor, tmp_path):
    with pytest.raises(IsADirectoryError, match=f"{tmp_path} is a folder"):
        processor(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_truncated_file_is_named(processor, picture, tmp_path, kind, part):
    path = tmp_path / f"half.{kind.lower()}"
    data = encode(picture, kind)
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ValueError, match=rf"half\.{kind.lower()} is (truncated or damaged|damaged|not a picture)"):
        processor(path)


def test_a_truncated_picture_that_was_opened_already_is_named(processor, picture, tmp_path):
    path = tmp_path / "half.png"
    path.write_bytes(encode(picture)[:-200])
    with pytest.raises(ValueError, match=r"half\.png is truncated or damaged, its pixels cannot be decoded: "):
        processor(Image.open(path))


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"<svg></svg>"])
def test_a_file_that_is_no_picture_is_named(processor, tmp_path, content):
    path = tmp_path / "notes.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.png is (not a picture|damaged)"):
        processor(path)


def test_base64_that_is_no_picture_is_refused_in_few_words(processor):
    text = base64.b64encode(b"not a picture, " * 1000).decode()
    with pytest.raises(ValueError, match=r"which is no file, read as base64 text is not a picture") as caught:
        processor(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("side", [10_000, 14_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(processor, tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(side, side))
    with pytest.raises(ValueError, match=r"bomb\.png would unpack to .*more than the 89,478,485 that Pillow allows"):
        processor(path)


def test_a_url_that_cannot_be_fetched_is_named(processor, server):
    with pytest.raises(ConnectionError, match=r"Cannot fetch the picture http://.*/nothing\.png: .*404"):
        processor(f"{server}/nothing.png")
    with pytest.raises(ConnectionError, match="Cannot fetch the picture http://127.0.0.1:9/a.png"):
        processor("http://127.0.0.1:9/a.png")


@pytest.mark.parametrize("image, name", [(None, "None"), (3, "int"), ({"bytes": b""}, "dict")])
def test_what_is_no_kind_of_picture_is_a_type_error(processor, image, name):
    with pytest.raises(TypeError, match=f"not {name}"):
        processor(image)


@pytest.mark.parametrize("array", [np.full((8, 8, 3), -0.5), np.full((8, 8, 3), np.nan), np.full((8, 8, 3), 1e9)])
def test_pixels_out_of_any_range_are_refused(processor, array):
    with pytest.raises(ValueError, match="must lie in"):
        processor(array)


@pytest.mark.parametrize("shape", [(8, 8, 5), (0, 8, 3)])
def test_arrays_that_are_no_images_are_refused_with_their_shape(processor, shape):
    with pytest.raises(ValueError, match=rf"of shape \({shape[0]}, {shape[1]}, {shape[2]}\)"):
        processor(np.zeros(shape, dtype=np.uint8))


# Saving, and the choice of the backend.


def test_settings_survive_saving_and_the_auto_class_gives_the_official_pixels(picture, tmp_path):
    processor = OFAImageProcessorPil(size=96, image_mean=IMAGENET_DEFAULT_MEAN)
    processor.save_pretrained(tmp_path)
    assert (
        json.loads((tmp_path / "preprocessor_config.json").read_text())["image_processor_type"] == "OFAImageProcessor"
    )
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(again) is OFAImageProcessorPil
    assert again.to_dict() == processor.to_dict()
    assert torch.equal(pixels(again, picture), pixels(processor, picture))


def test_the_class_without_suffix_works_with_and_without_torchvision(picture):
    processor = OFAImageProcessor(size=64)
    assert processor.backend == ("torchvision" if is_torchvision_available() else "pil")
    # torchvision's bicubic filter may round pixels differently, by up to two of 255 levels
    tolerance = 2 * 2 / 255 + 1e-6 if is_torchvision_available() else 1e-6
    for image in (
        picture,
        encode(picture.convert("RGBA")),
        np.asarray(picture),
        torch.tensor(np.asarray(picture)),
    ):
        torch.testing.assert_close(pixels(processor, image), expected(picture), rtol=0, atol=tolerance)
