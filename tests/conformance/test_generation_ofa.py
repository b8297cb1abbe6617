"""What the library asks of every model that generates; its own tests of it are not in the source distribution."""

import copy
import inspect
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny import images, tiny_model, token_ids
from transformers import (
    CompileConfig,
    DynamicCache,
    EncoderDecoderCache,
    GenerationMixin,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import GenerateBeamEncoderDecoderOutput, GenerateEncoderDecoderOutput
from transformers.generation.streamers import BaseStreamer

from modeling_ofa import OFAForConditionalGeneration


BATCH = 2
STEPS = 4
DICT = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
}
BEAMS = {"num_beams": 3, "num_return_sequences": 2}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sample": {"do_sample": True, "top_k": 10, "num_return_sequences": 2},
    "beam": {"do_sample": False, **BEAMS},
    "beam_sample": {"do_sample": True, "top_k": 10, **BEAMS},
}
# Two kinds of input: a text alone, or after an image.
kinds = pytest.mark.parametrize("kind", ["text", "image"])
modes = pytest.mark.parametrize("mode", MODES)


def endless_model(attn_implementation: str = "eager", **kwargs: Any) -> OFAForConditionalGeneration:
    """A tiny model that never ends a sequence, so that lengths are known beforehand."""
    model = tiny_model(attn_implementation=attn_implementation, **kwargs)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.generation_config.max_new_tokens = STEPS
    return model


def encoder_inputs(kind: str, batch_size: int = BATCH, seed: int = 2) -> dict[str, torch.Tensor]:
    """Texts of different lengths with their mask, and pixels of 64 x 48, which are 12 patches."""
    input_ids = token_ids([7, 5, 6, 4][:batch_size], width=7, seed=seed)
    inputs = {"input_ids": input_ids, "attention_mask": input_ids.ne(1).long()}
    if kind == "image":
        inputs["pixel_values"] = images(batch_size, seed=seed)
    return inputs


def encoder_length(kind: str) -> int:
    return 7 + (12 if kind == "image" else 0)


