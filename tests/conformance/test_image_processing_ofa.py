"""The library's image processor tests, for each backend that is installed."""

import unittest
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.utils import is_torchvision_available

from modeling_ofa import OFAImageProcessor, OFAImageProcessorPil

from .library import common_tests


image_processing = common_tests("test_image_processing_common")
if not hasattr(image_processing.ImageProcessingTestMixin, "test_convert_to_rgb_mixed_input_batch"):
    pytest.skip(
        f"transformers {version('transformers')} tests image processors of its own folders only, which leave four "
        "channels as they are",
        allow_module_level=True,
    )


def local_picture(url: str) -> Image.Image:
    """A picture of smooth colours, in place of the photographs that the library fetches from the Hub."""
    rows, columns = np.mgrid[0:480, 0:640] / 100
    channels = [np.sin(rows * 2 + columns), np.cos(columns * 3), np.sin(rows - columns)]
    return Image.fromarray(((np.stack(channels, axis=-1) + 1) * 127).astype(np.uint8))


image_processing.load_test_image = local_picture


class OFAImageProcessingTester(image_processing.ImageProcessingTester):
    def __init__(self, parent: unittest.TestCase, **kwargs: Any):
        super().__init__(parent, batch_size=3, max_resolution=80, size={"height": 32, "width": 32}, **kwargs)

    def _get_image_processing_classes(self) -> dict[str, type]:
        classes = {"pil": OFAImageProcessorPil}
        if is_torchvision_available():
            classes["torchvision"] = OFAImageProcessor
        return classes


class OFAImageProcessingTest(image_processing.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = OFAImageProcessingTester
    test_cast_dtype = True

    @unittest.skipUnless(is_torchvision_available(), "torchvision is optional, and is not installed")
    def test_new_models_require_torchvision_backend(self):
        super().test_new_models_require_torchvision_backend()

    @unittest.skip("its child process imports transformers alone, which does not know our classes")
    def test_pil_can_run_without_torchvision(self):
        pass
