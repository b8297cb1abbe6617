"""Constraints say what may follow what; one call of `generate` decodes each row of a batch under its own options."""

import random
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny import HAS_IMAGE, SOURCE, TOLERANCE, VOCAB_SIZE, images, tiny_model
from transformers.generation import LogitsProcessor

from modeling_ofa import OFAForConditionalGeneration
from modeling_ofa.constraints_ofa import (
    BoxConstraint,
    Constraint,
    LabelledBoxesConstraint,
    RowLogitsProcessor,
    RowOptions,
    TokenRange,
    TrieConstraint,
)
from modeling_ofa.trie_ofa import AnswerTrie


INPUTS = {"input_ids": SOURCE, "pixel_values": images(3), "patch_masks": HAS_IMAGE}
# Weights drawn at random seldom end a sentence; this makes them do so, sooner or later.
ENDS = {"sequence_bias": [[[2], 4.0]]}
SCORES = {"return_dict_in_generate": True, "output_scores": True}

ANSWERS = [[70, 71], [70, 72, 73], [80], [80, 81, 82, 83], [90, 70], [70, 71, 74], [95, 96, 97]]
# In the tests' vocabulary of 200, tokens from 150 stand for bins, and 100 to 149 for image codes.
BINS = (150, 200)


@pytest.fixture(scope="module")
def model() -> OFAForConditionalGeneration:
    return tiny_model()


def every_kind() -> list[Constraint]:
    return [
        TrieConstraint(AnswerTrie(ANSWERS)),
        TokenRange(100, 150),
        BoxConstraint(*BINS),
        LabelledBoxesConstraint(*BINS, text_stop=100),
    ]


def allowed(constraint: Constraint, *tokens: int) -> set[int]:
    """What a row may write after these tokens."""
    mask = constraint.allowed(torch.tensor([tokens], dtype=torch.long), VOCAB_SIZE)
    assert mask.shape == (1, VOCAB_SIZE) and mask.dtype == torch.bool
    return set(mask[0].nonzero().flatten().tolist())


def answer(ids: torch.Tensor, prompt: int = 1) -> list[int]:
    """A generated row behind its prompt, and without the padding behind its end."""
    return [token for token in ids.tolist()[prompt:] if token != 1]


def run(model: OFAForConditionalGeneration, rows: RowOptions | list[RowOptions], **kwargs: Any) -> Any:
    processor = RowLogitsProcessor(rows)
    inputs = kwargs.pop("inputs", INPUTS)
    length = {} if processor.max_new_tokens is None else {"max_new_tokens": processor.max_new_tokens}
    return model.generate(**inputs, **{**length, **ENDS, **SCORES, **kwargs}, logits_processor=[processor])


def one_row(i: int) -> dict[str, torch.Tensor]:
    return {name: value[i : i + 1] for name, value in INPUTS.items()}


# ------------------------------------------------------------------------------------------------- constraints


def test_a_trie_allows_what_continues_an_answer_and_after_an_unknown_prefix_the_end():
    generator = random.Random(0)
    answers = [[generator.randrange(4, 9) for _ in range(generator.randrange(1, 6))] for _ in range(60)]
    constraint = TrieConstraint(AnswerTrie(answers))
    prefixes = [answer[:n] for answer in answers for n in range(len(answer) + 1)]
    prefixes += [[generator.randrange(4, 9) for _ in range(6)] for _ in range(60)] + [[4, 2], [2, 2], [1], [199] * 9]
    tokens = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, prefixes)), batch_first=True, padding_value=-1)
    mask = constraint.allowed(tokens.long(), VOCAB_SIZE)
    for prefix, row in zip(prefixes, mask, strict=True):
        following = {[*a, 2][len(prefix)] for a in answers if a[: len(prefix)] == prefix}
        assert set(row.nonzero().flatten().tolist()) == (following or {2})


def test_a_range_leaves_the_special_tokens_possible_unless_told_otherwise():
    assert allowed(TokenRange(100, 150)) == {0, 1, 2, 3, *range(100, 150)}
    assert allowed(TokenRange(100, 150), 120, 0) == {0, 1, 2, 3, *range(100, 150)}
    assert allowed(TokenRange(100, 150, others=[2])) == {2, *range(100, 150)}
    assert allowed(TokenRange(100, 150, others=())) == set(range(100, 150))


