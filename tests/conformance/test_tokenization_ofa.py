"""The library's tokenizer tests, over a byte-level vocabulary and over word pieces, of few words each."""

import shutil
import tempfile
import unittest
from pathlib import Path

from modeling_ofa import OFATokenizer

from .library import common_tests
from .vocabulary import small_chinese_tokenizer, small_tokenizer


tokenization = common_tests("test_tokenization_common")
backend = common_tests("test_tokenizers_backend_mixin")


class SavedTokenizer:
    """Gives the common tests a folder to load from."""

    tokenizer_class = OFATokenizer

    @classmethod
    def setUpClass(cls):
        cls.folder = cls.from_pretrained_id = tempfile.mkdtemp()
        cls.make_tokenizer(Path(cls.folder)).save_pretrained(cls.folder)
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        shutil.rmtree(cls.folder)

    @classmethod
    def make_tokenizer(cls, folder: Path) -> OFATokenizer:
        return small_tokenizer()


class OFATokenizerTest(SavedTokenizer, tokenization.TokenizerTesterMixin, unittest.TestCase):
    pass


class OFAChineseTokenizerTest(SavedTokenizer, tokenization.TokenizerTesterMixin, unittest.TestCase):
    @classmethod
    def make_tokenizer(cls, folder: Path) -> OFATokenizer:
        return small_chinese_tokenizer(folder)


class OFATokenizersBackendTest(SavedTokenizer, backend.TokenizersBackendTesterMixin, unittest.TestCase):
    pass
