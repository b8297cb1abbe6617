"""Tests of text infilling and of target noise, against what the official code drew."""

import json
from pathlib import Path

import pytest
import torch

from modeling_ofa.data.noise import TextInfilling, add_target_noise, count_words, word_starts
from modeling_ofa.tokenization_ofa import OFATokenizer


RECORDED = json.loads((Path(__file__).parent / "golden" / "data_unify.json").read_text())
NUM_WORDS = 50265
# Rows of the recording data_summary.json, variant noise0.2: the seed is the row's number.
TARGETS = {
    0: ([102, 4193, 7085, 811, 595, 1316, 3781, 6787, 29, 542, 330, 8104], {2: 13187, 3: 15478}),
    1: ([3479, 65, 80, 130], {}),
}


@pytest.fixture(scope="module")
def tokenizer(vocab_dir) -> OFATokenizer:
    return OFATokenizer.from_pretrained(vocab_dir)


@pytest.fixture(scope="module")
def chinese(vocab_cn_file, tmp_path_factory) -> OFATokenizer:
    folder = tmp_path_factory.mktemp("chinese")
    (folder / "vocab.txt").write_bytes(vocab_cn_file.read_bytes())
    return OFATokenizer.from_pretrained(folder)


def spell(words: list[str]) -> OFATokenizer:
    """A small vocabulary: the special tokens, these words, and a mask."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *words, "<mask>"]
    return OFATokenizer({token: i for i, token in enumerate(tokens)}, [], num_codes=2, num_bins=2)


def infill(tokenizer: OFATokenizer, case: dict) -> TextInfilling:
    settings = ("mask_ratio", "random_ratio", "mask_length", "replace_length")
    return TextInfilling(tokenizer, **{name: case[name] for name in settings})


def test_words_begin_where_the_official_table_says(tokenizer):
    starts = word_starts(tokenizer).int()
    assert starts[:2000].tolist() == RECORDED["mask_whole_word_first2000"]
    assert starts.sum() == RECORDED["mask_whole_word_sum"]
    mask, codes, bins = tokenizer.mask_token_id, tokenizer.code_start_id, tokenizer.bin_start_id
    assert starts[[0, 1, 2, 3, mask, codes, codes + 8191, bins, bins + 999]].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0]


def test_every_word_piece_begins_a_word_but_those_that_are_marked(chinese):
    starts = word_starts(chinese)
    tokens = chinese.convert_ids_to_tokens(list(range(len(chinese))))
    assert not starts[tokens.index("##a")] and starts[tokens.index("中")] and starts[tokens.index("<mask>")]
    assert (~starts).sum() == sum(token.startswith("##") for token in tokens)


def test_spans_are_as_long_as_officially(tokenizer):
    recorded = torch.tensor(RECORDED["mask_span_probs"])
    torch.testing.assert_close(TextInfilling(tokenizer).span_probabilities, recorded / recorded.sum(), rtol=0, atol=0)


def test_the_same_seed_hides_the_same_words_as_the_official_code_does(tokenizer):
    infills = [infill(tokenizer, case) for case in RECORDED["infilling"][:4]]  # the four settings take turns
    for i, case in enumerate(RECORDED["infilling"]):
        torch.manual_seed(case["seed"])
        assert infills[i % 4](case["source"]).tolist() == case["result"], case


def test_a_generator_draws_what_the_global_one_does_and_leaves_that_alone(tokenizer):
    state = torch.get_rng_state()
    for case in RECORDED["infilling"][:8]:
        generator = torch.Generator().manual_seed(case["seed"])
        assert infill(tokenizer, case)(torch.tensor(case["source"]), generator).tolist() == case["result"]
    assert torch.equal(torch.get_rng_state(), state)


def test_infilling_leaves_its_input_as_it_is_and_what_has_no_words(tokenizer):
    text = torch.tensor(RECORDED["infilling"][0]["source"])
    before = text.clone()
    TextInfilling(tokenizer, mask_ratio=1.0)(text)
    assert torch.equal(text, before)
    assert TextInfilling(tokenizer)([0, 2]).tolist() == [0, 2]
    assert TextInfilling(tokenizer, mask_ratio=0.0)(text).tolist() == text.tolist()


def test_words_are_hidden_whole_and_subwords_one_by_one():
    tokenizer = spell(["Ġun", "break", "able"])
    text, mask = [0, 4, 5, 6, 2], tokenizer.mask_token_id
    assert TextInfilling(tokenizer, 1.0, mask_length="word")(text).tolist() == [0, mask, 2]
    assert TextInfilling(tokenizer, 1.0, mask_length="word", replace_length=-1)(text).tolist() == [0, *[mask] * 3, 2]
    assert TextInfilling(tokenizer, 1.0, mask_length="word", replace_length=0)(text).tolist() == [0, 2]
    hidden = TextInfilling(tokenizer, 0.3, mask_length="subword")(text).tolist()
    assert len(hidden) == 5 and hidden.count(mask) == 1


def test_random_words_are_neither_special_nor_codes_nor_bins(tokenizer):
    text = [0, *[2788] * 200, 2]
    hidden = TextInfilling(tokenizer, 1.0, random_ratio=1.0, mask_length="word")(text)
    assert len(hidden) == 202 and (hidden[1:-1] != 2788).sum() > 190
    assert hidden[1:-1].min() >= 4 and hidden[1:-1].max() < NUM_WORDS


@pytest.mark.parametrize("poisson_lambda", [0.1, 3.0, 40.0, 100.0])
def test_spans_have_the_asked_length_on_average(tokenizer, poisson_lambda):
    probabilities = TextInfilling(tokenizer, poisson_lambda=poisson_lambda).span_probabilities
    mean = (probabilities * torch.arange(len(probabilities))).sum()
    torch.testing.assert_close(mean, torch.tensor(poisson_lambda), rtol=1e-4, atol=0)


def test_settings_out_of_range_are_refused(tokenizer):
    for settings, message in (
        ({"mask_ratio": 1.5}, "mask_ratio"),
        ({"random_ratio": -0.1}, "random_ratio"),
        ({"mask_length": "sentence"}, "subword"),
        ({"replace_length": 2}, "replace_length"),
        ({"poisson_lambda": 0.0}, "poisson_lambda"),
    ):
        with pytest.raises(ValueError, match=message):
            TextInfilling(tokenizer, **settings)
    with pytest.raises(ValueError, match="one text"):
        TextInfilling(tokenizer)(torch.zeros(2, 5, dtype=torch.long))


@pytest.mark.parametrize("row", TARGETS)
def test_the_same_seed_exchanges_the_same_tokens_of_a_target_as_the_official_code_does(row):
    target, exchanged = TARGETS[row]
    expected = [exchanged.get(i, token) for i, token in enumerate(target)]
    torch.manual_seed(row)
    assert add_target_noise(target, 0.2, NUM_WORDS).tolist() == expected
    generator = torch.Generator().manual_seed(row)
    assert add_target_noise(torch.tensor(target), 0.2, NUM_WORDS, generator).tolist() == expected


def test_target_noise_has_a_share_between_none_and_all():
    assert add_target_noise([5, 6, 7], 0.0, NUM_WORDS).tolist() == [5, 6, 7]
    assert (add_target_noise([5] * 100, 1.0, NUM_WORDS) != 5).sum() > 90
    with pytest.raises(ValueError, match="noise_ratio"):
        add_target_noise([5], 1.1, NUM_WORDS)


def test_words_end_where_codes_or_bins_begin(tokenizer):
    assert count_words(tokenizer) == NUM_WORDS
    assert count_words(spell(["Ġa", "b"])) == 7
    assert count_words(OFATokenizer(num_codes=0, num_bins=0)) == 5