def test_a_box_is_four_bins_and_the_end():
    constraint, bins = BoxConstraint(*BINS), set(range(*BINS))
    for length in range(4):
        assert allowed(constraint, *[150] * length) == bins
    assert allowed(constraint, 150, 160, 170, 180) == {2}
    assert allowed(constraint, 150, 160, 170, 180, 2) == {2}


def test_labelled_boxes_are_four_bins_and_a_text_again_and_again():
    constraint = LabelledBoxesConstraint(*BINS, text_stop=100)
    bins, text = set(range(*BINS)), set(range(4, 100))
    box = [150, 160, 170, 180]
    for beginning in ([], [*box, 5], [*box, 5, 6, *box, 7]):
        for length in range(1, 4):
            assert allowed(constraint, *beginning, *box[:length]) == bins
        assert allowed(constraint, *beginning, *box) == text
    assert allowed(constraint) == bins
    assert allowed(constraint, *box, 5) == text | bins | {2}
    assert allowed(constraint, *box, 5, 6, *box, 7, 8) == text | bins | {2}


def test_whatever_is_sampled_under_labelled_boxes_can_be_read_as_labelled_boxes(model: OFAForConditionalGeneration):
    options = RowOptions(LabelledBoxesConstraint(*BINS, text_stop=100), max_new_tokens=40)
    torch.manual_seed(0)
    out = run(model, options, do_sample=True, num_return_sequences=8, sequence_bias=[[[2], 7.0]])
    kinds = ["".join("e" if t == 2 else "b" if t >= 150 else "t" for t in answer(ids)) for ids in out.sequences]
    whole = [kind for kind in kinds if len(kind) < 40]
    assert len(whole) > 10 and all(re.fullmatch("(bbbbt+)+e", kind) for kind in whole)
    assert any(kind.count("bbbb") > 1 for kind in whole)


@pytest.mark.parametrize("constraint", every_kind(), ids=lambda constraint: type(constraint).__name__)
def test_rows_that_have_written_less_than_others_are_as_if_alone(constraint: Constraint):
    prefixes = [[], [70], [150, 151], [150, 151, 152, 153], [80, 81, 82], [150, 150, 150, 150, 5, 6]]
    tokens = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, prefixes)), batch_first=True, padding_value=-1)
    mask = constraint.allowed(tokens.long(), VOCAB_SIZE)
    for prefix, row in zip(prefixes, mask, strict=True):
        assert set(row.nonzero().flatten().tolist()) == allowed(constraint, *prefix) != set()


def test_tokens_that_the_model_does_not_have_are_refused():
    tokens = torch.zeros(1, 0, dtype=torch.long)
    with pytest.raises(ValueError, match="tokens 58457 to 59456 are no range of a model with 200 tokens"):
        BoxConstraint(58457, 59457).allowed(tokens, VOCAB_SIZE)
    with pytest.raises(ValueError, match="tokens 9 to 8 are no range"):
        TokenRange(9, 9).allowed(tokens, VOCAB_SIZE)
    with pytest.raises(ValueError, match="holds the token 500, but the model has 200"):
        TrieConstraint(AnswerTrie([[500]])).allowed(tokens, VOCAB_SIZE)


# ------------------------------------------------------------------------------------- the options of a row, alone


def scores_after(rows: RowOptions | list[RowOptions], tokens: list[list[int]], **kwargs: Any) -> torch.Tensor:
    """Scores of the next token, where the model finds token `i` of row `r` `r + i / 100` good."""
    ids = torch.tensor(tokens)
    scores = torch.arange(len(ids))[:, None] + torch.arange(VOCAB_SIZE) / 100
    return RowLogitsProcessor(rows, **kwargs)(ids, scores.log_softmax(-1))


def possible(scores: torch.Tensor) -> set[int]:
    return set(torch.isfinite(scores).nonzero().flatten().tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_probability_goes_from_what_is_forbidden_to_what_is_allowed(dtype: torch.dtype):
    free = torch.randn(2, VOCAB_SIZE, generator=torch.Generator().manual_seed(0)).to(dtype).log_softmax(-1)
    ids = torch.tensor([[0, 70], [0, 70]])
    constraint = TrieConstraint(AnswerTrie(ANSWERS))
    scores = RowLogitsProcessor(RowOptions(constraint))(ids, free)
    assert scores.dtype == dtype and possible(scores[0]) == possible(scores[1]) == {71, 72}
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(2, dtype=dtype), atol=1e-2, rtol=0)
    official_zero_shot = RowLogitsProcessor(RowOptions(constraint, renormalize=False))(ids, free)
    assert torch.equal(official_zero_shot[:, [71, 72]], free[:, [71, 72]])


