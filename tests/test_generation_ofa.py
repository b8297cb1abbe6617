"""`generate` and the caches: what is computed once, what agrees with what, and what beam search ranks by."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny import VOCAB_SIZE, images, tiny_model, token_ids
from transformers import CompileConfig, DynamicCache, EncoderDecoderCache, StaticCache
from transformers.cache_utils import Cache

from modeling_ofa import OFAForConditionalGeneration
from modeling_ofa.generation_ofa import OFACache


# Sums in another order differ by this much at float32, on values of size 10.
TOLERANCE = {"atol": 5e-5, "rtol": 1e-4}

SOURCE = token_ids([9, 6, 4])
TARGET = token_ids([7, 7, 7], seed=1)
HAS_IMAGE = torch.tensor([True, False, True])
INPUTS = {"input_ids": SOURCE, "pixel_values": images(3), "patch_masks": HAS_IMAGE}

# Weights drawn at random seldom end a sentence; this makes them do so, sooner or later.
ENDS = {"sequence_bias": [[[2], 6.0]]}


@pytest.fixture(scope="module")
def model() -> OFAForConditionalGeneration:
    return tiny_model()


def row(inputs: dict[str, Any], i: int) -> dict[str, Any]:
    """Row `i` of padded inputs, without its padding."""
    alone = {name: value[i : i + 1] for name, value in inputs.items()}
    alone["input_ids"] = alone["input_ids"][:, : alone["input_ids"].ne(1).sum()]
    return alone


def words(ids: torch.Tensor) -> list[int]:
    """A generated row without the padding behind its end."""
    return [token for token in ids.tolist() if token != 1]


@contextmanager
def calls(*modules: torch.nn.Module) -> Iterator[list[dict[str, Any]]]:
    """Records the arguments of every call of `modules`."""
    seen: list[dict[str, Any]] = []

    def record(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        seen.append({"args": args, "output": output, **kwargs})

    hooks = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# -------------------------------------------------------------------------------------- cached equals uncached

CACHES = {
    "the model's own": lambda config: None,
    "OFACache": lambda config: OFACache(DynamicCache(config=config), DynamicCache(config=config)),
    "EncoderDecoderCache": lambda config: EncoderDecoderCache(
        DynamicCache(config=config), DynamicCache(config=config)
    ),
    "DynamicCache": lambda config: DynamicCache(config=config),
    "static EncoderDecoderCache": lambda config: EncoderDecoderCache(
        StaticCache(config=config, max_cache_len=12), StaticCache(config=config, max_cache_len=12 + SOURCE.shape[1])
    ),
    "static OFACache": lambda config: OFACache(
        StaticCache(config=config, max_cache_len=12), StaticCache(config=config, max_cache_len=12 + SOURCE.shape[1])
    ),
    "static cache longer than all positions": lambda config: OFACache(
        StaticCache(config=config, max_cache_len=80), StaticCache(config=config, max_cache_len=12 + SOURCE.shape[1])
    ),
}
CODES = {"text": None, "codes": [True, True, True], "mixed": [True, False, True]}


def decode_in_chunks(
    model: OFAForConditionalGeneration, cache: Cache | None, chunks: list[int], **kwargs: Any
) -> torch.Tensor:
    """Logits of all target positions, computed `chunks` positions at a time."""
    encoder_outputs = model.get_encoder()(**INPUTS)
    logits = []
    for part in TARGET.split(chunks, dim=1):
        out = model(
            encoder_outputs=encoder_outputs,
            decoder_input_ids=part,
            past_key_values=cache,
            use_cache=True,
            **kwargs,
        )
        cache = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("codes", CODES.values(), ids=CODES)
@pytest.mark.parametrize("make_cache", CACHES.values(), ids=CACHES)
def test_decoding_step_by_step_from_a_cache_equals_decoding_at_once(
    model: OFAForConditionalGeneration, make_cache: Any, codes: list[bool] | None
):
    code_masks = None if codes is None else torch.tensor(codes)
    expected = model(**INPUTS, decoder_input_ids=TARGET, code_masks=code_masks, use_cache=False)
    assert expected.past_key_values is None
    for chunks in ([1] * 7, [3, 1, 3]):
        logits = decode_in_chunks(model, make_cache(model.config), chunks, code_masks=code_masks)
        torch.testing.assert_close(logits, expected.logits, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"encoder_prompt_length": 3, "decoder_prompt_length": 2},
        {"decoder_prompt_length": 2, "decoder_prompt_projection_dim": 5},
        {"encoder_layers": 1, "decoder_layers": 3, "decoder_attention_heads": 2},
        {"disable_entangle": False, "entangle_position_embedding": True},
    ],
    ids=["prefixes", "projected prefix", "unequal stacks", "entangled"],
)
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["the model's own", "DynamicCache", "static OFACache"])
@pytest.mark.parametrize("codes", [CODES["text"], CODES["mixed"]], ids=["text", "mixed"])
def test_cached_decoding_holds_for_every_architecture(
    options: dict[str, Any], attn_implementation: str, name: str, codes: list[bool] | None
):
    model = tiny_model(attn_implementation=attn_implementation, **options)
    code_masks = None if codes is None else torch.tensor(codes)
    expected = model(**INPUTS, decoder_input_ids=TARGET, code_masks=code_masks).logits
    logits = decode_in_chunks(
        model, CACHES[name](model.config.get_text_config(decoder=True)), [2, 1, 4], code_masks=code_masks
    )
    torch.testing.assert_close(logits, expected, **TOLERANCE)


@torch.no_grad()
def test_rows_that_share_an_image_equal_rows_with_copies_of_it(model: OFAForConditionalGeneration):
    encoder_outputs = model.get_encoder()(**INPUTS)
    targets = token_ids([5] * 6, seed=3)
    codes = torch.tensor([True, True, False, True, False, False])
    copies = {name: value.repeat_interleave(2, dim=0) for name, value in INPUTS.items()}
    for code_masks in (None, codes):
        shared = model(encoder_outputs=encoder_outputs, decoder_input_ids=targets, code_masks=code_masks).logits
        copied = model(**copies, decoder_input_ids=targets, code_masks=code_masks).logits
        torch.testing.assert_close(shared, copied, **TOLERANCE)


@torch.no_grad()
def test_a_reset_static_cache_serves_another_image(model: OFAForConditionalGeneration):
    cache = CACHES["static OFACache"](model.config)
    first = decode_in_chunks(model, cache, [1] * 7, code_masks=torch.ones(3, dtype=torch.bool))
    # As many patches as before, elsewhere, and another kind of target: no position may be left over.
    other = model.get_encoder()(input_ids=SOURCE, pixel_values=images(3, 48, 64, seed=9))
    expected = model(encoder_outputs=other, decoder_input_ids=TARGET).logits
    cache.reset()
    logits = model(encoder_outputs=other, decoder_input_ids=TARGET, past_key_values=cache).logits
    torch.testing.assert_close(logits, expected, **TOLERANCE)
    assert (first - expected).abs().max() > 0.1


@pytest.mark.parametrize("codes", CODES.values(), ids=CODES)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generate_gives_the_same_ids_whatever_the_cache(
    model: OFAForConditionalGeneration, codes: list[bool] | None, options: dict[str, Any]
):
    inputs = {**INPUTS, "max_new_tokens": 8, **ENDS, **options}
    if codes is not None:
        inputs["code_masks"] = torch.tensor(codes)
    expected = model.generate(**inputs)
    assert torch.equal(model.generate(**inputs, use_cache=False), expected)
    assert torch.equal(model.generate(**inputs, cache_implementation="static"), expected)
    assert torch.equal(model.generate(**inputs, past_key_values=CACHES["EncoderDecoderCache"](model.config)), expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_generate_gives_the_same_ids_whatever_the_attention(options: dict[str, Any]):
    inputs = {**INPUTS, "max_new_tokens": 8, **ENDS, **options}
    expected = tiny_model(attn_implementation="eager").generate(**inputs)
    assert torch.equal(tiny_model(attn_implementation="sdpa").generate(**inputs), expected)
    with torch.compiler.set_stance("force_eager"):  # the kernel's definition; what it compiles to is a slow test
        assert torch.equal(tiny_model(attn_implementation="flex_attention").generate(**inputs), expected)


# ---------------------------------------------------------------------------------------------- beams and rows


@pytest.mark.parametrize("kind", ["text", "image", "mixed"])
@pytest.mark.parametrize("num_beams", [1, 5])
def test_rows_of_a_batch_equal_rows_alone(model: OFAForConditionalGeneration, kind: str, num_beams: int):
    inputs = dict(INPUTS)
    if kind != "mixed":
        del inputs["patch_masks"]
    if kind == "text":
        del inputs["pixel_values"]
    options = {"num_beams": num_beams, "max_new_tokens": 8, "num_return_sequences": num_beams, **ENDS}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    together = model.generate(**inputs, **options)
    for i in range(3):
        alone = model.generate(**row(inputs, i), **options)
        rows = slice(i * num_beams, (i + 1) * num_beams)
        assert [words(ids) for ids in together.sequences[rows]] == [words(ids) for ids in alone.sequences]
        if num_beams > 1:
            torch.testing.assert_close(together.sequences_scores[rows], alone.sequences_scores, **TOLERANCE)


def test_code_rows_among_text_rows_generate_what_they_generate_alone(model: OFAForConditionalGeneration):
    inputs = {**INPUTS, "code_masks": torch.tensor([True, False, True])}
    together = model.generate(**inputs, num_beams=3, max_new_tokens=8)
    for i in range(3):
        alone = model.generate(**row(inputs, i), num_beams=3, max_new_tokens=8)
        assert words(together[i]) == words(alone[0])


def test_one_beam_is_greedy_search(model: OFAForConditionalGeneration):
    greedy = model.generate(**INPUTS, max_new_tokens=8)
    assert torch.equal(model.generate(**INPUTS, max_new_tokens=8, num_beams=1, do_sample=False), greedy)
    # and takes the most likely token at every step
    logits = model(
        **INPUTS, decoder_input_ids=greedy[:, :-1], decoder_attention_mask=torch.ones_like(greedy[:, 1:])
    ).logits
    assert torch.equal(logits.argmax(-1), greedy[:, 1:])


def model_scores(model: OFAForConditionalGeneration, inputs: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """Sum of the log-probabilities that the model gives to a generated row, its end included, plus `ENDS`."""
    tokens = torch.tensor([words(ids)])
    with torch.no_grad():
        scores = model(**inputs, decoder_input_ids=tokens[:, :-1]).logits.log_softmax(-1)
    scores[..., 2] += ENDS["sequence_bias"][0][1]
    return scores[0].gather(-1, tokens[0, 1:, None]).sum()


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_n_best_are_distinct_sorted_and_scored_by_the_model_even_where_the_end_is_forced(
    model: OFAForConditionalGeneration, length_penalty: float
):
    out = model.generate(
        **INPUTS,
        **ENDS,
        num_beams=6,
        num_return_sequences=6,
        max_new_tokens=4,
        forced_eos_token_id=2,
        length_penalty=length_penalty,
        suppress_tokens=[1],
        return_dict_in_generate=True,
        output_scores=True,
    )
    lengths = set()
    for i in range(3):
        rows, scores = out.sequences[6 * i : 6 * i + 6], out.sequences_scores[6 * i : 6 * i + 6]
        assert len({tuple(ids.tolist()) for ids in rows}) == 6
        assert (scores.diff() <= 0).all()
        for ids, score in zip(rows, scores, strict=True):
            tokens = words(ids)
            assert tokens[0] == 0 and tokens[-1] == 2
            lengths.add(len(tokens))
            expected = model_scores(model, row(INPUTS, i), ids) / (len(tokens) - 1) ** length_penalty
            torch.testing.assert_close(score, expected, **TOLERANCE)
    assert len(lengths) > 1 and max(lengths) == 5  # some ended by themselves, some had to


def plain_beam_search(
    model: OFAForConditionalGeneration, inputs: dict[str, Any], num_beams: int, max_length: int
) -> list[tuple[list[int], float]]:
    """Beam search as fairseq does it, without cache, batch or tensors: hypotheses and scores, best first."""
    beams, finished = [([0], 0.0)], []
    for step in range(max_length):
        candidates = []
        for tokens, score in beams:
            scores = model(**inputs, decoder_input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
            scores[2] += ENDS["sequence_bias"][0][1]
            allowed = [2] if step == max_length - 1 else range(VOCAB_SIZE)
            candidates += [([*tokens, token], score + scores[token].item()) for token in allowed if token != 1]
        candidates = sorted(candidates, key=lambda c: -c[1])[: 2 * num_beams]
        # Those that end among the first `num_beams` are hypotheses; the search ends with `num_beams` of them.
        ended = [c for c in candidates[:num_beams] if c[0][-1] == 2][: num_beams - len(finished)]
        finished += [(tokens, score / (step + 1)) for tokens, score in ended]
        if len(finished) == num_beams:
            break
        beams = [c for c in candidates if c[0][-1] != 2][:num_beams]
    return sorted(finished, key=lambda f: -f[1])


@torch.no_grad()
@pytest.mark.parametrize("num_beams", [2, 5])
def test_beam_search_gives_what_a_plain_implementation_of_fairseqs_gives(
    model: OFAForConditionalGeneration, num_beams: int
):
    out = model.generate(
        **INPUTS,
        **ENDS,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=6,
        early_stopping=True,
        forced_eos_token_id=2,
        suppress_tokens=[1],
        return_dict_in_generate=True,
        output_scores=True,
    )
    for i in range(3):
        expected = plain_beam_search(model, row(INPUTS, i), num_beams, max_length=6)
        rows = slice(i * num_beams, (i + 1) * num_beams)
        assert [words(ids) for ids in out.sequences[rows]] == [tokens for tokens, _ in expected]
        torch.testing.assert_close(out.sequences_scores[rows], torch.tensor([s for _, s in expected]), **TOLERANCE)


def test_searching_longer_never_finds_worse(model: OFAForConditionalGeneration):
    scores, steps = {}, {}
    for early_stopping in (True, False, "never"):
        with calls(model.model.decoder) as seen:
            out = model.generate(
                **INPUTS,
                **ENDS,
                num_beams=3,
                max_new_tokens=20,
                early_stopping=early_stopping,
                length_penalty=1.5,
                forced_eos_token_id=2,
                return_dict_in_generate=True,
                output_scores=True,
            )
        scores[early_stopping], steps[early_stopping] = out.sequences_scores, len(seen)
    assert (scores["never"] >= scores[False] - 1e-5).all() and (scores[False] >= scores[True] - 1e-5).all()
    assert steps[True] < steps[False] <= steps["never"]
    assert (scores["never"] > scores[False] + 1e-3).any() and (scores[False] > scores[True] + 1e-3).any()


def test_temperature_divides_the_logits_of_beam_search(model: OFAForConditionalGeneration):
    options = {"num_beams": 3, "max_new_tokens": 5, "return_dict_in_generate": True, "output_scores": True}
    out = model.generate(**INPUTS, **options, temperature=0.5, length_penalty=0.0, suppress_tokens=[1])
    for i, ids in enumerate(out.sequences):
        tokens = torch.tensor([words(ids)])
        with torch.no_grad():
            logits = model(**row(INPUTS, i), decoder_input_ids=tokens[:, :-1]).logits[0]
        expected = (logits / 0.5).log_softmax(-1).gather(-1, tokens[0, 1:, None]).sum()
        torch.testing.assert_close(out.sequences_scores[i], expected, **TOLERANCE)


def test_samples_of_one_image_equal_samples_of_copies_of_it(model: OFAForConditionalGeneration):
    options = {"do_sample": True, "max_new_tokens": 8, **ENDS}
    torch.manual_seed(0)
    ids = model.generate(**INPUTS, **options, num_return_sequences=4)
    copies = {name: value.repeat_interleave(4, dim=0) for name, value in INPUTS.items()}
    torch.manual_seed(0)
    assert torch.equal(model.generate(**copies, **options), ids)
    assert len({tuple(sample.tolist()) for sample in ids}) > 6


# ---------------------------------------------------------------------------------------- what is computed once


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4},
        {"num_beams": 4, "num_return_sequences": 3},
        {"do_sample": True, "num_return_sequences": 4},
        {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
        {"num_beams": 4, "use_cache": False},
        {"num_beams": 4, "cache_implementation": "static"},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()),
)
def test_an_image_is_encoded_once_and_never_copied(model: OFAForConditionalGeneration, options: dict[str, Any]):
    attention = model.model.decoder.layers[1].cross_attn
    with (
        calls(model.model.encoder) as encoder,
        calls(model.model.encoder.embed_images) as resnet,
        calls(attention) as cross,
        calls(attention.k_proj, attention.v_proj) as projections,
    ):
        model.generate(**INPUTS, max_new_tokens=5, **options)
    assert len(encoder) == len(resnet) == 1
    assert resnet[0]["args"][0].shape[0] == 3
    assert len(cross) == 5
    assert all(call["key_value_states"].shape[0] == 3 for call in cross)
    assert all(call["output"][0].shape[0] > 3 for call in cross)
    assert all(call["output"].shape[0] == 3 for call in projections)
    if options.get("use_cache", True):
        assert len(projections) == 2  # a key and a value, in the first of five steps
        assert all(call["past_key_values"].cross_attention_cache.layers[1].keys is not None for call in cross)


def test_the_cross_attention_cache_has_a_row_an_image_while_beams_are_searched(model: OFAForConditionalGeneration):
    rows: set[tuple[int, int]] = set()

    def watch(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cache = seen[-1]["past_key_values"]
        assert cache.position_keys["cross"].shape[0] == 1
        self_rows = cache.self_attention_cache.layers[0].keys.shape[0]
        rows.add((self_rows, cache.cross_attention_cache.layers[0].values.shape[0]))
        return scores

    with calls(model.model.decoder) as seen:
        model.generate(**INPUTS, num_beams=5, max_new_tokens=4, logits_processor=[watch])
    assert rows == {(15, 3)}


def test_encoder_outputs_may_be_used_again(model: OFAForConditionalGeneration):
    options = {"num_beams": 3, "max_new_tokens": 6}
    expected = model.generate(**INPUTS, **options)
    with torch.no_grad():
        encoder_outputs = model.get_encoder()(**INPUTS)
    before = encoder_outputs.last_hidden_state.clone()
    with calls(model.model.encoder) as seen:
        for _ in range(2):
            ids = model.generate(encoder_outputs=encoder_outputs, **options)
            assert torch.equal(ids, expected)
    assert not seen and torch.equal(encoder_outputs.last_hidden_state, before)
    assert torch.equal(model.generate(input_ids=SOURCE, encoder_outputs=encoder_outputs, **options), expected)


def test_patch_images_still_means_pixel_values_and_warns(model: OFAForConditionalGeneration):
    expected = model.generate(**INPUTS, max_new_tokens=5)
    inputs = dict(INPUTS)
    with pytest.warns(FutureWarning, match="`patch_images`.*`pixel_values`"):
        ids = model.generate(patch_images=inputs.pop("pixel_values"), **inputs, max_new_tokens=5)
    assert torch.equal(ids, expected)


# ----------------------------------------------------------------------------------------------- other roads in


def test_embeddings_of_the_source_generate_what_its_tokens_generate(model: OFAForConditionalGeneration):
    options = {"num_beams": 3, "max_new_tokens": 6}
    expected = model.generate(**INPUTS, **options)
    inputs = dict(INPUTS)
    embeds = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
    ids = model.generate(inputs_embeds=embeds, attention_mask=SOURCE.ne(1).long(), **inputs, **options)
    assert torch.equal(ids, expected)


def test_a_given_beginning_of_the_target_is_continued(model: OFAForConditionalGeneration):
    whole = model.generate(**INPUTS, max_new_tokens=8)
    beginning = model.generate(**INPUTS, max_new_tokens=8, decoder_input_ids=whole[:, :4])
    assert torch.equal(beginning[:, :9], whole)
    prefix = torch.tensor([[0, 60, 61]] * 3)
    ids = model.generate(**INPUTS, decoder_input_ids=prefix, num_beams=3, max_new_tokens=4)
    assert torch.equal(ids[:, :3], prefix) and ids.shape[1] == 7


def test_a_trie_bounds_what_is_generated(model: OFAForConditionalGeneration):
    answers = [[0, 70, 71, 2], [0, 70, 72, 73, 2], [0, 80, 2]]

    def allowed(batch_id: int, ids: torch.Tensor) -> list[int]:
        prefix = ids.tolist()
        return [a[len(prefix)] for a in answers if a[: len(prefix)] == prefix and a != prefix] or [2]

    ids = model.generate(
        **INPUTS, num_beams=3, num_return_sequences=3, max_new_tokens=6, prefix_allowed_tokens_fn=allowed
    )
    assert {tuple(words(row)) for row in ids} == {tuple(a) for a in answers}


def test_lengths_and_repetitions_are_bounded_as_asked(model: OFAForConditionalGeneration):
    ids = model.generate(**INPUTS, **ENDS, num_beams=3, min_new_tokens=6, max_new_tokens=9, no_repeat_ngram_size=2)
    for sequence in ids:
        tokens = words(sequence)
        assert 7 <= len(tokens) <= 10
        pairs = list(zip(tokens, tokens[1:], strict=False))
        assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize(
    "extra", [{"prompt_lookup_num_tokens": 3}, {"assistant": True}], ids=["prompt lookup", "assistant"]
)
def test_assisted_decoding_gives_what_greedy_decoding_gives(model: OFAForConditionalGeneration, extra: dict[str, Any]):
    options = dict(extra)
    if options.pop("assistant", None):
        options["assistant_model"] = tiny_model(seed=1)
    inputs = row(INPUTS, 0)
    expected = model.generate(**inputs, max_new_tokens=10)
    assert torch.equal(model.generate(**inputs, max_new_tokens=10, **options), expected)


def test_attentions_of_beams_have_a_row_a_beam():
    model = tiny_model(attn_implementation="eager")
    out = model.generate(**INPUTS, num_beams=4, max_new_tokens=3, return_dict_in_generate=True, output_attentions=True)
    source = 12 + SOURCE.shape[1]
    assert [tuple(a.shape) for a in out.encoder_attentions] == [(3, 4, source, source)] * 2
    for step, (decoder, cross) in enumerate(zip(out.decoder_attentions, out.cross_attentions, strict=True), start=1):
        assert [tuple(a.shape) for a in decoder] == [(12, 4, 1, step)] * 2
        assert [tuple(a.shape) for a in cross] == [(12, 4, 1, source)] * 2
    # Each beam's attention is the one that its tokens have when they are read at once.
    weights = torch.cat([step[0][:1] for step in out.cross_attentions], dim=2)
    assert weights.shape == (1, 4, 3, source)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 3))


# ----------------------------------------------------------------------------------------------- compilation


def static_cache(model: OFAForConditionalGeneration, source_length: int) -> OFACache:
    return OFACache(
        StaticCache(config=model.config, max_cache_len=12),
        StaticCache(config=model.config, max_cache_len=source_length),
    )


def compiled_steps_equal_eager_ones(backend: str, **kwargs: Any) -> None:
    torch._dynamo.reset()
    model = tiny_model(**kwargs)
    compiled = torch.compile(model, backend=backend, fullgraph=True)  # raises at a graph break
    encoder_outputs = model.get_encoder()(**INPUTS)
    caches = [static_cache(model, encoder_outputs.last_hidden_state.shape[1]) for _ in range(2)]
    targets = token_ids([7] * 6, seed=1)  # two rows an image, as in beam search
    for step, token in enumerate(targets.split(1, dim=1)):
        inputs = {"encoder_outputs": encoder_outputs, "decoder_input_ids": token}
        expected = model(**inputs, past_key_values=caches[0]).logits
        with torch._dynamo.config.patch(error_on_recompile=step > 1):  # one graph fills the cache, one reads it
            logits = compiled(**inputs, past_key_values=caches[1]).logits
        torch.testing.assert_close(logits, expected, **TOLERANCE)
    torch._dynamo.reset()


@torch.no_grad()
def test_the_decoding_step_compiles_into_one_graph_that_serves_every_step():
    compiled_steps_equal_eager_ones("eager", encoder_layers=1, decoder_layers=1)


@pytest.mark.slow
@torch.no_grad()
def test_the_decoding_step_compiled_to_machine_code_gives_the_same():
    compiled_steps_equal_eager_ones("inductor")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("options", [{}, {"code_masks": HAS_IMAGE}], ids=["text", "codes"])
def test_generate_compiled_without_graph_breaks_gives_the_same(
    model: OFAForConditionalGeneration, backend: str, options: dict[str, Any]
):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    expected = model.generate(**INPUTS, max_new_tokens=6, **options)
    compile_config = CompileConfig(backend=backend, fullgraph=True, mode=None)
    compile_config._compile_all_devices = True  # else on accelerators only
    ids = model.generate(
        **INPUTS, max_new_tokens=6, cache_implementation="static", compile_config=compile_config, **options
    )
    assert torch.equal(ids, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()


# -------------------------------------------------------------------------------------------------- bad input


def test_more_new_tokens_than_positions_are_refused_when_they_run_out(model: OFAForConditionalGeneration):
    with pytest.raises(ValueError, match="The target has 67 tokens.*66 decoder positions.*max_new_tokens"):
        model.generate(**INPUTS, max_new_tokens=80, suppress_tokens=[2])
    assert model.generate(**INPUTS, max_new_tokens=66, suppress_tokens=[2]).shape == (3, 67)
