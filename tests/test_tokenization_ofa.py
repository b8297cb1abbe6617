"""The tokenizer: official ids and texts in both languages, every folder layout, and refusals."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoTokenizer

from modeling_ofa import OFAConfig, OFATokenizer


GOLDEN = Path(__file__).parent / "golden"
ENGLISH = json.loads((GOLDEN / "tokenization_en.json").read_text(encoding="utf-8"))
CHINESE = json.loads((GOLDEN / "tokenization_cn.json").read_text(encoding="utf-8"))
SENTENCES = ["a red mug on the table", "which region does the text describe?", "what colour is the small dog?"] * 3


@cache
def load(path: Path, file: str = "") -> OFATokenizer:
    return OFATokenizer.from_pretrained(path / file)


@pytest.fixture
def english(vocab_dir):
    return load(vocab_dir)


@pytest.fixture
def chinese(vocab_cn_file):
    return load(vocab_cn_file)


@pytest.fixture
def ofa_sys_folder(vocab_dir, tmp_path):
    """A folder with the files of an `OFA-Sys/*` one that a tokenizer reads."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(vocab_dir / name, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "ofa"}')
    return tmp_path


@pytest.fixture
def small_words():
    """A BPE vocabulary of a few hundred tokens with its merges."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def assert_is_golden(tokenizer, golden):
    """Checks ids and decoded text of every recorded string, and the recorded special ids."""
    texts = [row["text"] for row in golden["strings"]]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert ids == [row["ids"] for row in golden["strings"]]
    assert [tokenizer(text)["input_ids"] for text in texts] == [[0, *row, 2] for row in ids]
    assert tokenizer.batch_decode(ids) == [row["decoded"] for row in golden["strings"]]
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in golden["special"]} == golden["special"]
    assert len(tokenizer) == golden["dict_len"]


def test_every_english_string_has_the_official_ids_and_text(english):
    assert_is_golden(english, ENGLISH)


def test_codes_bins_and_mask_in_a_text_are_tokens_and_take_the_space_before_them_along(english):
    for row in ENGLISH["no_bpe"][:2]:
        assert english(row["text"], add_special_tokens=False)["input_ids"] == row["ids"]
    ids = english(" region: <bin_1> <code_2> dog", add_special_tokens=False)["input_ids"]
    assert english.convert_ids_to_tokens(ids) == ["Ġregion", ":", "<bin_1>", "<code_2>", "Ġdog"]


def test_bins_survive_skip_special_tokens(english):
    assert english.decode([0, 100, 58457, 59456, 2, 1], skip_special_tokens=True) == "I<bin_0><bin_999>"


def test_start_ids_are_those_of_the_first_code_and_bin(english):
    assert (english.code_start_id, english.bin_start_id) == (50265, 58457)
    assert (english.num_codes, english.num_bins) == (8192, 1000)
    assert not english.is_chinese


def test_every_chinese_string_has_the_official_ids_and_text(chinese):
    assert_is_golden(chinese, CHINESE)
    assert (chinese.code_start_id, chinese.bin_start_id) == (21133, 29325)
    assert chinese.is_chinese


def test_bins_of_the_chinese_variant_decode(chinese):
    assert chinese.decode([0, 29325, 29326, 2], skip_special_tokens=True) == "<bin_0> <bin_1>"


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_a_saved_tokenizer_comes_back_whole_from_one_json_file(language, request, tmp_path):
    tokenizer = request.getfixturevalue(language)
    tokenizer.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    again = OFATokenizer.from_pretrained(tmp_path)
    assert_is_golden(again, ENGLISH if language == "english" else CHINESE)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert (again.num_codes, again.num_bins, again.model_max_length) == (8192, 1000, 1024)


def test_a_folder_with_vocab_txt_is_chinese(vocab_cn_file, tmp_path):
    shutil.copy(vocab_cn_file, tmp_path / "vocab.txt")
    assert_is_golden(OFATokenizer.from_pretrained(tmp_path), CHINESE)


def test_a_vocab_txt_in_fairseq_order_is_taken_as_it_is(chinese, tmp_path):
    words = sorted(chinese.get_vocab(), key=chinese.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    assert_is_golden(OFATokenizer.from_pretrained(tmp_path), CHINESE)


def test_auto_tokenizer_reads_an_ofa_sys_folder_as_it_is(ofa_sys_folder):
    tokenizer = AutoTokenizer.from_pretrained(ofa_sys_folder)
    assert type(tokenizer) is OFATokenizer
    assert_is_golden(tokenizer, ENGLISH)


def test_auto_tokenizer_reads_a_saved_folder(english, tmp_path):
    english.save_pretrained(tmp_path)
    OFAConfig().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is OFATokenizer
    assert_is_golden(tokenizer, ENGLISH)


def test_an_ofa_sys_folder_that_lists_its_added_tokens_gives_the_same_tokenizer(ofa_sys_folder):
    names = [f"<code_{i}>" for i in range(8192)] + [f"<bin_{i}>" for i in range(1000)]
    added = {name: 50265 + i for i, name in enumerate(names)}
    (ofa_sys_folder / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = OFATokenizer.from_pretrained(ofa_sys_folder)
    assert_is_golden(tokenizer, ENGLISH)
    assert tokenizer("<bin_0> <bin_1>", add_special_tokens=False)["input_ids"] == [58457, 58458]


def test_added_tokens_with_other_ids_are_refused(ofa_sys_folder):
    (ofa_sys_folder / "added_tokens.json").write_text('{"<bin_0>": 50265}')
    with pytest.raises(ValueError, match=r"<bin_0> the id 50265, but .* it is 58457"):
        OFATokenizer.from_pretrained(ofa_sys_folder)


def test_a_small_vocabulary_without_codes_works_and_comes_back(small_words, tmp_path):
    vocab, merges = small_words
    tokenizer = OFATokenizer(vocab, merges, num_codes=0)
    assert len(tokenizer) == len(vocab) + 1000
    assert (tokenizer.code_start_id, tokenizer.bin_start_id) == (None, len(vocab))
    tokenizer.save_pretrained(tmp_path)
    again = OFATokenizer.from_pretrained(tmp_path)
    for text in [*SENTENCES, " naïve 日本 \n", "<bin_7> <bin_999>"]:
        ids = tokenizer(text)["input_ids"]
        assert again(text)["input_ids"] == ids
        assert again.decode(ids, skip_special_tokens=True) == text.replace("> <", "><")
    assert (again.num_codes, again.num_bins, again.code_start_id) == (0, 1000, None)


def test_a_symbol_that_a_small_vocabulary_lacks_is_unknown_and_not_lost():
    vocab = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b", "ab"])}
    tokenizer = OFATokenizer(vocab, [("a", "b")], num_codes=0, num_bins=2)
    assert tokenizer("abxa")["input_ids"] == [0, 6, 3, 4, 2]


def test_texts_are_padded_on_the_right_and_pairs_are_separated_like_barts(english):
    batch = english([" a", " a dog"], padding=True)
    assert batch["input_ids"] == [[0, 10, 2, 1], [0, 10, 2335, 2]]
    assert batch["attention_mask"] == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert english(" a", " dog")["input_ids"] == [0, 10, 2, 2, 2335, 2]


def test_a_token_that_the_dictionary_lacks_has_the_unknown_id(english):
    assert english.convert_tokens_to_ids("<bin_-33>") == 3


def test_truncation_goes_to_1024_tokens(english):
    assert len(english(" dog" * 2000, truncation=True)["input_ids"]) == 1024


def test_a_folder_without_a_tokenizer_is_refused_with_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=rf"No tokenizer in '{tmp_path}'.*tokenizer.json.*vocab.json.*vocab.txt"):
        OFATokenizer.from_pretrained(tmp_path)


def test_a_vocabulary_without_merges_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text('{"<s>": 0}')
    with pytest.raises(ValueError, match="merges.txt is missing"):
        OFATokenizer.from_pretrained(tmp_path)


def test_a_broken_vocabulary_is_refused_by_name(tmp_path):
    (tmp_path / "vocab.json").write_text('{"<s>": 0,')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match=r"vocab\.json is not a BPE vocabulary"):
        OFATokenizer.from_pretrained(tmp_path)


def test_merges_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match="do not fit the vocabulary of 2 tokens"):
        OFATokenizer({"<s>": 0, "a": 1}, [("x", "y")])