def test_a_row_without_options_keeps_its_scores():
    rows = [RowOptions(), RowOptions(TokenRange(100, 150)), RowOptions()]
    scores = scores_after(rows, [[0, 5], [0, 6], [0, 7]])
    expected = scores_after(RowOptions(), [[0, 5], [0, 6], [0, 7]])
    assert torch.equal(scores[[0, 2]], expected[[0, 2]])
    assert possible(scores[1]) == {0, 1, 2, 3, *range(100, 150)}


def test_lengths_count_the_answer_and_its_end():
    row = RowOptions(min_new_tokens=2, max_new_tokens=3)
    after = [possible(scores_after(row, [[0, *[9] * n]])[0]) for n in range(3)]
    assert after == [set(range(VOCAB_SIZE)) - {2}, set(range(VOCAB_SIZE)) - {2}, {2}]
    free = scores_after(RowOptions(), [[0, 9, 9]])
    assert scores_after(row, [[0, 9, 9]])[0, 2] == free[0, 2]  # the price that the model asks


def test_suppressed_tokens_lose_their_probability_to_none():
    rows = RowOptions(TokenRange(100, 150), suppress_tokens=[0, 1, 2, 3], max_new_tokens=4)
    kept = scores_after(RowOptions(TokenRange(100, 150)), [[0, 120]])
    scores = scores_after(rows, [[0, 120]])
    assert possible(scores[0]) == set(range(100, 150))
    assert torch.equal(scores[:, 100:150], kept[:, 100:150])
    assert possible(scores_after(rows, [[0, 120, 120, 120]])[0]) == {2}  # the end that the length forces


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_is_repeated(size: int):
    ids = torch.tensor([[0, 5, 6, 7, 5, 6], [0, 8, 8, 8, 8, 8]])
    scores = scores_after([RowOptions(no_repeat_ngram_size=size), RowOptions(no_repeat_ngram_size=2)], ids.tolist())
    banned = {1: {0, 5, 6, 7}, 2: {7}, 3: {7}}[size]
    assert possible(scores[0]) == set(range(VOCAB_SIZE)) - banned
    assert possible(scores[1]) == set(range(VOCAB_SIZE)) - {8}


def test_prompts_are_written_first_whatever_their_length():
    constraint = BoxConstraint(*BINS)
    rows = [RowOptions(constraint, prompt=[5, 6]), RowOptions(constraint), RowOptions(constraint, prompt=[7])]
    bins = set(range(*BINS))
    tokens = [[0, 9], [0, 9], [0, 9]]  # two tokens are given to the decoder
    for expected in ([{5}, bins, {7}], [{6}, bins, bins], [bins, bins, bins], [bins, bins, bins], [bins, {2}, bins]):
        scores = scores_after(rows, tokens, prompt_length=2)
        assert [possible(row) for row in scores] == expected
        tokens = [[*row, min(choice)] for row, choice in zip(tokens, expected, strict=True)]


def test_a_prompt_costs_nothing_or_what_the_model_asks():
    free = scores_after(RowOptions(), [[0], [0]])
    rows = [RowOptions(TokenRange(100, 150), prompt=[5], score_prompt=scored) for scored in (False, True)]
    scores = scores_after(rows, [[0], [0]])
    assert scores[0, 5] == 0 and scores[1, 5] == free[1, 5]


