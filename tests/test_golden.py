"""
The model against recordings of the official code, on weights that are regenerated from their names.

Tolerances: log-probabilities 1e-4 and encoder states 2e-4 absolute (measured: 2e-6 and 5e-6), gradient norms 1e-3
relative (measured: 3e-5), scores of hypotheses 1e-3 (measured: 3e-5).
"""

import json
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversion_utils import detweights, official_args, official_state

from convert.fairseq import infer_config, rename, to_native
from modeling_ofa import OFAConfig, OFAForConditionalGeneration, OFAForSequenceClassification
from modeling_ofa.constraints_ofa import Constraint, RowLogitsProcessor, RowOptions, TokenRange, TrieConstraint
from modeling_ofa.layers_ofa import image_distance_buckets, token_distance_buckets
from modeling_ofa.modeling_ofa import OFADecoder
from modeling_ofa.trie_ofa import AnswerTrie


GOLDEN = Path(__file__).parent / "golden"
SLOW_SIZES = ("ofa_large", "ofa_huge")
# Recordings named `mini_<variant>_<input>` were made with the checkpoint `mini_<variant>`.
VARIANTS = (
    "adapter",
    "attnscale4",
    "clshead",
    "code256",
    "entangle_off_nodisable",
    "entangle_on_disable",
    "entangle_on",
    "noflags",
    "prefix",
    "resnet101",
    "resnet152",
    "resnet18",
    "resnet34",
    "scale_resids",
    "vit",
)


def recordings(folder: str, suffix: str) -> list:
    paths = sorted((GOLDEN / folder).glob(f"*{suffix}"))
    assert paths
    return [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem.startswith(SLOW_SIZES) else [])
        for path in paths
    ]


@lru_cache(maxsize=2)
def native_state(checkpoint: str) -> tuple[OFAConfig, dict[str, torch.Tensor]]:
    state = official_state(checkpoint)
    config = infer_config(state, official_args(checkpoint))
    return config, to_native(state, config)


def build(checkpoint: str, model_class: type = OFAForConditionalGeneration, **config_fields: Any) -> torch.nn.Module:
    config, state = native_state(checkpoint)
    config = OFAConfig(**{**config.to_dict(), **config_fields})
    if config.type_vocab_size != 2:
        key = "encoder.type_embedding.weight"
        rows = detweights().det_tensor(key, (config.type_vocab_size, config.d_model))
        state = {**state, f"model.{key}": torch.from_numpy(rows)}
    # Copied, since the model would otherwise train and scale the tensors that the next test builds on.
    state = {key: value.clone() for key, value in state.items()}
    model, info = model_class.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def checkpoint_of(name: str) -> str:
    """The checkpoint that a forward recording was made with."""
    size = next(size for size in ("mini32", "mini", "ofa_tiny", "ofa_medium", "ofa_base", "ofa_large") if size in name)
    case = name.removeprefix(f"{size}_")
    variant = next((variant for variant in VARIANTS if case.startswith(variant)), None)
    return f"{size}_{variant}" if variant else size


