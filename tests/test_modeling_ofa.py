"""The model on its own: masks, attention implementations, training, precision, compilation, bad input."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    HAS_IMAGE,
    SOURCE,
    TARGET,
    TOLERANCE,
    TRAINED,
    batch,
    gradients,
    images,
    labels_of,
    tiny_config,
    tiny_model,
    token_ids,
)
from torch import nn

from modeling_ofa import (
    OFAConfig,
    OFAForConditionalGeneration,
    OFAForSequenceClassification,
    OFAModel,
    OFAPreTrainedModel,
)
from modeling_ofa.modeling_ofa import shift_tokens_right
from modeling_ofa.vision_ofa import OFADropPath


@pytest.fixture(scope="module")
def model() -> OFAForConditionalGeneration:
    return tiny_model()


# ---------------------------------------------------------------------------------------------------------- masks


@torch.no_grad()
@pytest.mark.parametrize("kind", ["text", "image", "mixed"])
def test_a_row_alone_equals_the_row_in_a_right_padded_batch(model: OFAForConditionalGeneration, kind: str):
    inputs = {"input_ids": SOURCE, "decoder_input_ids": TARGET}
    if kind != "text":
        inputs["pixel_values"] = images(3)
    if kind == "mixed":
        inputs["patch_masks"] = HAS_IMAGE
    together = model(**inputs)
    for i in range(3):
        length, target_length = SOURCE[i].ne(1).sum(), TARGET[i].ne(1).sum()
        row = {name: value[i : i + 1] for name, value in inputs.items()}
        row["input_ids"] = row["input_ids"][:, :length]
        row["decoder_input_ids"] = row["decoder_input_ids"][:, :target_length]
        alone = model(**row)
        states = together.encoder_last_hidden_state[i : i + 1]
        states = states[:, : states.shape[1] - SOURCE.shape[1] + length]
        if kind == "mixed" and not HAS_IMAGE[i]:  # states of masked patches mean nothing
            states, alone.encoder_last_hidden_state = states[:, -length:], alone.encoder_last_hidden_state[:, -length:]
        torch.testing.assert_close(states, alone.encoder_last_hidden_state, **TOLERANCE)
        torch.testing.assert_close(together.logits[i : i + 1, :target_length], alone.logits, **TOLERANCE)


@torch.no_grad()
def test_a_row_whose_image_is_masked_equals_the_text_alone(model: OFAForConditionalGeneration):
    mixed = model(**batch(patch_masks=HAS_IMAGE)).logits
    with_image = model(**batch()).logits
    text = model(input_ids=SOURCE, decoder_input_ids=TARGET).logits
    torch.testing.assert_close(mixed[1], text[1], **TOLERANCE)
    torch.testing.assert_close(mixed[[0, 2]], with_image[[0, 2]], **TOLERANCE)
    assert (mixed[0] - text[0]).abs().max() > 0.1  # an image does matter


@torch.no_grad()
def test_pixels_behind_a_false_patch_mask_change_nothing(model: OFAForConditionalGeneration):
    pixels = images(3)
    expected = model(**batch(pixel_values=pixels, patch_masks=HAS_IMAGE)).logits
    pixels = pixels.clone()
    pixels[1] = 7.0
    torch.testing.assert_close(model(**batch(pixel_values=pixels, patch_masks=HAS_IMAGE)).logits, expected)


@torch.no_grad()
def test_masks_default_to_what_differs_from_padding(model: OFAForConditionalGeneration):
    given = batch(attention_mask=SOURCE.ne(1).long(), decoder_attention_mask=TARGET.ne(1).long())
    assert torch.equal(model(**batch()).logits, model(**given).logits)


@torch.no_grad()
def test_a_padded_target_token_is_not_attended_to(model: OFAForConditionalGeneration):
    target = token_ids([6], seed=2)
    target[0, 2] = 1
    other = target.clone()
    other[0, 2] = 50
    mask = target.ne(1).long()
    inputs = {"input_ids": SOURCE[:1], "decoder_attention_mask": mask}
    a = model(decoder_input_ids=target, **inputs).logits
    b = model(decoder_input_ids=other, **inputs).logits
    torch.testing.assert_close(a[:, 3:], b[:, 3:], **TOLERANCE)


@torch.no_grad()
def test_later_target_tokens_do_not_change_earlier_logits(model: OFAForConditionalGeneration):
    longer = batch(decoder_input_ids=token_ids([7, 7, 7], seed=1))
    shorter = {**longer, "decoder_input_ids": longer["decoder_input_ids"][:, :4]}
    torch.testing.assert_close(model(**longer).logits[:, :4], model(**shorter).logits, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 72), (128, 128), (1, 33)])
def test_images_of_any_shape_within_the_grid_give_a_patch_per_16_pixels(
    model: OFAForConditionalGeneration, height: int, width: int
):
    out = model(**batch(pixel_values=images(3, height, width)))
    patches = -(-height // 16) * -(-width // 16)
    assert out.encoder_last_hidden_state.shape == (3, patches + SOURCE.shape[1], 32)
    assert out.logits.isfinite().all()


@torch.no_grad()
def test_sampling_every_patch_is_a_permutation_that_changes_nothing(model: OFAForConditionalGeneration):
    # Positions and biases travel with the patches, so the order of the keys does not matter.
    random.seed(0)
    sampled = model(**batch(sample_patch_num=12))
    whole = model(**batch())
    torch.testing.assert_close(sampled.logits, whole.logits, **TOLERANCE)
    assert (sampled.encoder_last_hidden_state - whole.encoder_last_hidden_state).abs().max() > 0.1


@torch.no_grad()
def test_sampled_patches_are_drawn_for_each_row_by_pythons_random(model: OFAForConditionalGeneration):
    twice = {"input_ids": SOURCE[:1].repeat(2, 1), "pixel_values": images(1).repeat(2, 1, 1, 1)}
    random.seed(3)
    states = model.model.encoder(**twice, sample_patch_num=5).last_hidden_state
    assert states.shape[1] == 5 + SOURCE.shape[1]
    assert (states[0] - states[1]).abs().max() > 0.01
    random.seed(3)
    assert torch.equal(model.model.encoder(**twice, sample_patch_num=5).last_hidden_state, states)


@torch.no_grad()
def test_the_decoder_reads_the_source_when_it_is_given_nothing_else(model: OFAForConditionalGeneration):
    shifted = shift_tokens_right(SOURCE, 1, 0)
    assert shifted[0].tolist() == [0, *SOURCE[0, :-1].tolist()]
    given = model(input_ids=SOURCE, decoder_input_ids=shifted).logits
    assert torch.equal(model(input_ids=SOURCE).logits, given)


@torch.no_grad()
def test_code_rows_and_text_rows_of_one_batch_equal_those_rows_in_batches_of_their_own(
    model: OFAForConditionalGeneration,
):
    codes = torch.tensor([True, False, True])
    mixed = model(**batch(code_masks=codes)).logits
    text = model(**batch(code_masks=torch.zeros(3, dtype=torch.bool))).logits
    all_codes = model(**batch(code_masks=torch.ones(3, dtype=torch.bool))).logits
    torch.testing.assert_close(mixed, torch.where(codes[:, None, None], all_codes, text), **TOLERANCE)
    assert torch.equal(text, model(**batch()).logits)
    assert (text - all_codes).abs().max() > 0.1


# ---------------------------------------------------------------------------------- attention implementations


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"encoder_prompt_length": 3, "decoder_prompt_length": 2}, {"attn_scale_factor": 4.0}]
)
@pytest.mark.parametrize("codes", [None, [True, True, True], [True, False, True]])
def test_sdpa_equals_eager(options: dict[str, Any], codes: list[bool] | None):
    inputs = batch(patch_masks=HAS_IMAGE, code_masks=None if codes is None else torch.tensor(codes))
    expected = tiny_model(attn_implementation="eager", **options)(**inputs).logits
    model = tiny_model(attn_implementation="sdpa", **options)
    torch.testing.assert_close(model(**inputs).logits, expected, **TOLERANCE)


def test_sdpa_is_the_default_and_flash_attention_is_refused():
    assert OFAForConditionalGeneration(tiny_config()).config._attn_implementation == "sdpa"
    with pytest.raises((ValueError, ImportError), match="[Ff]lash"):
        OFAForConditionalGeneration._from_config(tiny_config(), attn_implementation="flash_attention_2")


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"encoder_prompt_length": 3}])
@pytest.mark.parametrize("codes", [None, [True, False, True]])
def test_flex_attention_equals_eager(options: dict[str, Any], codes: list[bool] | None):
    inputs = batch(patch_masks=HAS_IMAGE, code_masks=None if codes is None else torch.tensor(codes))
    expected = tiny_model(attn_implementation="eager", **options)(**inputs).logits
    model = tiny_model(attn_implementation="flex_attention", **options)
    with torch.compiler.set_stance("force_eager"):  # the kernel's definition; what it compiles to is a slow test
        torch.testing.assert_close(model(**inputs).logits, expected, **TOLERANCE)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_flex_attention_equals_eager_and_generates_the_same():
    inputs = batch(patch_masks=HAS_IMAGE)
    eager, model = tiny_model(attn_implementation="eager"), tiny_model(attn_implementation="flex_attention")
    # torch 2.13 writes faulty C++ for flex attention with dynamic shapes on the CPU ("cur_kvSplitSize5 was not
    # declared"), so every shape is compiled by itself.
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False, recompile_limit=64):
        torch.testing.assert_close(model(**inputs).logits, eager(**inputs).logits, **TOLERANCE)
        del inputs["decoder_input_ids"]
        options = {"num_beams": 3, "max_new_tokens": 5, "num_return_sequences": 2}
        assert torch.equal(model.generate(**inputs, **options), eager.generate(**inputs, **options))


def test_prefixes_with_flex_attention_are_refused():
    model = tiny_model(decoder_prompt_length=2, attn_implementation="flex_attention")
    with pytest.raises(ValueError, match='Prefixes need the "eager" or "sdpa"'), torch.no_grad():
        with torch.compiler.set_stance("force_eager"):
            model(**batch())


# ------------------------------------------------------------------------------------------- what comes out


@torch.no_grad()
def test_attentions_and_hidden_states_have_the_shapes_that_transformers_promises():
    model = tiny_model(attn_implementation="eager", decoder_layers=3)
    out = model(**batch(), output_attentions=True, output_hidden_states=True)
    source, target = 12 + SOURCE.shape[1], TARGET.shape[1]
    assert [tuple(a.shape) for a in out.encoder_attentions] == [(3, 4, source, source)] * 2
    assert [tuple(a.shape) for a in out.decoder_attentions] == [(3, 4, target, target)] * 3
    assert [tuple(a.shape) for a in out.cross_attentions] == [(3, 4, target, source)] * 3
    assert [tuple(a.shape) for a in out.encoder_hidden_states] == [(3, source, 32)] * 3
    assert [tuple(a.shape) for a in out.decoder_hidden_states] == [(3, target, 32)] * 4
    for attention in (*out.encoder_attentions, *out.decoder_attentions, *out.cross_attentions):
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    assert torch.equal(out.encoder_hidden_states[-1], out.encoder_last_hidden_state)
    # No row attends to padding, neither of the source nor of the target.
    assert out.cross_attentions[0][2, :, :, 12 + 4 :].max() == 0
    assert out.decoder_attentions[0][2, :, :, 3:].max() == 0


@torch.no_grad()
def test_a_tuple_comes_out_on_request(model: OFAForConditionalGeneration):
    logits = model(**batch(use_cache=False), return_dict=False)[0]
    assert torch.equal(logits, model(**batch()).logits)


@torch.no_grad()
def test_embeddings_of_tokens_may_be_given_in_their_place(model: OFAForConditionalGeneration):
    expected = model(**batch()).logits
    embed = model.get_input_embeddings()
    embeds = {"inputs_embeds": embed(SOURCE), "decoder_inputs_embeds": embed(TARGET)}
    masks = {"attention_mask": SOURCE.ne(1).long(), "decoder_attention_mask": TARGET.ne(1).long()}
    logits = model(pixel_values=images(3), **embeds, **masks).logits
    torch.testing.assert_close(logits, expected, **TOLERANCE)


@torch.no_grad()
def test_encoder_outputs_may_be_given_in_place_of_the_inputs(model: OFAForConditionalGeneration):
    expected = model(**batch(patch_masks=HAS_IMAGE)).logits
    encoder_outputs = model.get_encoder()(input_ids=SOURCE, pixel_values=images(3), patch_masks=HAS_IMAGE)
    assert torch.equal(model(encoder_outputs=encoder_outputs, decoder_input_ids=TARGET).logits, expected)
    # States alone do for a text, as with other models.
    text = model.get_encoder()(input_ids=SOURCE)
    expected = model(input_ids=SOURCE, decoder_input_ids=TARGET).logits
    states = (text.last_hidden_state,)
    logits = model(encoder_outputs=states, attention_mask=SOURCE.ne(1).long(), decoder_input_ids=TARGET).logits
    torch.testing.assert_close(logits, expected, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 4])])
def test_logits_to_keep_computes_the_logits_of_the_chosen_positions_only(
    model: OFAForConditionalGeneration, keep: int | torch.Tensor
):
    expected = model(**batch()).logits
    expected = expected[:, -keep:] if isinstance(keep, int) else expected[:, keep]
    seen = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    kept = model(**batch(), logits_to_keep=keep).logits
    hook.remove()
    torch.testing.assert_close(kept, expected, **TOLERANCE)
    assert seen == [expected.shape[1]]


@pytest.mark.parametrize("cls", [OFAModel, OFAForConditionalGeneration, OFAForSequenceClassification])
@torch.no_grad()
def test_patch_images_still_means_pixel_values_and_warns(cls: type[OFAPreTrainedModel]):
    model = tiny_model(cls)
    inputs = batch()
    expected = model(**inputs)[0]
    with pytest.warns(FutureWarning, match="`patch_images`.*`pixel_values`"):
        assert torch.equal(model(patch_images=inputs.pop("pixel_values"), **inputs)[0], expected)


# --------------------------------------------------------------------------------------------------------- loss


@torch.no_grad()
def test_the_loss_is_the_mean_cross_entropy_of_the_labels_that_count(model: OFAForConditionalGeneration):
    labels = labels_of(TARGET)
    out = model(input_ids=SOURCE, pixel_values=images(3), labels=labels)
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    assert shifted[2].tolist() == [0, *TARGET[2, :3].tolist(), 1, 1, 1]
    given = model(**batch(decoder_input_ids=shifted))
    torch.testing.assert_close(out.logits, given.logits, **TOLERANCE)
    scores = given.logits.log_softmax(-1).gather(-1, TARGET.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(out.loss, -scores[TARGET.ne(1)].mean())


@torch.no_grad()
def test_the_loss_is_a_sum_over_the_number_of_items_that_the_trainer_counts(model: OFAForConditionalGeneration):
    inputs = {"input_ids": SOURCE, "labels": labels_of(TARGET)}
    mean, count = model(**inputs).loss, TARGET.ne(1).sum()
    torch.testing.assert_close(model(**inputs, num_items_in_batch=60).loss, mean * count / 60)


@torch.no_grad()
def test_a_batch_without_any_counting_label_is_finite_when_the_trainer_counts(model: OFAForConditionalGeneration):
    loss = model(input_ids=SOURCE, labels=torch.full_like(TARGET, -100), num_items_in_batch=5).loss
    assert loss == 0


@torch.no_grad()
@pytest.mark.parametrize("pooler", ["mlp", "linear"])
def test_the_classifier_reads_the_state_of_the_last_token(pooler: str):
    model = tiny_model(OFAForSequenceClassification, pooler_classifier=pooler, num_labels=3)
    assert (model.classification_head.dense is None) == (pooler == "linear")
    out = model(input_ids=SOURCE, pixel_values=images(3), labels=torch.tensor([0, 2, 1]))
    assert out.logits.shape == (3, 3)
    expected = nn.functional.cross_entropy(out.logits, torch.tensor([0, 2, 1]))
    torch.testing.assert_close(out.loss, expected)
    # By default the decoder reads the source, and padding decides nothing.
    for i in range(3):
        row = SOURCE[i : i + 1, : SOURCE[i].ne(1).sum()]
        alone = model(input_ids=row, pixel_values=images(3)[i : i + 1], decoder_input_ids=row)
        torch.testing.assert_close(out.logits[i : i + 1], alone.logits, **TOLERANCE)
        states = model.model(input_ids=row, pixel_values=images(3)[i : i + 1], decoder_input_ids=row)[0]
        torch.testing.assert_close(model.classification_head(states[:, -1]), alone.logits, **TOLERANCE)


@torch.no_grad()
def test_the_classifier_finds_the_last_token_of_embeddings_too():
    model = tiny_model(OFAForSequenceClassification, num_labels=3)
    expected = model(input_ids=SOURCE).logits
    embeds = model.get_input_embeddings()(SOURCE)
    logits = model(inputs_embeds=embeds, attention_mask=SOURCE.ne(1).long()).logits
    torch.testing.assert_close(logits, expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("num_labels", "labels", "loss_function"),
    [
        (1, torch.tensor([0.5, -1.0, 2.0]), lambda logits, labels: nn.functional.mse_loss(logits[:, 0], labels)),
        (2, torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), nn.functional.binary_cross_entropy_with_logits),
        (2, torch.tensor([1, 0, 1]), nn.functional.cross_entropy),
    ],
    ids=["numbers", "several classes", "one class"],
)
@pytest.mark.parametrize("pooler", ["mlp", "linear"])
def test_the_classifiers_loss_fits_its_labels_and_trains_every_part(
    pooler: str, num_labels: int, labels: torch.Tensor, loss_function: Any
):
    model = tiny_model(OFAForSequenceClassification, pooler_classifier=pooler, num_labels=num_labels).train()
    out = model(input_ids=SOURCE, pixel_values=images(3), labels=labels)
    torch.testing.assert_close(out.loss, loss_function(out.logits, labels))
    out.loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.classification_head.parameters())
    assert model.model.encoder.embed_images.conv1.weight.grad.abs().max() > 0


# ------------------------------------------------------------------------------------------------------- training


def test_every_parameter_of_a_batch_with_text_images_and_codes_gets_a_gradient():
    model = tiny_model(scale_resids=True, adapter_dim=4, encoder_prompt_length=2, decoder_prompt_length=2).train()
    _, grads = gradients(model, TRAINED)
    # The decoder's relative image tables and norms serve codes, which one row has.
    assert {name for name, _ in model.named_parameters()} == set(grads)
    assert all(grad.abs().max() > 0 for grad in grads.values())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(use_reentrant: bool):
    inputs = dict(TRAINED)
    model = tiny_model(encoder_prompt_length=2, dropout=0.1).train()
    torch.manual_seed(0)
    loss, expected = gradients(model, inputs)
    for module in model.modules():  # the first pass moved them
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    calls = []
    hook = model.model.encoder.layers[0].fc1.register_forward_hook(lambda *args: calls.append(1))
    torch.manual_seed(0)
    checkpointed_loss, grads = gradients(model, inputs)
    hook.remove()
    assert len(calls) == 2  # forward, and once more in backward
    torch.testing.assert_close(checkpointed_loss, loss)
    assert set(grads) == set(expected)
    for part in ("pos_q_linear", "cross_pos_k_linear", "rel_pos_table", "embed_image_positions", "embed_images.conv1"):
        assert any(part in name for name in grads)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], msg=lambda m, name=name: f"{name}: {m}")


def test_gradients_agree_between_sdpa_and_eager():
    loss, expected = gradients(tiny_model(attn_implementation="eager").train(), TRAINED)
    sdpa_loss, grads = gradients(tiny_model(attn_implementation="sdpa").train(), TRAINED)
    torch.testing.assert_close(sdpa_loss, loss)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.5},
        {"attention_dropout": 0.5},
        {"activation_dropout": 0.5},
        {"encoder_layerdrop": 0.5},
        {"decoder_layerdrop": 0.5},
        {"encoder_drop_path_rate": 0.5},
        {"decoder_drop_path_rate": 0.5},
        {"resnet_drop_path_rate": 0.5, "resnet_depths": [2, 2, 2]},
        {"encoder_prompt_length": 3},
    ],
    ids=lambda options: next(iter(options)),
)
@torch.no_grad()
def test_randomness_of_training_acts_in_training_only(options: dict[str, Any]):
    model = tiny_model(freeze_resnet=True, **options)
    assert torch.equal(model(**batch()).logits, model(**batch()).logits)
    model.train()
    draws = []
    for seed in range(4):
        torch.manual_seed(seed)
        draws.append(model(**batch()).logits)
    assert any(not torch.equal(draws[0], draw) for draw in draws[1:])


@torch.no_grad()
def test_classifier_dropout_acts_in_training_only():
    model = tiny_model(OFAForSequenceClassification, classifier_dropout=0.5, freeze_resnet=True)
    assert torch.equal(model(input_ids=SOURCE).logits, model(input_ids=SOURCE).logits)
    model.train()
    assert not torch.equal(model(input_ids=SOURCE).logits, model(input_ids=SOURCE).logits)


def test_drop_path_drops_whole_samples_and_rescales_the_others():
    torch.manual_seed(0)
    drop = OFADropPath(0.25)
    states = torch.ones(2000, 3, 2)
    out = drop(states)
    kept = out.flatten(1).eq(1 / 0.75).all(1)
    assert torch.equal(out[~kept], torch.zeros_like(out[~kept]))
    assert 0.70 < kept.float().mean() < 0.80
    assert torch.equal(drop.eval()(states), states)


def test_drop_path_rates_grow_linearly_with_depth():
    config = tiny_config(
        encoder_layers=4,
        decoder_layers=3,
        encoder_drop_path_rate=0.3,
        decoder_drop_path_rate=0.2,
        resnet_depths=[3, 1, 2],
        resnet_drop_path_rate=0.4,
    )
    model = OFAModel(config)
    assert [layer.drop_path.rate for layer in model.encoder.layers] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [layer.drop_path.rate for layer in model.decoder.layers] == pytest.approx([0.0, 0.1, 0.2])
    resnet = model.encoder.embed_images
    rates = [[block.drop_path.rate for block in stage] for stage in (resnet.layer1, resnet.layer2, resnet.layer3)]
    assert rates == [pytest.approx([0.0, 0.2, 0.4]), pytest.approx([0.0]), pytest.approx([0.0, 0.4])]


@torch.no_grad()
def test_layerdrop_of_one_skips_every_layer_of_its_stack_in_training():
    model = tiny_model(encoder_layerdrop=1.0, decoder_layerdrop=0.0).train()
    calls: list[str] = []
    for stack in (model.model.encoder, model.model.decoder):
        for layer in stack.layers:
            layer.register_forward_hook(lambda module, *args: calls.append(type(module).__name__))
    model(input_ids=SOURCE)
    assert calls == ["OFADecoderLayer"] * 2


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: b.clone() for name, b in model.named_buffers() if "running_" in name}


def test_a_frozen_resnet_keeps_its_statistics_and_trains_its_convolutions_only():
    model = tiny_model(freeze_resnet=True).train()
    before = statistics(model)
    _, grads = gradients(model, TRAINED)
    after = statistics(model)
    assert len(before) == 26 and all(torch.equal(after[name], value) for name, value in before.items())
    resnet = {name.split("embed_images.")[1] for name in grads if "embed_images." in name}
    assert resnet and all("conv" in name or "downsample.0" in name for name in resnet)
    assert not any("num_batches_tracked" in name for name in model.state_dict())


def test_an_unfrozen_resnet_moves_its_statistics_in_training_only():
    model = tiny_model()
    before = statistics(model)
    with torch.no_grad():
        model(**batch())
        assert all(torch.equal(value, before[name]) for name, value in statistics(model).items())
        model.train()(**batch())
        assert all(not torch.equal(value, before[name]) for name, value in statistics(model).items())
    _, grads = gradients(model, TRAINED)
    assert any("embed_images.bn1.weight" in name for name in grads)


# -------------------------------------------------------------------------------------------- architecture options

OPTIONS = {
    "entangled encoder": {"entangle_position_embedding": True},
    "entangled decoder": {"disable_entangle": False},
    "interpolated positions": {"interpolate_position": True, "orig_patch_image_size": 32},
    "three token types": {"type_vocab_size": 3},
    "no token types": {"add_type_embedding": False},
    "ViT": {"resnet_type": "ViT-B/16", "resnet_depths": None},
    "adapters": {"adapter_dim": 4},
    "prefixes": {"encoder_prompt_length": 3, "decoder_prompt_length": 2},
    "projected prefixes": {
        "encoder_prompt_length": 3,
        "decoder_prompt_length": 2,
        "encoder_prompt_projection_dim": 5,
        "decoder_prompt_projection_dim": 5,
    },
    "residual scaling": {"scale_resids": True},
    "no NormFormer": {"scale_attn": False, "scale_fc": False, "scale_heads": False},
    "post-norm": {"encoder_normalize_before": False, "decoder_normalize_before": False},
    "no embedding norms": {
        "layernorm_embedding": False,
        "patch_layernorm_embedding": False,
        "code_layernorm_embedding": False,
    },
    "deeper resnet": {"resnet_depths": [2, 1, 3]},
    "frozen resnet": {"freeze_resnet": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_architecture_option_evaluates_trains_and_matters(options: dict[str, Any], tmp_path: Path):
    torch.manual_seed(0)
    model = tiny_model(**options)
    inputs = batch()
    with torch.no_grad():
        logits = model(**inputs).logits
        plain = tiny_model()
        # The same weights without the option give something else (but for those that change only the training).
        shapes = {name: value.shape for name, value in plain.state_dict().items()}
        shared = {k: v for k, v in model.state_dict().items() if shapes.get(k) == v.shape}
        plain.load_state_dict(shared, strict=False)
        if options not in (OPTIONS["frozen resnet"], OPTIONS["three token types"]):
            assert (plain(**inputs).logits - logits).abs().max() > 1e-3
    loss, grads = gradients(model.train(), TRAINED)
    assert loss.isfinite() and all(grad.isfinite().all() for grad in grads.values())
    model.eval().save_pretrained(tmp_path)
    loaded, info = OFAForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_entangled_positions_let_the_content_know_where_it_is():
    # Attention alone sees positions through its bias; without a bias, only entangled positions tell tokens apart.
    def order_matters(**options: Any) -> bool:
        model = tiny_model(**options)
        for name, parameter in model.named_parameters():
            if "rel_pos_table" in name or "pos_q_linear" in name:
                parameter.zero_()
        swapped = SOURCE[:1, [0, 2, 1, *range(3, SOURCE.shape[1])]]
        states = [model.get_encoder()(input_ids=ids).last_hidden_state for ids in (SOURCE[:1], swapped)]
        return not torch.allclose(states[0][:, -1], states[1][:, -1], atol=1e-5)

    assert not order_matters()
    assert order_matters(entangle_position_embedding=True)


@torch.no_grad()
def test_positions_are_interpolated_only_for_images_larger_than_the_original():
    plain = tiny_model()
    model = tiny_model(interpolate_position=True, orig_patch_image_size=64)
    small, large = batch(pixel_values=images(3, 64, 64)), batch(pixel_values=images(3, 96, 96))
    assert torch.equal(model(**small).logits, plain(**small).logits)
    assert (model(**large).logits - plain(**large).logits).abs().max() > 0.1


@torch.no_grad()
def test_a_second_image_stands_in_front_of_the_first_and_obeys_the_same_mask():
    model = tiny_model(type_vocab_size=3)
    second = images(3, 32, 32, seed=5)
    two = model(**batch(pixel_values_2=second, patch_masks=HAS_IMAGE))
    assert two.encoder_last_hidden_state.shape[1] == 4 + 12 + SOURCE.shape[1]
    one = model(**batch(patch_masks=HAS_IMAGE)).logits
    torch.testing.assert_close(two.logits[1], one[1], **TOLERANCE)
    assert (two.logits[0] - one[0]).abs().max() > 0.1
    exchanged = model(**batch(pixel_values=second, pixel_values_2=images(3)))
    assert (exchanged.logits[0] - two.logits[0]).abs().max() > 0.1


# ------------------------------------------------------------------------------------------- precision, compilation


@torch.no_grad()
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        (torch.float16, 0.08),  # measured: 0.038, on log-probabilities down to -18
        (torch.bfloat16, 0.4),  # measured: 0.171
    ],
)
def test_half_precision_is_finite_and_near_single_precision(
    attn_implementation: str, dtype: torch.dtype, bound: float
):
    inputs = batch(patch_masks=HAS_IMAGE)
    expected = tiny_model()(**inputs).logits.log_softmax(-1)
    model = tiny_model(attn_implementation=attn_implementation).to(dtype)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    logits = model(**inputs).logits
    assert logits.dtype == dtype and logits.isfinite().all()
    error = (logits.float().log_softmax(-1) - expected).abs()
    assert error.max() < bound


@torch.no_grad()
def test_a_model_loaded_in_half_precision_takes_single_precision_pixels(
    model: OFAForConditionalGeneration, tmp_path: Path
):
    model.save_pretrained(tmp_path)
    loaded = OFAForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    logits = loaded(**batch()).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


@torch.no_grad()
def test_forward_compiles_into_one_graph():
    torch._dynamo.reset()
    model = tiny_model(encoder_layers=1, decoder_layers=1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # raises at a graph break
    inputs = batch(patch_masks=HAS_IMAGE)
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, **TOLERANCE)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("codes", [False, True])
def test_compiled_training_step_gives_the_same_loss_and_gradients(codes: bool):
    torch._dynamo.reset()
    inputs = dict(TRAINED)
    if not codes:
        del inputs["code_masks"]
    model = tiny_model().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    loss, expected = gradients(model, inputs)
    model.forward = torch.compile(model.forward, fullgraph=True)  # type: ignore[method-assign]
    compiled_loss, grads = gradients(model, inputs)
    torch.testing.assert_close(compiled_loss, loss)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-3)
    torch._dynamo.reset()


# ------------------------------------------------------------------------------------------------------ bad input


@torch.no_grad()
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": token_ids([65] * 3)}, "The text has 65 tokens.*at most 64"),
        ({"pixel_values": images(3, 64, 144)}, "64x144 pixels gives 4x9 patches.*8x8 only.*128 pixels a side"),
        ({"decoder_input_ids": token_ids([67] * 3)}, "The target has 67 tokens.*66 decoder positions"),
        ({"labels": token_ids([67] * 3), "decoder_input_ids": None}, "The target has 67 tokens"),
        ({"pixel_values_2": images(3)}, "third token type.*type_vocab_size=3"),
        ({"sample_patch_num": 13}, "`sample_patch_num` is 13.*12 patches only"),
        ({"input_ids": None}, "exactly one of input_ids or inputs_embeds"),
        ({"decoder_inputs_embeds": torch.zeros(3, 7, 32)}, "exactly one of decoder_input_ids"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(3, 9, 32), "decoder_input_ids": None}, "nothing to read"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_inputs_that_no_position_or_type_fits_are_refused(
    model: OFAForConditionalGeneration, inputs: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        model(**batch(**inputs))


@torch.no_grad()
def test_the_longest_text_image_and_target_are_not_refused(model: OFAForConditionalGeneration):
    inputs = {"pixel_values": images(1, 128, 128), "decoder_input_ids": token_ids([66])}
    assert model(input_ids=token_ids([64]), **inputs).logits.isfinite().all()


@torch.no_grad()
def test_states_of_an_image_without_their_positions_are_refused(model: OFAForConditionalGeneration):
    states = model.get_encoder()(input_ids=SOURCE, pixel_values=images(3)).last_hidden_state
    with pytest.raises(ValueError, match="21 states for 9 tokens.*OFAEncoderOutput"):
        model(encoder_outputs=(states,), attention_mask=SOURCE.ne(1).long(), decoder_input_ids=TARGET)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resnet_type": "resnet99", "resnet_depths": None}, "must be one of.*resnet152.*'resnet99'"),
        ({"resnet_depths": [1, 1]}, r"three stages, got \[1, 1\]"),
        ({"pooler_classifier": "max"}, '"mlp" or "linear", got .max.'),
        ({"d_model": "wide"}, "d_model"),
    ],
)
def test_configurations_that_no_model_can_have_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(Exception, match=message) as error:
        tiny_config(**fields)
    chain = [error.value, error.value.__cause__]
    assert any(isinstance(e, (ValueError, TypeError)) for e in chain)


@pytest.mark.parametrize(("fields", "heads"), [({"d_model": 30}, 4), ({"decoder_attention_heads": 5}, 5)])
def test_a_width_that_the_heads_do_not_divide_is_refused(fields: dict[str, Any], heads: int):
    with pytest.raises(ValueError, match=rf"must be divisible by the attention heads \({heads}\)"):
        OFAModel(tiny_config(**fields))


def test_an_unknown_size_is_refused_by_name():
    with pytest.raises(ValueError, match="Unknown OFA size 'giant'.*tiny, medium, base, large, huge"):
        OFAConfig.from_size("giant")