def test_beams_of_a_row_share_its_options():
    rows = [RowOptions(BoxConstraint(*BINS)), RowOptions(no_repeat_ngram_size=1, max_new_tokens=9)]
    tokens = [[0, 150], [0, 160], [0, 5], [0, 6]]
    scores = scores_after(rows, tokens)
    for i, row in enumerate(scores):
        alone = scores_after(rows[i // 2], [tokens[i]] * 4)
        torch.testing.assert_close(row, alone[i])


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="`max_new_tokens` must be at least 5, got 4"):
        RowOptions(min_new_tokens=4, max_new_tokens=4)
    with pytest.raises(ValueError, match="can't be negative"):
        RowOptions(no_repeat_ngram_size=-1)
    with pytest.raises(ValueError, match="no rows"):
        RowLogitsProcessor([])
    with pytest.raises(TypeError, match="Row 0 is a TokenRange, not `RowOptions`"):
        RowLogitsProcessor([TokenRange(100, 150)])


def test_a_batch_of_another_size_is_refused(model: OFAForConditionalGeneration):
    # Six rows could be three with two beams each; the model knows that they are not.
    inputs = {name: value.repeat_interleave(2, dim=0) for name, value in INPUTS.items()}
    with pytest.raises(ValueError, match="batch has 6 rows, but the `RowLogitsProcessor` has 3"):
        run(model, [RowOptions(max_new_tokens=3)] * 3, inputs=inputs)
    with pytest.raises(ValueError, match="5 rows of scores don't belong to 2"):
        scores_after([RowOptions()] * 2, [[0]] * 5)


# ---------------------------------------------------------------------------------- a mixed batch equals its rows

# Each with the library's own options for the same, where it has them.
MIXED: list[tuple[RowOptions, dict[str, Any] | None]] = [
    (
        RowOptions(min_new_tokens=2, max_new_tokens=12, no_repeat_ngram_size=2, length_penalty=1.0),
        {"min_new_tokens": 2, "max_new_tokens": 12, "no_repeat_ngram_size": 2, "length_penalty": 1.0},
    ),
    (RowOptions(TrieConstraint(AnswerTrie(ANSWERS)), max_new_tokens=6, length_penalty=0.0), None),
    (RowOptions(BoxConstraint(*BINS), max_new_tokens=5), None),
    (RowOptions(max_new_tokens=7, length_penalty=-1.0), {"max_new_tokens": 7, "length_penalty": -1.0}),
    (RowOptions(LabelledBoxesConstraint(*BINS, text_stop=100), max_new_tokens=16, length_penalty=2.0), None),
    (
        RowOptions(max_new_tokens=9, no_repeat_ngram_size=1, length_penalty=2.0),
        {"max_new_tokens": 9, "no_repeat_ngram_size": 1, "length_penalty": 2.0},
    ),
    (RowOptions(TokenRange(100, 150), min_new_tokens=8, max_new_tokens=9, renormalize=False), None),
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 5, "num_return_sequences": 3, "early_stopping": True},
        {"num_beams": 5, "num_return_sequences": 5, "early_stopping": False},
        {"num_beams": 4, "num_return_sequences": 2, "early_stopping": "never"},
        {"num_beams": 5, "num_return_sequences": 3, "early_stopping": True, "use_cache": False},
        {"num_beams": 3, "num_return_sequences": 3, "early_stopping": True, "cache_implementation": "static"},
        {"num_beams": 3, "early_stopping": True, "temperature": 0.5},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()) or "greedy",
)
def test_a_mixed_batch_gives_what_each_row_gives_alone(model: OFAForConditionalGeneration, options: dict[str, Any]):
    which = [i % 3 for i in range(len(MIXED))]
    inputs = {name: value[which] for name, value in INPUTS.items()}
    copies = options.get("num_return_sequences", 1)
    out = run(model, [row for row, _ in MIXED], inputs=inputs, **options)
    for i, (row, own_options) in enumerate(MIXED):
        if own_options is None:
            alone = run(model, row, inputs=one_row(which[i]), **options)
        else:
            own_options = {"forced_eos_token_id": 2, **own_options}
            alone = model.generate(**one_row(which[i]), **ENDS, **SCORES, **own_options, **options)
        rows = slice(i * copies, (i + 1) * copies)
        assert [answer(ids) for ids in out.sequences[rows]] == [answer(ids) for ids in alone.sequences]
        if "num_beams" in options:
            torch.testing.assert_close(out.sequences_scores[rows], alone.sequences_scores, **TOLERANCE)


def test_samples_of_a_mixed_batch_are_those_of_each_task(model: OFAForConditionalGeneration):
    sampled = {"do_sample": True, "top_k": 20, "num_return_sequences": 2}
    rows = [MIXED[0][0], MIXED[1][0], MIXED[4][0]]
    torch.manual_seed(0)
    mixed = run(model, rows, **sampled).sequences
    for i, row in enumerate(rows):
        torch.manual_seed(0)  # the same noise for the same place in the batch
        alone = run(model, row, **sampled).sequences
        for place in (2 * i, 2 * i + 1):
            assert answer(mixed[place]) == answer(alone[place])
    assert all(answer(ids)[:-1] in ANSWERS for ids in mixed[2:4])