def read(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A forward recording: its tensors, and the model's inputs."""
    arrays = dict(np.load(GOLDEN / "forward" / f"{name}.npz"))
    meta = json.loads(str(arrays.pop("meta")))
    recorded = {key: torch.from_numpy(value) for key, value in arrays.items()}
    inputs = {"input_ids": recorded["src_tokens"].long(), "decoder_input_ids": recorded["prev_output_tokens"].long()}
    for key, reference in (("pixel_values", "patch_images"), ("pixel_values_2", "patch_images_2")):
        if reference in meta:
            inputs[key] = image(meta[reference])
    inputs.update({key: recorded[key] for key in ("patch_masks", "code_masks") if key in recorded})
    return recorded, inputs


def image(reference: list) -> torch.Tensor:
    """The picture that a recording names: `[name, shape]`."""
    return torch.from_numpy(detweights().det_tensor(*reference))


@pytest.mark.parametrize("path", recordings("forward", ".npz"))
def test_forward_gives_the_official_outputs(path: Path):
    recorded, inputs = read(path.stem)
    fields: dict[str, Any] = {}
    if path.stem.startswith("mini_interp"):
        fields = {"interpolate_position": True, "orig_patch_image_size": int(path.stem.split("_")[2][1:])}
    if "twoimg" in path.stem:
        fields = {"type_vocab_size": 3}
    classifies = "head_out" in recorded
    model = build(
        checkpoint_of(path.stem),
        OFAForSequenceClassification if classifies else OFAForConditionalGeneration,
        **fields,
    )
    if "sampled_patch_ids" in recorded:
        random.seed(0)
        inputs["sample_patch_num"] = recorded["sampled_patch_ids"].shape[-1]
    with torch.no_grad():
        outputs = model(**inputs)

    encoded = outputs.encoder_last_hidden_state
    torch.testing.assert_close(encoded[:, :8], recorded["enc_first8"], atol=2e-4, rtol=0)
    torch.testing.assert_close(encoded[:, -8:], recorded["enc_last8"], atol=2e-4, rtol=0)
    torch.testing.assert_close(encoded.abs().sum(-1), recorded["enc_abs_sum"], atol=2e-4, rtol=1e-5)
    if classifies:
        torch.testing.assert_close(outputs.logits, recorded["head_out"], atol=1e-4, rtol=0)
        return
    logits, target = outputs.logits, recorded["target"].long()
    log_probs = logits.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(log_probs, recorded["logprob_target"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits.logsumexp(-1), recorded["logits_logsumexp"], atol=1e-4, rtol=0)
    assert torch.equal(logits.argmax(-1), recorded["argmax"].long())
    rows, last = torch.arange(len(target)), target.ne(1).sum(1) - 1
    subset = recorded["vocab_subset"].long()
    torch.testing.assert_close(logits[:, 0][:, subset], recorded["logits_first_sub"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[rows, last][:, subset], recorded["logits_last_sub"], atol=1e-4, rtol=0)


# Largest error of a target's log-probability, where logits have a standard deviation of 1; measured at most 0.005 and
# 0.042 (large).
HALF_PRECISION = {torch.float16: 0.02, torch.bfloat16: 0.1}


@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize(
    "name",
    ["mini_codemix", "ofa_tiny_text", "ofa_tiny_img256"]
    + [
        pytest.param(f"ofa_{size}_{case}", marks=pytest.mark.slow)
        for size in ("medium", "base", "large")
        for case in ("text", "img256")
    ],
)
def test_half_precision_stays_close_and_gives_no_nan(name: str, dtype: torch.dtype):
    recorded, inputs = read(name)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with torch.no_grad():
        logits = build(checkpoint_of(name)).to(dtype)(**inputs).logits
    assert logits.dtype == dtype and torch.isfinite(logits).all()
    log_probs = logits.float().log_softmax(-1).gather(-1, recorded["target"].long().unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(log_probs, recorded["logprob_target"], atol=HALF_PRECISION[dtype], rtol=0)


@pytest.mark.parametrize("name", ["train_mini_img128", "train_mini_img128_freeze_resnet"])
def test_a_training_step_gives_the_official_loss_gradients_and_statistics(name: str):
    recorded = json.loads((GOLDEN / f"{name}.json").read_text())
    checkpoint = "mini_freeze_resnet" if name.endswith("freeze_resnet") else "mini"
    model = build(checkpoint, dropout=0.0, encoder_drop_path_rate=0.0, decoder_drop_path_rate=0.0).train()
    target = torch.tensor(recorded["target"])
    outputs = model(
        input_ids=torch.tensor(recorded["src_tokens"]),
        decoder_input_ids=torch.tensor(recorded["prev_output_tokens"]),
        pixel_values=image(recorded["patch_images"]),
    )
    log_probs = outputs.logits.log_softmax(-1)[target.ne(1)]
    nll = -log_probs.gather(-1, target[target.ne(1)].unsqueeze(-1)).sum()
    smoothing = 0.1 / (log_probs.shape[-1] - 1)  # the official criterion spreads epsilon over all other words
    loss = (1 - 0.1 - smoothing) * nll - smoothing * log_probs.sum()
    assert nll.item() == pytest.approx(recorded["nll"], rel=1e-3)
    assert loss.item() == pytest.approx(recorded["loss"], rel=1e-3)

    (loss / recorded["sample_size"]).backward()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    for key, norm in recorded["grad_norm"].items():
        gradient = parameters[f"model.{rename(key)}"].grad
        if norm is None:  # parameters of image codes, which this step doesn't use
            assert gradient is None or not gradient.any()
        else:
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), key
    for key, first in recorded["bn_buffers_first8_after"].items():
        buffer = buffers[f"model.{rename(key)}"].flatten()[:8].float()
        torch.testing.assert_close(buffer, torch.tensor(first, dtype=torch.float32), atol=1e-5, rtol=1e-3, msg=key)


# The checkpoint that a recording of `generate` was made with, where it is not that of its size.
GENERATE_CHECKPOINTS = {
    "caption_text_code256": "mini_code256",
    "caption_text_entangle": "mini_entangle_on",
    "caption_text_noflags": "mini_noflags",
    "codes_code256": "mini_code256",
    "codes_noflags": "mini_noflags",
}


def max_steps(recorded: dict[str, Any]) -> int:
    """fairseq's bound of the length, prefix and end included."""
    arguments = recorded["generator_args"]
    width = len(recorded["src_tokens"][0])
    return int(arguments.get("max_len_a", 0) * width + arguments.get("max_len_b", 200)) + 1


def length_penalty(recorded: dict[str, Any]) -> float:
    arguments = recorded["generator_args"]
    return 0.0 if arguments.get("unnormalized") else float(arguments.get("lenpen", 1.0))


def generation_options(recorded: dict[str, Any]) -> dict[str, Any]:
    """fairseq's options as transformers' (docs/generation.md says why each)."""
    arguments = recorded["generator_args"]
    return {
        "early_stopping": arguments["beam"] > 1,
        "length_penalty": length_penalty(recorded),
        "min_new_tokens": arguments.get("min_len", 1),
        "max_new_tokens": max_steps(recorded),
        "forced_eos_token_id": 2,
        "suppress_tokens": [1],
        "no_repeat_ngram_size": arguments.get("no_repeat_ngram_size", 0),
        "temperature": arguments.get("temperature", 1.0),
    }


def row_options(recorded: dict[str, Any]) -> list[RowOptions]:
    """fairseq's options as those of each row."""
    arguments, extra = recorded["generator_args"], recorded["extra_gen_kwargs"]
    constraint: Constraint | None = None
    if recorded["trie"]:
        constraint = TrieConstraint(AnswerTrie(recorded["trie"]))
    elif recorded["constraint_range"]:
        constraint = TokenRange(*map(int, recorded["constraint_range"].split(",")))
    rows = []
    for i in range(len(recorded["src_tokens"])):
        prompt = [token for token in (recorded["prefix_tokens"] or [[]] * (i + 1))[i] if token != 1]
        row = RowOptions(
            constraint,
            renormalize=not extra.get("zero_shot", False),
            prompt=prompt,
            score_prompt=True,
            min_new_tokens=max(arguments.get("min_len", 1) - len(prompt), 0),
            max_new_tokens=max_steps(recorded) - len(prompt),
            suppress_tokens=[0, 1, 2, 3] if extra.get("gen_code") else [1],
            no_repeat_ngram_size=arguments.get("no_repeat_ngram_size", 0),
            length_penalty=length_penalty(recorded),
        )
        rows.append(row)
    return rows


def is_constrained(recorded: dict[str, Any]) -> bool:
    return any(recorded[key] for key in ("trie", "constraint_range", "prefix_tokens"))


def sharpened(checkpoint: str, embed_mult: float, eos_mult: float) -> OFAForConditionalGeneration:
    """The model that ends sentences and prefers some words, unlike weights that are just random."""
    model = build(checkpoint)
    embeddings = model.get_input_embeddings().weight.detach() * embed_mult
    embeddings[2] *= eos_mult
    model.get_input_embeddings().weight.data = embeddings
    model.tie_weights()
    return model


def generate_all_beams(
    model: OFAForConditionalGeneration, beams: int, **kwargs: Any
) -> list[dict[tuple, float | None]]:
    """Hypotheses of each row with their scores, best first."""
    options = {"return_dict_in_generate": True, "output_scores": True}
    outputs = model.generate(num_beams=beams, num_return_sequences=beams, **options, **kwargs)
    found: list[dict[tuple, float | None]] = []
    for i, sequence in enumerate(outputs.sequences[:, 1:].tolist()):
        if i % beams == 0:
            found.append({})
        end = sequence.index(2) + 1 if 2 in sequence else len(sequence)
        found[-1][tuple(sequence[:end])] = outputs.sequences_scores[i].item() if beams > 1 else None
    return found


def assert_official(found: list[dict[tuple, float | None]], expected: list[list[dict[str, Any]]]):
    """Same best hypothesis, same hypotheses, same scores."""
    for hypotheses, row in zip(expected, found, strict=True):
        assert next(iter(row)) == tuple(hypotheses[0]["tokens"])
        assert set(row) == {tuple(hypothesis["tokens"]) for hypothesis in hypotheses}
        for hypothesis in hypotheses:
            score = row[tuple(hypothesis["tokens"])]
            assert score is None or score == pytest.approx(hypothesis["score"], abs=1e-3)


@pytest.mark.parametrize("path", recordings("generate", ".json"))
def test_generate_gives_the_official_hypotheses_and_scores(path: Path):
    recorded = json.loads(path.read_text())
    checkpoint = GENERATE_CHECKPOINTS.get(recorded["case"], recorded["size"])
    model = sharpened(checkpoint, recorded["embed_mult"], recorded["eos_mult"])
    inputs = {"input_ids": torch.tensor(recorded["src_tokens"])}
    if "patch_images" in recorded:
        inputs["pixel_values"] = image(recorded["patch_images"])
        inputs["patch_masks"] = torch.tensor(recorded["patch_masks"])
    if recorded["extra_gen_kwargs"].get("gen_code"):
        inputs["code_masks"] = torch.ones(len(recorded["src_tokens"]), dtype=torch.bool)
    options = generation_options(recorded)
    if is_constrained(recorded):
        processor = RowLogitsProcessor(row_options(recorded))
        options = {"early_stopping": True, "max_new_tokens": processor.max_new_tokens, "logits_processor": [processor]}
    found = generate_all_beams(model, recorded["generator_args"]["beam"], **inputs, **options)
    assert_official(found, recorded["hypos"])


def test_one_batch_of_mixed_tasks_gives_the_official_hypotheses_of_each():
    cases = (
        "caption_lenpen0.5",
        "codes_range",
        "maxlen_a",
        "minlen6",
        "prefix",
        "range_bins_text",
        "trie",
        "trie_prefix",
        "trie_zeroshot",
        "unnormalized",
    )
    sources, codes, rows, expected = [], [], [], []
    for case in cases:
        recorded = json.loads((GOLDEN / "generate" / f"mini_{case}.json").read_text())
        assert (recorded["embed_mult"], recorded["eos_mult"], recorded["generator_args"]["beam"]) == (4, 5, 5)
        sources += recorded["src_tokens"][:2]
        codes += [recorded["extra_gen_kwargs"].get("gen_code", False)] * 2
        rows += row_options(recorded)[:2]
        expected += recorded["hypos"][:2]
    processor = RowLogitsProcessor(rows)
    found = generate_all_beams(
        sharpened("mini", 4, 5),
        beams=5,
        input_ids=torch.tensor(sources),
        code_masks=torch.tensor(codes),
        early_stopping=True,
        max_new_tokens=processor.max_new_tokens,
        logits_processor=[processor],
    )
    assert_official(found, expected)


def test_distance_buckets_are_the_official_tables():
    tables = {key: torch.from_numpy(value).long() for key, value in np.load(GOLDEN / "buckets.npz").items()}
    for bucket_size in (256, 128):
        assert torch.equal(token_distance_buckets(bucket_size, 1024), tables[f"token_{bucket_size}"])
    ids = torch.arange(8 * 8 + 1)
    assert torch.equal(image_distance_buckets(ids, ids, 8), tables["image_8"])
    ids = torch.arange(42 * 42 + 1)
    assert torch.equal(image_distance_buckets(ids[[0, 1, 900, 1764]], ids, 42), tables["image_42_rows"])


@pytest.mark.parametrize("code_image_size", [128, 256])
def test_image_codes_have_the_official_positions(code_image_size: int):
    recorded = torch.from_numpy(np.load(GOLDEN / "buckets.npz")[f"code_{code_image_size}"])
    config, _ = native_state("mini")
    config = OFAConfig(**{**config.to_dict(), "code_image_size": code_image_size})
    assert torch.equal(OFADecoder(config).code_positions(torch.arange(len(recorded))), recorded)
