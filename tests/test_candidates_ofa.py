"""
Scores of candidates, against the official recording and against decoding every candidate whole.

Tolerance against the recording: 1e-4 absolute (measured: 2e-5, on scores down to -26).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from test_golden import GOLDEN, build, image
from test_trie_ofa import random_answers
from tiny import HAS_IMAGE, SOURCE, TOLERANCE, images, tiny_model
from transformers import AutoTokenizer

from modeling_ofa import DEFAULT_CHECKPOINT, OFAForConditionalGeneration
from modeling_ofa.trie_ofa import AnswerTrie


# Twins, beginnings of others, nothing at all, and two whose last tokens are no choice.
CANDIDATES = [*random_answers(40), [5], [5, 6], [5, 6], [], [150, 151, 152], [150, 151, 153, 154]]
PROMPTS = [[0, 20, 21, 22], [0], [0, 30, 31, 32]]
INPUTS = {"input_ids": SOURCE, "pixel_values": images(3), "patch_masks": HAS_IMAGE}
EOS = 2


def padded(prompts: list[list[int]]) -> torch.Tensor:
    """Prompts as one tensor, padded on the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts], True, padding_value=1)


@torch.no_grad()
def whole_scores(
    model: OFAForConditionalGeneration,
    inputs: dict[str, torch.Tensor],
    prompts: list[list[int]],
    candidates: list[list[int]],
    constrained: bool = True,
) -> torch.Tensor:
    """What `score_candidates` gives, one candidate of one row at a time: prompt and candidate through the model."""
    scores = torch.zeros(len(prompts), len(candidates))
    for row, prompt in enumerate(prompts):
        alone = {name: value[row : row + 1] for name, value in inputs.items()}
        for column, candidate in enumerate(candidates):
            ids = torch.tensor([[*prompt, *candidate]])
            logits = model(**alone, decoder_input_ids=ids, decoder_attention_mask=torch.ones_like(ids)).logits[0]
            for step, token in enumerate([*candidate, EOS]):
                after = logits[len(prompt) - 1 + step]
                if constrained:
                    beginnings = [other[: step + 1] for other in [[*other, EOS] for other in candidates]]
                    allowed = {part[step] for part in beginnings if part[:step] == candidate[:step] and part[step:]}
                    banned = torch.ones_like(after, dtype=torch.bool)
                    banned[list(allowed)] = False
                    after = after.masked_fill(banned, -torch.inf)
                scores[row, column] += after.log_softmax(-1)[token]
    return scores


@contextmanager
def recorded_calls(module: torch.nn.Module) -> Iterator[list[dict[str, Any]]]:
    """The keyword arguments of the calls of a module, and the shape of what it read first."""
    calls: list[dict[str, Any]] = []

    def record(_: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append({**kwargs, "first": args[0] if args else None})

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    yield calls
    handle.remove()


@pytest.fixture(scope="module")
def model() -> OFAForConditionalGeneration:
    return tiny_model()


def test_scores_are_those_of_the_official_evaluation():
    recorded = json.loads((GOLDEN / "generate_mini_allcand_prev_output.json").read_text())
    model = build("mini")
    embeddings = model.get_input_embeddings().weight.detach() * recorded["embed_mult"]
    embeddings[EOS] *= recorded["eos_mult"]
    model.get_input_embeddings().weight.data = embeddings
    model.tie_weights()
    inputs = {
        "input_ids": torch.tensor(recorded["src_tokens"]),
        "pixel_values": image(recorded["patch_images"]),
        "decoder_input_ids": padded(recorded["decoder_prompts"]),
    }
    scores = model.score_candidates(inputs, recorded["answers"])
    torch.testing.assert_close(scores, torch.tensor(recorded["scores"]), atol=1e-4, rtol=0)
    assert scores.argmax(-1).tolist() == recorded["predicted_index"]


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"attn_implementation": "eager"},
        {"decoder_prompt_length": 3, "encoder_prompt_length": 2},
        {"tie_word_embeddings": False},
    ],
    ids=["default", "eager", "prefix", "untied"],
)
def test_each_candidate_scores_as_if_it_was_decoded_whole(config: dict[str, Any], constrained: bool):
    model = tiny_model(**config)
    prompts = padded(PROMPTS)
    scores = model.score_candidates({**INPUTS, "decoder_input_ids": prompts}, CANDIDATES, constrained=constrained)
    expected = whole_scores(model, INPUTS, PROMPTS, CANDIDATES, constrained)
    assert scores.shape == (3, len(CANDIDATES)) and scores.dtype == torch.float32 and not scores.requires_grad
    torch.testing.assert_close(scores, expected, **TOLERANCE)