@pytest.mark.parametrize("options", [{}, {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True}])
def test_a_prompt_may_be_given_to_the_decoder_or_written_first_or_both(
    model: OFAForConditionalGeneration, options: dict[str, Any]
):
    constraint = TrieConstraint(AnswerTrie(ANSWERS))
    row = {"max_new_tokens": 6, "length_penalty": 1.0, "no_repeat_ngram_size": 3}
    prompts = [[11, 12, 13, 14], [15, 16], [17, 18, 19]]
    free = [None, constraint, constraint]
    mixed = [RowOptions(rule, prompt=prompt[2:], **row) for prompt, rule in zip(prompts, free, strict=True)]
    out = run(model, mixed, decoder_input_ids=torch.tensor([[0, *prompt[:2]] for prompt in prompts]), **options)
    written = [RowOptions(rule, prompt=prompt, **row) for prompt, rule in zip(prompts, free, strict=True)]
    from_the_start = run(model, written, **options)
    copies = options.get("num_return_sequences", 1)
    for i, (prompt, rule) in enumerate(zip(prompts, free, strict=True)):
        given = torch.tensor([[0, *prompt]])
        alone = run(model, RowOptions(rule, **row), inputs=one_row(i), decoder_input_ids=given, **options)
        rows = slice(i * copies, (i + 1) * copies)
        expected = [answer(ids) for ids in alone.sequences]
        assert [answer(ids) for ids in out.sequences[rows]] == expected
        assert [answer(ids) for ids in from_the_start.sequences[rows]] == expected
        assert all(ids[: len(prompt)] == prompt for ids in expected)
        if options:
            for other in (out, from_the_start):
                torch.testing.assert_close(other.sequences_scores[rows], alone.sequences_scores, **TOLERANCE)


@pytest.mark.parametrize("constrained", [False, True])
def test_decoder_prompts_of_different_lengths_are_padded_on_the_right(
    model: OFAForConditionalGeneration, constrained: bool
):
    prompts = [[0, 11, 12, 13, 14], [0], [0, 17, 18]]
    ids = torch.tensor([prompt + [1] * (5 - len(prompt)) for prompt in prompts])
    search = {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True, **ENDS, **SCORES}
    search.update(min_new_tokens=2, max_new_tokens=6, forced_eos_token_id=2)
    if constrained:
        search["logits_processor"] = [RowLogitsProcessor(RowOptions(TrieConstraint(AnswerTrie(ANSWERS))))]
    inputs = {name: value[[0, 1, 2]] for name, value in INPUTS.items()}
    out = model.generate(**inputs, decoder_input_ids=ids, decoder_attention_mask=ids.ne(1).long(), **search)
    for i, prompt in enumerate(prompts):
        alone = model.generate(**one_row(i), decoder_input_ids=torch.tensor([prompt]), **search)
        rows = slice(2 * i, 2 * i + 2)
        assert [answer(row) for row in out.sequences[rows]] == [answer(row) for row in alone.sequences]
        torch.testing.assert_close(out.sequences_scores[rows], alone.sequences_scores, **TOLERANCE)
    with pytest.raises(ValueError, match="padded on the right"):
        model.generate(**inputs, decoder_input_ids=ids, decoder_attention_mask=ids.ne(1).long().flip(1), **search)


@pytest.mark.parametrize(
    "search",
    [
        {},
        {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True},
        {"num_beams": 3, "length_penalty": 0.7},
        {"do_sample": True, "top_k": 1, "num_return_sequences": 2},
    ],
    ids=["greedy", "beams", "patient beams", "samples"],
)
@pytest.mark.parametrize("constrained", [False, True])
def test_an_end_in_a_prompt_ends_no_answer(
    model: OFAForConditionalGeneration, constrained: bool, search: dict[str, Any]
):
    prompts = [[0, 11, 2, 13, 2], [0, 17, 2], [0, 18, 2, 2]]
    ids = torch.tensor([prompt + [1] * (5 - len(prompt)) for prompt in prompts])
    search = {**search, **SCORES, "min_new_tokens": 2, "max_new_tokens": 6, "forced_eos_token_id": 2}
    if constrained:
        search["logits_processor"] = [RowLogitsProcessor(RowOptions(TrieConstraint(AnswerTrie(ANSWERS))))]
    out = model.generate(**INPUTS, decoder_input_ids=ids, decoder_attention_mask=ids.ne(1).long(), **search)
    copies = search.get("num_return_sequences", 1)
    for i, prompt in enumerate(prompts):
        alone = model.generate(**one_row(i), decoder_input_ids=torch.tensor([prompt]), **search)
        rows = slice(copies * i, copies * (i + 1))
        assert [answer(row) for row in out.sequences[rows]] == [answer(row) for row in alone.sequences]
        assert all(len(answer(row)) > len(prompt) for row in alone.sequences)
        if "num_beams" in search:
            torch.testing.assert_close(out.sequences_scores[rows], alone.sequences_scores, **TOLERANCE)


