"""The library's processor tests, over small pictures and a vocabulary of few words."""

import unittest

from modeling_ofa import OFAImageProcessor, OFAProcessor, OFATokenizer

from .library import common_tests
from .vocabulary import small_tokenizer


processing = common_tests("test_processing_common")


class OFAProcessorTest(processing.ProcessorTesterMixin, unittest.TestCase):
    processor_class = OFAProcessor

    @classmethod
    def _setup_image_processor(cls) -> OFAImageProcessor:
        return OFAImageProcessor(size=32)

    @classmethod
    def _setup_tokenizer(cls) -> OFATokenizer:
        return small_tokenizer()