def test_texts_without_images_are_scored_alike(model: OFAForConditionalGeneration):
    scores = model.score_candidates({"input_ids": SOURCE}, CANDIDATES)
    expected = whole_scores(model, {"input_ids": SOURCE}, [[0]] * 3, CANDIDATES)
    torch.testing.assert_close(scores, expected, **TOLERANCE)


def test_constrained_probabilities_of_distinct_candidates_sum_to_one(model: OFAForConditionalGeneration):
    distinct = [list(answer) for answer in {tuple(candidate) for candidate in CANDIDATES}]
    scores, probabilities = model.score_candidates(INPUTS, distinct, return_probs=True)
    torch.testing.assert_close(probabilities, scores.exp())
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3))


def test_the_models_own_probabilities_are_below_the_constrained_ones(model: OFAForConditionalGeneration):
    constrained = model.score_candidates(INPUTS, CANDIDATES)
    free = model.score_candidates(INPUTS, CANDIDATES, constrained=False)
    assert (free < constrained).all()


def test_a_candidate_that_comes_twice_scores_twice_the_same(model: OFAForConditionalGeneration):
    scores = model.score_candidates(INPUTS, [[7, 8], [9], [7, 8]])
    assert torch.equal(scores[:, 0], scores[:, 2])
    torch.testing.assert_close(scores[:, :2], model.score_candidates(INPUTS, [[7, 8], [9]]))


def test_a_single_candidate_is_certain(model: OFAForConditionalGeneration):
    assert model.score_candidates(INPUTS, [[7, 8, 9]]).tolist() == [[0.0]] * 3


@pytest.mark.parametrize("chunk_size", [1, 4, 7])
@pytest.mark.parametrize("constrained", [True, False])
def test_chunks_bound_the_decoders_rows_and_change_nothing(
    model: OFAForConditionalGeneration, chunk_size: int, constrained: bool
):
    inputs = {**INPUTS, "decoder_input_ids": PROMPTS}
    whole = model.score_candidates(inputs, CANDIDATES, constrained=constrained)
    with recorded_calls(model.model.decoder) as calls:
        scores = model.score_candidates(inputs, CANDIDATES, constrained=constrained, chunk_size=chunk_size)
    assert max(len(call["input_ids"]) for call in calls) <= chunk_size
    torch.testing.assert_close(scores, whole, **TOLERANCE)


def test_a_batch_scores_as_its_rows_do(model: OFAForConditionalGeneration):
    batch = model.score_candidates({**INPUTS, "decoder_input_ids": PROMPTS}, CANDIDATES)
    for row, prompt in enumerate(PROMPTS):
        words = SOURCE[row][SOURCE[row] != 1]
        inputs = {"input_ids": words[None], "decoder_input_ids": [prompt]}
        if HAS_IMAGE[row]:
            inputs["pixel_values"] = INPUTS["pixel_values"][row : row + 1]
        torch.testing.assert_close(model.score_candidates(inputs, CANDIDATES), batch[row : row + 1], **TOLERANCE)


def test_the_start_token_alone_is_no_prompt(model: OFAForConditionalGeneration):
    scores = model.score_candidates(INPUTS, CANDIDATES)
    assert torch.equal(model.score_candidates({**INPUTS, "decoder_input_ids": [[0]] * 3}, CANDIDATES), scores)