def test_the_models_own_least_length_spares_ends_in_prompts(model: OFAForConditionalGeneration):
    prompts = [[0, 11, 2], [0]]
    ids, mask = torch.tensor([[0, 11, 2], [0, 1, 1]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    inputs = {name: value[:2] for name, value in INPUTS.items()}
    options = {"max_new_tokens": 6, "forced_eos_token_id": 2, **ENDS}
    model.generation_config.min_new_tokens = 4
    try:
        out = model.generate(**inputs, decoder_input_ids=ids, decoder_attention_mask=mask, **options)
        for i, prompt in enumerate(prompts):
            alone = model.generate(**one_row(i), decoder_input_ids=torch.tensor([prompt]), **options)
            assert answer(out[i]) == answer(alone[0])
    finally:
        model.generation_config.min_new_tokens = None


def test_a_scored_prompt_counts_in_score_and_length(model: OFAForConditionalGeneration):
    prompt = [11, 12, 13]
    row = RowOptions(prompt=prompt, score_prompt=True, max_new_tokens=5, length_penalty=1.0)
    out = run(model, row, num_beams=3, sequence_bias=None)
    for i, ids in enumerate(out.sequences):
        tokens = torch.tensor([[0, *answer(ids)]])
        assert tokens[0, 1:4].tolist() == prompt
        with torch.no_grad():
            logits = model(**one_row(i), decoder_input_ids=tokens[:, :-1]).logits
        score = logits[0].log_softmax(-1).gather(-1, tokens[0, 1:, None]).sum() / (tokens.shape[1] - 1)
        torch.testing.assert_close(out.sequences_scores[i], score, **TOLERANCE)


# ------------------------------------------------------------------------------------------ where little is allowed


def test_fewer_answers_than_beams_end_the_search_and_leave_hypotheses_empty(model: OFAForConditionalGeneration):
    answers = [[70, 71], [80]]
    steps = []

    class CountSteps(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            steps.append(input_ids.shape[1])
            return scores

    rows = RowLogitsProcessor(RowOptions(TrieConstraint(AnswerTrie(answers))))
    for penalty in (0.0, 1.0):
        steps.clear()
        out = model.generate(
            **INPUTS,
            **SCORES,
            num_beams=5,
            num_return_sequences=5,
            early_stopping=True,
            length_penalty=penalty,
            max_new_tokens=30,
            logits_processor=[rows, CountSteps()],
        )
        assert len(steps) == 3  # two tokens and the end
        for hypotheses, scores in zip(out.sequences.split(5), out.sequences_scores.split(5), strict=True):
            assert {tuple(answer(ids)) for ids in hypotheses[:2]} == {(70, 71, 2), (80, 2)}
            assert not any(answer(ids) for ids in hypotheses[2:]) and (scores[2:] == -1e9).all()


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 3}, {"num_beams": 6}])
def test_an_answer_that_is_cut_short_ranks_behind_the_whole_ones(
    model: OFAForConditionalGeneration, options: dict[str, Any]
):
    # Two tokens and the end: room for some answers, not for all.
    row = RowOptions(TrieConstraint(AnswerTrie(ANSWERS)), max_new_tokens=3)
    out = run(model, row, num_return_sequences=options.get("num_beams", 1), **options)
    whole = [answer(ids)[:-1] in ANSWERS for ids in out.sequences]
    assert all(answer(ids)[-1] == 2 and len(answer(ids)) <= 3 for ids in out.sequences)
    if "num_beams" in options:
        assert (out.sequences_scores > -1e5).tolist() == whole
        assert all(any(beams) for beams in torch.tensor(whole).split(options["num_beams"]))


def test_constraints_come_before_the_other_processors(model: OFAForConditionalGeneration):
    out = run(model, RowOptions(TokenRange(100, 150, others=[2]), max_new_tokens=2), sequence_bias=[[[2], 3.0]])
    plain = run(model, RowOptions(TokenRange(100, 150, others=[2]), max_new_tokens=2), sequence_bias=None)
    biased = plain.scores[0].clone()
    biased[:, 2] += 3.0  # added to what the constraint has normalized
    torch.testing.assert_close(out.scores[0], biased)