def generate(model: OFAForConditionalGeneration, inputs: dict[str, torch.Tensor], **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return model.generate(**inputs, **kwargs)


def assert_same_generation(first: Any, second: Any):
    """Same tokens, and scores equal but for rounding."""
    assert first.sequences.tolist() == second.sequences.tolist()
    for one, other in zip(first.scores, second.scores, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def assert_layers_have_shapes(layers: tuple[torch.Tensor, ...], shape: tuple[int, ...]):
    assert [tuple(layer.shape) for layer in layers] == [shape] * 2


def assert_dict_output_is_complete(
    output: Any, model: OFAForConditionalGeneration, kind: str, mode: str, cached: bool
):
    """Everything that `generate` can return, in the shapes of an encoder-decoder model of two layers."""
    kwargs = MODES[mode]
    config = model.config
    heads, width, head_dim = config.decoder_attention_heads, config.d_model, config.d_model // 4
    length = encoder_length(kind)
    rows = BATCH * kwargs.get("num_beams", kwargs.get("num_return_sequences", 1))

    expected = GenerateBeamEncoderDecoderOutput if "num_beams" in kwargs else GenerateEncoderDecoderOutput
    assert isinstance(output, expected)
    assert output.sequences.shape == (BATCH * kwargs.get("num_return_sequences", 1), 1 + STEPS)
    assert [tuple(step.shape) for step in output.scores] == [(rows, config.vocab_size)] * STEPS
    assert [tuple(step.shape) for step in output.logits] == [(rows, config.vocab_size)] * STEPS
    # The encoder runs once an image, whatever the number of beams.
    assert_layers_have_shapes(output.encoder_attentions, (BATCH, heads, length, length))
    assert [tuple(state.shape) for state in output.encoder_hidden_states] == [(BATCH, length, width)] * 3
    for step in range(STEPS):
        queries = 1 if cached else step + 1
        assert_layers_have_shapes(output.decoder_attentions[step], (rows, heads, queries, step + 1))
        assert_layers_have_shapes(output.cross_attentions[step], (rows, heads, queries, length))
        states = output.decoder_hidden_states[step]
        assert [tuple(state.shape) for state in states] == [(rows, queries, width)] * 3
    if not cached:
        assert output.past_key_values is None
        return
    cache = output.past_key_values
    assert isinstance(cache, EncoderDecoderCache) and len(cache) == 2
    for part, keys in ((cache.self_attention_cache, STEPS), (cache.cross_attention_cache, length)):
        assert len(part) == 2
        for layer in part.layers:
            assert layer.keys.shape == layer.values.shape == (rows, heads, keys, head_dim)


def test_the_model_with_a_head_generates_and_the_others_do_not():
    assert OFAForConditionalGeneration.can_generate()
    assert issubclass(OFAForConditionalGeneration, GenerationMixin)
    model = tiny_model()
    assert model.generation_config is not None and model.model.can_generate() is False


@kinds
@modes
@pytest.mark.parametrize("use_cache", [True, False])
def test_dict_outputs_have_the_shapes_of_an_encoder_decoder_model(kind: str, mode: str, use_cache: bool):
    model = endless_model()
    output = generate(model, encoder_inputs(kind), use_cache=use_cache, **MODES[mode], **DICT)
    assert_dict_output_is_complete(output, model, kind, mode, use_cache)


@kinds
@modes
def test_tensor_output_is_the_sequences_of_the_dict_output(kind: str, mode: str):
    model, inputs = endless_model(), encoder_inputs(kind)
    output = generate(model, inputs, **MODES[mode], **DICT)
    assert generate(model, inputs, **MODES[mode]).tolist() == output.sequences.tolist()


@kinds
@modes
def test_the_cache_changes_nothing(kind: str, mode: str):
    model, inputs = endless_model("sdpa"), encoder_inputs(kind)
    output = generate(model, inputs, use_cache=True, **MODES[mode], **DICT | {"output_attentions": False})
    uncached = generate(model, inputs, use_cache=False, **MODES[mode], **DICT | {"output_attentions": False})
    assert_same_generation(output, uncached)


@kinds
@modes
def test_a_static_cache_changes_nothing(kind: str, mode: str):
    model, inputs = endless_model("sdpa"), encoder_inputs(kind)
    kwargs = {**MODES[mode], "return_dict_in_generate": True, "output_scores": True, "disable_compile": True}
    output = generate(model, inputs, **kwargs)
    static = generate(model, inputs, cache_implementation="static", **kwargs)
    assert isinstance(output.past_key_values.self_attention_cache, DynamicCache)
    assert isinstance(static.past_key_values.self_attention_cache, StaticCache)
    assert static.past_key_values.is_compileable
    assert_same_generation(output, static)
    # A second call with the same static length, on other inputs.
    inputs = encoder_inputs(kind, seed=3)
    assert_same_generation(
        generate(model, inputs, **kwargs), generate(model, inputs, cache_implementation="static", **kwargs)
    )


@kinds
@modes
def test_sdpa_generates_what_eager_generates(kind: str, mode: str):
    inputs = encoder_inputs(kind)
    kwargs = {**MODES[mode], "return_dict_in_generate": True, "output_scores": True}
    assert_same_generation(
        generate(endless_model("sdpa"), inputs, **kwargs), generate(endless_model("eager"), inputs, **kwargs)
    )


@kinds
def test_a_row_alone_generates_what_it_generates_in_a_padded_batch(kind: str):
    model, inputs = endless_model(), encoder_inputs(kind)
    together = generate(model, inputs, num_beams=3)
    for i, length in enumerate([7, 5]):
        row = {name: value[i : i + 1] for name, value in inputs.items()}
        row["input_ids"], row["attention_mask"] = row["input_ids"][:, :length], row["attention_mask"][:, :length]
        assert generate(model, row, num_beams=3).tolist() == together[i : i + 1].tolist()


@kinds
def test_prompt_lookup_gives_what_greedy_search_gives(kind: str):
    model, inputs = endless_model(), encoder_inputs(kind, batch_size=1)
    # A prompt that repeats itself, so that there is something to look up.
    inputs["decoder_input_ids"] = torch.tensor([[0, 8, 9, 10, 8, 9, 10, 8]])
    kwargs = {**DICT, "max_new_tokens": 10}
    greedy = generate(model, inputs, **kwargs)
    lookup = generate(model, inputs, prompt_lookup_num_tokens=3, **kwargs)
    assert_same_generation(greedy, lookup)
    assert [tuple(a[0].shape) for a in lookup.decoder_attentions] == [
        tuple(a[0].shape) for a in greedy.decoder_attentions
    ]


def test_prompt_lookup_stops_at_the_end_of_the_sentence():
    model = endless_model()
    inputs = encoder_inputs("text", batch_size=1)
    tokens = generate(model, inputs, max_new_tokens=8)[0].tolist()
    end = tokens[4]
    stopped = generate(model, inputs, max_new_tokens=8, eos_token_id=end, prompt_lookup_num_tokens=3)[0].tolist()
    assert stopped == tokens[: tokens.index(end, 1) + 1]


@kinds
@pytest.mark.parametrize("assistant", ["same", "random"])
def test_assisted_decoding_gives_what_greedy_search_gives(kind: str, assistant: str):
    model, inputs = endless_model(), encoder_inputs(kind, batch_size=1)
    helper = model if assistant == "same" else endless_model(seed=1)
    helper.generation_config.num_assistant_tokens = 2
    helper.generation_config.num_assistant_tokens_schedule = "constant"
    kwargs = {**DICT, "max_new_tokens": 8}
    greedy = generate(model, inputs, **kwargs)
    assisted = generate(model, inputs, assistant_model=helper, **kwargs)
    assert_same_generation(greedy, assisted)
    cache = assisted.past_key_values.self_attention_cache
    assert cache.get_seq_length() == assisted.sequences.shape[1] - 1
    for name in ("decoder_attentions", "cross_attentions", "decoder_hidden_states"):
        shapes = [[tuple(layer.shape) for layer in step] for step in getattr(assisted, name)]
        assert shapes == [[tuple(layer.shape) for layer in step] for step in getattr(greedy, name)]


def test_an_assistant_sees_the_image_too():
    model, inputs = endless_model(), encoder_inputs("image", batch_size=1)
    assistant = copy.deepcopy(model)
    assistant.generation_config.num_assistant_tokens = 3
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    with patch.object(model, "forward", wraps=model.forward) as forward:
        generate(model, inputs, assistant_model=assistant, max_new_tokens=8)
    # All drafts of an equal model are accepted, so that each step yields three drafted tokens and one of its own.
    assert forward.call_count == 2


def test_assisted_sampling_gives_complete_outputs():
    model, inputs = endless_model(), encoder_inputs("image", batch_size=1)
    output = generate(model, inputs, assistant_model=endless_model(seed=1), do_sample=True, top_k=10, **DICT)
    assert output.sequences.shape == (1, 1 + STEPS)
    assert len(output.scores) == len(output.decoder_attentions) == STEPS


@kinds
@pytest.mark.parametrize("samples", [1, 2])
def test_generation_goes_on_from_the_cache_of_an_earlier_call(kind: str, samples: int):
    model, inputs = endless_model("sdpa"), encoder_inputs(kind)
    kwargs = {"return_dict_in_generate": True, "output_scores": True}
    if samples > 1:
        # Rows that differ although they share an image: each goes on from its own cache.
        start = generate(model, inputs, do_sample=True, num_return_sequences=samples, max_new_tokens=3, **kwargs)
    else:
        start = generate(model, inputs, max_new_tokens=3, **kwargs)
    repeated = {name: value.repeat_interleave(samples, dim=0) for name, value in inputs.items()}
    prompt = {
        **repeated,
        "decoder_input_ids": start.sequences,
        "decoder_attention_mask": torch.ones_like(start.sequences),  # says that these are all tokens, not the new ones
    }
    whole = generate(model, prompt, max_new_tokens=2, **kwargs)
    resumed = generate(model, prompt, past_key_values=start.past_key_values, max_new_tokens=2, **kwargs)
    assert_same_generation(whole, resumed)
    for part in ("self_attention_cache", "cross_attention_cache"):
        for one, other in zip(
            getattr(whole.past_key_values, part).layers, getattr(resumed.past_key_values, part).layers, strict=True
        ):
            torch.testing.assert_close(one.keys, other.keys, rtol=1e-4, atol=1e-4)


@kinds
def test_generating_in_two_calls_gives_what_one_call_gives(kind: str):
    model, inputs = endless_model(), encoder_inputs(kind)
    whole = generate(model, inputs, max_new_tokens=6)
    start = generate(model, inputs, max_new_tokens=3)
    assert generate(model, inputs, decoder_input_ids=start, max_new_tokens=3).tolist() == whole.tolist()


@kinds
@pytest.mark.parametrize("layers", [(2, 2), (1, 3), (3, 1)])
def test_forward_returns_a_cache_of_the_usual_shapes(kind: str, layers: tuple[int, int]):
    encoder_layers, decoder_layers = layers
    model = tiny_model(encoder_layers=encoder_layers, decoder_layers=decoder_layers, decoder_attention_heads=2)
    inputs = encoder_inputs(kind)
    with torch.no_grad():
        cache = model(**inputs, decoder_input_ids=token_ids([5, 5]), use_cache=True).past_key_values
    assert isinstance(cache, EncoderDecoderCache)
    assert len(cache) == len(cache.cross_attention_cache) == decoder_layers
    for layer in cache.self_attention_cache.layers:
        assert layer.keys.shape == layer.values.shape == (BATCH, 2, 5, 16)
    for layer in cache.cross_attention_cache.layers:
        assert layer.keys.shape == layer.values.shape == (BATCH, 2, encoder_length(kind), 16)
    # `generate` sizes its caches from the configuration alone.
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    output = generate(
        model, inputs, max_new_tokens=3, num_beams=2, cache_implementation="static", disable_compile=True
    )
    assert output.tolist() == generate(model, inputs, max_new_tokens=3, num_beams=2).tolist()


@kinds
@modes
def test_input_embeddings_generate_what_their_tokens_generate(kind: str, mode: str):
    model, inputs = endless_model(), encoder_inputs(kind)
    expected = generate(model, inputs, **MODES[mode])
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert generate(model, inputs, **MODES[mode]).tolist() == expected.tolist()


@kinds
@modes
def test_encoder_outputs_stand_for_the_inputs_of_the_encoder(kind: str, mode: str):
    model, inputs = endless_model(), encoder_inputs(kind)
    expected = generate(model, inputs, **MODES[mode])
    with torch.no_grad():
        encoder_outputs = model.get_encoder()(**inputs)
    with patch.object(model.model.encoder, "forward", side_effect=AssertionError("the encoder ran again")):
        output = generate(model, {}, encoder_outputs=encoder_outputs, **MODES[mode])
    assert output.tolist() == expected.tolist()


def test_generation_without_any_input_starts_from_the_first_token():
    model = endless_model()
    output = model.generate()
    assert output.shape == (1, 1 + STEPS) and output[0, 0] == model.config.decoder_start_token_id
    assert output.tolist() == model.generate(input_ids=torch.tensor([[model.config.bos_token_id]])).tolist()


@modes
def test_logits_are_computed_for_the_last_position_unless_asked_otherwise(mode: str):
    model, inputs = endless_model(), encoder_inputs("image")
    inputs["decoder_input_ids"] = token_ids([3, 3])
    lengths = []
    hook = model.lm_head.register_forward_hook(lambda module, args, logits: lengths.append(logits.shape[1]))
    expected = generate(model, inputs, **MODES[mode])
    assert lengths == [1] * STEPS
    lengths.clear()
    # All of them, as before `logits_to_keep` was there.
    assert generate(model, inputs, logits_to_keep=0, **MODES[mode]).tolist() == expected.tolist()
    assert lengths[0] == 3
    hook.remove()


def test_forward_keeps_the_logits_that_it_is_asked_for():
    assert "logits_to_keep" in inspect.signature(OFAForConditionalGeneration.forward).parameters
    model, inputs = tiny_model(), encoder_inputs("image")
    inputs["decoder_input_ids"] = token_ids([5, 4])
    with torch.no_grad():
        logits = model(**inputs).logits
        torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, logits[:, -2:])
        torch.testing.assert_close(model(**inputs, logits_to_keep=torch.tensor([1, 3])).logits, logits[:, [1, 3]])


def test_own_stopping_criteria_end_the_generation():
    class Stop(StoppingCriteria):
        def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 4)

    model = endless_model()
    for mode in MODES.values():
        output = generate(model, encoder_inputs("image"), stopping_criteria=StoppingCriteriaList([Stop()]), **mode)
        assert output.shape[1] == 4