def test_a_prompt_counts_for_what_follows_but_is_not_scored(model: OFAForConditionalGeneration):
    inputs = {**INPUTS, "decoder_input_ids": [[0, 20, 21]] * 3}
    scores = model.score_candidates(inputs, CANDIDATES)
    assert not torch.allclose(scores, model.score_candidates(INPUTS, CANDIDATES), atol=0.1)
    distinct = [[7], [8, 9]]
    torch.testing.assert_close(model.score_candidates(inputs, distinct).exp().sum(-1), torch.ones(3))


def test_padding_of_prompts_is_where_their_mask_says(model: OFAForConditionalGeneration):
    # The first prompt holds a padding token that is meant, and the second one is padded on the left.
    prompts, masks = (
        torch.tensor([[0, 1, 20], [1, 0, 21], [0, 22, 1]]),
        torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 0]]),
    )
    inputs = {**INPUTS, "decoder_input_ids": prompts, "decoder_attention_mask": masks}
    meant = [[0, 1, 20], [0, 21], [0, 22]]
    scores = model.score_candidates(inputs, CANDIDATES)
    assert torch.equal(model.score_candidates({**INPUTS, "decoder_input_ids": meant}, CANDIDATES), scores)
    torch.testing.assert_close(scores, whole_scores(model, INPUTS, meant, CANDIDATES), **TOLERANCE)


def test_a_tree_built_once_and_tensors_are_taken_as_lists_are(model: OFAForConditionalGeneration):
    scores = model.score_candidates(INPUTS, CANDIDATES)
    assert torch.equal(model.score_candidates(INPUTS, AnswerTrie(CANDIDATES)), scores)
    tensors = [torch.tensor(candidate, dtype=torch.long) for candidate in CANDIDATES]
    assert torch.equal(model.score_candidates(INPUTS, tensors), scores)


def test_texts_are_encoded_with_a_space_in_front():
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_CHECKPOINT)
    model = tiny_model(vocab_size=len(tokenizer))
    texts = ["red", "dark blue", "dark"]
    ids = [tokenizer(f" {text}", add_special_tokens=False).input_ids for text in texts]
    assert ids[0] != tokenizer("red", add_special_tokens=False).input_ids
    scores = model.score_candidates(INPUTS, texts, tokenizer=tokenizer)
    assert torch.equal(scores, model.score_candidates(INPUTS, ids))
    with pytest.raises(ValueError, match="Candidate 1 is blank"):
        model.score_candidates(INPUTS, ["red", " "], tokenizer=tokenizer)


def test_what_the_encoder_gave_earlier_is_used(model: OFAForConditionalGeneration):
    scores = model.score_candidates(INPUTS, CANDIDATES)
    with torch.no_grad():
        encoder_outputs = model.get_encoder()(**INPUTS)
    with recorded_calls(model.get_encoder()) as calls:
        again = model.score_candidates({"encoder_outputs": encoder_outputs}, CANDIDATES)
    assert torch.equal(again, scores) and not calls


def test_states_of_a_text_alone_are_used_as_other_models_give_them(model: OFAForConditionalGeneration):
    mask = SOURCE.ne(1).long()
    with torch.no_grad():
        states = model.get_encoder()(SOURCE).last_hidden_state
    scores = model.score_candidates({"encoder_outputs": (states,), "attention_mask": mask}, CANDIDATES)
    assert torch.equal(scores, model.score_candidates({"input_ids": SOURCE}, CANDIDATES))


def test_each_image_is_encoded_and_projected_once(model: OFAForConditionalGeneration):
    with (
        recorded_calls(model.get_encoder()) as encoded,
        recorded_calls(model.model.decoder.layers[0].cross_attn.k_proj) as projected,
    ):
        model.score_candidates({**INPUTS, "decoder_input_ids": PROMPTS}, CANDIDATES, chunk_size=4)
    assert len(encoded) == 1
    assert sum(len(call["first"]) for call in projected) == 3