# -------------------------------------------------------------------------------------- with the rest of `generate`


def test_a_processor_serves_many_calls_at_once(model: OFAForConditionalGeneration):
    rows = RowLogitsProcessor([row for row, _ in MIXED[:3]])
    options = {**ENDS, "num_beams": 3, "max_new_tokens": 12, "logits_processor": [rows]}
    # The calls differ in what the decoder is given, so that nothing of one may be left for another.
    prompts = [torch.tensor([[0, *range(20, 20 + n)]] * 3) for n in (0, 3, 1, 2)]
    expected = [model.generate(**INPUTS, **options, decoder_input_ids=prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda prompt: model.generate(**INPUTS, **options, decoder_input_ids=prompt), prompts * 3)
    for ids, other in zip(expected * 3, found, strict=True):
        assert torch.equal(ids, other)
    assert rows.prompt_length is None


@pytest.mark.parametrize("extra", ["prompt lookup", "assistant"])
@pytest.mark.parametrize("given", [1, 3], ids=["from the start", "after a prompt"])
def test_assisted_decoding_under_constraints_gives_what_greedy_decoding_gives(
    model: OFAForConditionalGeneration, extra: str, given: int
):
    helper: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if extra == "assistant":
        helper = {"assistant_model": tiny_model(seed=1)}
    for row, _ in MIXED:
        options: dict[str, Any] = {"inputs": one_row(0), "decoder_input_ids": torch.tensor([[0, 21, 22][:given]])}
        expected = run(model, row, **options).sequences
        assert torch.equal(run(model, row, **options, **helper).sequences, expected)


def test_an_assistant_does_not_take_what_was_written_so_far_for_a_prompt():
    for row, _ in MIXED:
        begun = RowLogitsProcessor(row).begin(1, batch_size=1, device=torch.device("cpu"))
        again = begun.begin(3, batch_size=1, device=torch.device("cpu"))
        expected = scores_after(row, [[0, 70, 71]])
        scores = torch.zeros(1, VOCAB_SIZE)
        assert torch.equal(again(torch.tensor([[0, 70, 71]]), scores), begun(torch.tensor([[0, 70, 71]]), scores))
        assert possible(again(torch.tensor([[0, 70, 71]]), scores)[0]) == possible(expected[0])


def test_a_constraint_serves_the_librarys_own_prefix_function(model: OFAForConditionalGeneration):
    constraint = TrieConstraint(AnswerTrie(ANSWERS))
    ids = model.generate(
        **INPUTS,
        num_beams=3,
        num_return_sequences=3,
        max_new_tokens=6,
        prefix_allowed_tokens_fn=lambda row, ids: constraint.allowed(ids[None, 1:], VOCAB_SIZE)[0].nonzero()[:, 0],
    )
    assert all(answer(row)[:-1] in ANSWERS for row in ids)


def test_a_constraint_of_your_own_is_asked_of_all_its_rows_at_once(model: OFAForConditionalGeneration):
    seen: list[tuple[int, ...]] = []

    class EvenThenOdd(Constraint):
        def allowed(self, tokens: torch.Tensor, vocab_size: int) -> torch.Tensor:
            seen.append(tuple(tokens.shape))
            parity = torch.arange(vocab_size) % 2
            return parity[None] == (tokens >= 0).sum(1, keepdim=True) % 2

    rule = EvenThenOdd()
    rows = [RowOptions(rule, max_new_tokens=5), RowOptions(max_new_tokens=4), RowOptions(rule, max_new_tokens=4)]
    out = run(model, rows, num_beams=3, sequence_bias=[[[2], -9.0]])
    assert set(seen) == {(6, length) for length in range(5)} and len(seen) == 5
    for ids in out.sequences[[0, 2]]:
        assert [token % 2 for token in answer(ids)[:3]] == [0, 1, 0]


def test_the_longest_row_says_how_many_steps_a_call_needs():
    rows = [RowOptions(max_new_tokens=5, prompt=[7, 8, 9]), RowOptions(max_new_tokens=6)]
    assert RowLogitsProcessor(rows).max_new_tokens == 8
    assert RowLogitsProcessor([*rows, RowOptions()]).max_new_tokens is None