def test_finished_rows_are_padded_and_the_others_go_on():
    model, inputs = endless_model(), encoder_inputs("image")
    expected = generate(model, inputs, max_new_tokens=8)
    end = next(token for token in expected[0, 1:].tolist() if token not in expected[1])
    output = generate(model, inputs, max_new_tokens=8, eos_token_id=end)
    first = expected[0].tolist().index(end, 1) + 1
    assert output[0].tolist() == expected[0, :first].tolist() + [model.config.pad_token_id] * (9 - first)
    assert output[1].tolist() == expected[1].tolist()


@pytest.mark.parametrize("mode", ["greedy", "beam"])
def test_a_prefix_function_decides_what_may_follow(mode: str):
    model, inputs = endless_model(), encoder_inputs("image")
    allowed = {0: [10, 11, 12, 13], 1: [20, 21, 22, 23]}
    output = generate(model, inputs, prefix_allowed_tokens_fn=lambda row, ids: allowed[row], **MODES[mode])
    per_image = len(output) // BATCH
    for i, row in enumerate(output[:, 1:].tolist()):
        assert set(row) <= set(allowed[i // per_image])


def test_a_streamer_receives_each_token_once():
    class Streamer(BaseStreamer):
        def __init__(self):
            self.tokens: list[int] = []
            self.ended = False

        def put(self, value: torch.Tensor):
            self.tokens += value.reshape(-1).tolist()

        def end(self):
            self.ended = True

    model, streamer = endless_model(), Streamer()
    output = generate(model, encoder_inputs("image", batch_size=1), streamer=streamer)
    assert streamer.ended and streamer.tokens == output[0].tolist()


def test_model_inputs_carry_on_what_the_caller_passed():
    model = tiny_model()
    model_inputs = model.prepare_inputs_for_generation(
        token_ids([3, 3]), output_attentions=True, use_cache=False, code_masks=torch.tensor([True, False])
    )
    assert model_inputs["output_attentions"] is True and model_inputs["use_cache"] is False
    assert model_inputs["code_masks"].tolist() == [True, False]
    assert model_inputs["decoder_input_ids"].shape == (2, 3)


def test_image_codes_and_words_are_generated_in_one_batch():
    model, inputs = endless_model(), encoder_inputs("image")
    code_masks = torch.tensor([True, False])
    together = generate(model, inputs, code_masks=code_masks, num_beams=3)
    for i in range(BATCH):
        row = {name: value[i : i + 1] for name, value in inputs.items()}
        assert generate(model, row, code_masks=code_masks[i : i + 1], num_beams=3).tolist() == [together[i].tolist()]


def test_the_decoder_starts_where_it_is_told():
    model = endless_model()
    for mode in MODES.values():
        output = generate(model, encoder_inputs("image"), decoder_start_token_id=17, **mode)
        assert output[:, 0].unique().tolist() == [17]


@pytest.mark.parametrize("samples", [1, 3])
def test_greedy_search_is_the_beam_search_of_one_beam(samples: int):
    model, inputs = endless_model(), encoder_inputs("image")
    greedy = generate(model, inputs)
    assert generate(model, inputs, num_beams=1).tolist() == greedy.tolist()
    # Beam search finds hypotheses at least as likely.
    output = generate(model, inputs, num_beams=4, num_return_sequences=samples, length_penalty=0.0, **DICT)
    scores = output.sequences_scores.reshape(BATCH, samples)
    likelihoods = log_likelihood(model, inputs, greedy)
    assert (scores[:, 0] >= likelihoods - 1e-4).all()
    assert (scores.diff(dim=1) <= 0).all()
    repeated = {name: value.repeat_interleave(samples, dim=0) for name, value in inputs.items()}
    torch.testing.assert_close(
        scores.flatten(), log_likelihood(model, repeated, output.sequences), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def log_likelihood(
    model: OFAForConditionalGeneration, inputs: dict[str, torch.Tensor], sequences: torch.Tensor
) -> torch.Tensor:
    """Sum of the log-probabilities of `sequences`, from one forward pass without a cache."""
    logits = model(**inputs, decoder_input_ids=sequences[:, :-1], use_cache=False).logits
    return logits.log_softmax(-1).gather(-1, sequences[:, 1:, None]).squeeze(-1).sum(-1)


@pytest.mark.slow
@kinds
@pytest.mark.parametrize("mode", ["greedy", "sample"])
def test_the_decoding_step_compiles_once_without_graph_breaks(
    kind: str, mode: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
):
    torch.compiler.reset()
    model = endless_model("sdpa")
    compile_config = CompileConfig(fullgraph=True, dynamic=False)
    compile_config._compile_all_devices = True  # the library compiles on accelerators only, by default
    kwargs = {**MODES[mode], "return_dict_in_generate": True, "output_scores": True, "compile_config": compile_config}
    batches = [encoder_inputs(kind), encoder_inputs(kind, seed=3)]
    with torch.compiler.set_stance("force_eager"):
        expected = [generate(model, inputs, **kwargs) for inputs in batches]
    assert not hasattr(model, "_compiled_call")
    torch._logging.set_logs(recompiles_verbose=True)
    try:
        compiled = [generate(model, inputs, cache_implementation="static", **kwargs) for inputs in batches]
    finally:
        torch._logging.set_logs()
    assert hasattr(model, "_compiled_call")
    assert "Recompiling" not in caplog.text + capfd.readouterr().err
    for one, other in zip(expected, compiled, strict=True):
        assert one.sequences.tolist() == other.sequences.tolist()
        for a, b in zip(one.scores, other.scores, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["greedy", "sample"])  # beam search compiles nothing
def test_the_compiled_decoding_step_gives_every_output(mode: str):
    torch.compiler.reset()
    model, inputs = endless_model(), encoder_inputs("image")
    expected = generate(model, inputs, **MODES[mode], **DICT)
    compile_config = CompileConfig()
    compile_config._compile_all_devices = True
    model.generation_config.compile_config = compile_config
    output = generate(model, inputs, cache_implementation="static", **MODES[mode], **DICT)
    assert hasattr(model, "_compiled_call")
    assert output.sequences.tolist() == expected.sequences.tolist()
    for step, (attentions, whole) in enumerate(
        zip(expected.decoder_attentions, output.decoder_attentions, strict=True)
    ):
        for layer, padded in zip(attentions, whole, strict=True):  # a static cache has room for all tokens
            assert padded.shape[-1] == STEPS
            torch.testing.assert_close(padded[..., : step + 1], layer, rtol=1e-3, atol=1e-4)
            assert padded[..., step + 1 :].count_nonzero() == 0
    for name in ("cross_attentions", "decoder_hidden_states", "scores", "logits"):
        torch.testing.assert_close(getattr(output, name), getattr(expected, name), rtol=1e-3, atol=1e-3)


def count_calls(model: OFAForConditionalGeneration, run: Callable[[], Any]) -> tuple[list[int], list[int]]:
    """Batch sizes with which `run` calls the image backbone and a cross-attention's projection of keys."""
    images_seen: list[int] = []
    keys_seen: list[int] = []
    hooks = [
        model.model.encoder.embed_images.register_forward_hook(lambda m, args, out: images_seen.append(len(out))),
        model.model.decoder.layers[0].cross_attn.k_proj.register_forward_hook(
            lambda m, args, out: keys_seen.append(len(out))
        ),
    ]
    run()
    for hook in hooks:
        hook.remove()
    return images_seen, keys_seen


@modes
def test_an_image_is_encoded_and_projected_once_however_many_beams_it_has(mode: str):
    model, inputs = endless_model(), encoder_inputs("image")
    assert count_calls(model, lambda: generate(model, inputs, **MODES[mode])) == ([BATCH], [BATCH])