def test_only_prefixes_with_a_choice_ahead_are_decoded(model: OFAForConditionalGeneration):
    # Of 7, 7 8, 9 and their continuations, only what follows 7 is open.
    with recorded_calls(model.model.decoder) as calls:
        model.score_candidates({"input_ids": SOURCE[:1]}, [[7, 8, 10, 11], [7, 12, 13], [9, 14, 15]])
    assert [call["input_ids"].tolist() for call in calls] == [[[0]], [[7]]]


def test_logits_over_the_vocabulary_are_made_for_a_few_rows_at_a_time(model: OFAForConditionalGeneration):
    candidates = [[token, token + 1] for token in range(10, 40)]
    with recorded_calls(model.lm_head) as calls:
        free = model.score_candidates(INPUTS, candidates, constrained=False)
        assert max(len(call["first"]) for call in calls) == 64
        calls.clear()
        model.score_candidates(INPUTS, candidates)
        assert not calls
    torch.testing.assert_close(free, whole_scores(model, INPUTS, [[0]] * 3, candidates, False), **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("constrained", [True, False])
def test_half_precision_gives_float32_scores_close_by(dtype: torch.dtype, constrained: bool):
    full = tiny_model().score_candidates(INPUTS, CANDIDATES, constrained=constrained)
    half = tiny_model().to(dtype).score_candidates(INPUTS, CANDIDATES, constrained=constrained)
    assert half.dtype == torch.float32 and torch.isfinite(half).all()
    # Rounding moves a sum of up to six log-probabilities of some -5 by so much.
    torch.testing.assert_close(half, full, atol=0.4 if dtype == torch.bfloat16 else 0.05, rtol=0)


def test_weights_may_wait_elsewhere(tmp_path):
    model = tiny_model()
    expected = model.score_candidates(INPUTS, CANDIDATES)
    model.save_pretrained(tmp_path / "model")
    offloaded = OFAForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "offload"
    )
    torch.testing.assert_close(offloaded.score_candidates(INPUTS, CANDIDATES), expected, **TOLERANCE)


def test_the_old_name_of_the_images_is_understood(model: OFAForConditionalGeneration):
    old = {"input_ids": SOURCE, "patch_images": INPUTS["pixel_values"], "patch_masks": HAS_IMAGE}
    with pytest.warns(FutureWarning, match="patch_images"):
        scores = model.score_candidates(old, CANDIDATES)
    assert torch.equal(scores, model.score_candidates(INPUTS, CANDIDATES))


def test_a_model_in_training_is_refused():
    with pytest.raises(ValueError, match="eval"):
        tiny_model().train().score_candidates(INPUTS, CANDIDATES)


@pytest.mark.parametrize(
    ("candidates", "error", "message"),
    [
        ([], ValueError, "at least one"),
        ("red", TypeError, "must be a list"),
        (["red", "blue"], TypeError, "tokenizer"),
        (["red", [5]], TypeError, "list of token ids"),
        ([[5, EOS]], ValueError, "without special tokens"),
        ([[5, 200]], ValueError, "token 200, but the model has 200"),
    ],
)
def test_bad_candidates_are_refused(
    model: OFAForConditionalGeneration, candidates: Any, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        model.score_candidates(INPUTS, candidates)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"labels": SOURCE}, "does not read labels"),
        ({"decoder_input_ids": [[0], [0]]}, "for each of the 3 rows"),
        ({"decoder_input_ids": [[0], [], [0]]}, "of the start token at least"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(model: OFAForConditionalGeneration, extra: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        model.score_candidates({**INPUTS, **extra}, CANDIDATES)


def test_a_chunk_of_nothing_is_refused(model: OFAForConditionalGeneration):
    with pytest.raises(ValueError, match="chunk_size"):
        model.score_candidates(INPUTS, CANDIDATES, chunk_size=0)
