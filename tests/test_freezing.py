"""Freezing: which weights and statistics stay as they are while a model is trained."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion_utils import official_args, official_names, official_shapes, official_state
from PIL import Image
from tiny import TRAINED, batch, gradients, tiny_config, tiny_model
from torch import nn
from transformers import Trainer, TrainingArguments

import modeling_ofa
from convert import fairseq
from modeling_ofa import DataCollatorForOFA, OFAForConditionalGeneration, OFAForSequenceClassification, OFAProcessor
from modeling_ofa.training.freezing import PARTS, freeze, trained_parameters
from modeling_ofa.vision_ofa import OFABatchNorm2d


def trained(model: nn.Module) -> set[str]:
    """Names of the parameters that are trained, tied ones by all their names."""
    return {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}


def everything(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


TIED = {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"}


# ------------------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize(
    ("part", "frozen"),
    [
        ("embeddings", lambda name: name in TIED),
        ("resnet", lambda name: ".embed_images." in name),
        ("batch_norm", lambda name: ".bn" in name or ".downsample.1." in name),
        ("encoder", lambda name: name.startswith("model.encoder.") or name in TIED),
        ("decoder", lambda name: name.startswith("model.decoder.") or name in TIED),
        ("prefix", lambda name: "_prompt_encoder." in name),
        ("adapters", lambda name: ".adapter." in name),
        ("bias", lambda name: name.endswith(".bias")),
    ],
)
def test_a_part_is_frozen_or_alone_trained(part: str, frozen: Any):
    options = {"adapter_dim": 4, "encoder_prompt_length": 2, "decoder_prompt_length": 2}
    model = tiny_model(**options)
    expected = {name for name in everything(model) if frozen(name)}
    assert expected
    report = freeze(model, part)
    assert trained(model) == everything(model) - expected
    assert report.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    model = tiny_model(**options)
    freeze(model, train_only=part)
    assert trained(model) == expected


def test_parts_add_up_and_nothing_is_thawed():
    model = tiny_model(adapter_dim=4)
    freeze(model, ["embeddings", "resnet"])
    freeze(model, decoder_layers=1)
    kept = trained(model)
    assert not kept & TIED and not any(".embed_images." in name for name in kept)
    assert not any(name.startswith("model.decoder.layers.0.") for name in kept)
    freeze(model, "resnet", train_only=["adapters", "resnet"])
    assert trained(model) == {name for name in kept if ".adapter." in name}


def test_first_layers_are_frozen_with_their_position_tables_and_nothing_else():
    model = tiny_model()
    freeze(model, encoder_layers=1, decoder_layers=2)
    frozen = everything(model) - trained(model)
    tables = r"(layers|token_rel_pos_table_list|image_rel_pos_table_list)"
    layers = rf"model\.(encoder\.{tables}\.0|decoder\.{tables}\.[01])\."
    assert frozen == {name for name in everything(model) if re.match(layers, name)}
    assert len({name.split(".")[2] for name in frozen}) == 3


def test_the_head_of_a_classifier_is_a_part_and_a_bare_model_has_the_others():
    model = tiny_model(OFAForSequenceClassification, num_labels=3)
    report = freeze(model, train_only=["bias", "classifier"])
    assert "classification_head.out_proj.weight" in trained(model)
    assert list(report.parts) == ["resnet", "classifier", "encoder", "decoder"]
    bare = tiny_model().model
    freeze(bare, "encoder")
    assert all(name.startswith("decoder.") for name in trained(bare))


def test_an_untied_head_is_trained_while_the_embeddings_are_frozen():
    model = tiny_model(tie_word_embeddings=False)
    report = freeze(model, ["embeddings", "encoder", "decoder"])
    assert trained(model) == {"lm_head.weight"} and list(report.parts) == ["other"]


def test_a_report_counts_tied_weights_once_and_reads_as_one_line():
    model = tiny_model()
    report = trained_parameters(model)
    assert report.trained == report.total == sum(report.parts.values()) == model.num_parameters()
    assert report.parts["embeddings"] == 200 * 32
    model = tiny_model(adapter_dim=4)
    report = freeze(model, train_only="adapters")
    count = 4 * (2 * 32 * 4 + 4 + 32)
    assert report.parts == {"adapters": count} and report.total == model.num_parameters()
    assert str(report).startswith(f"{count:,} of {report.total:,} parameters are trained (")
    assert str(report).endswith(f" %): adapters {count:,}")


# --------------------------------------------------------------------------------------------------- official flags


@pytest.mark.parametrize("name", [name for name in official_names() if name.startswith("mini")])
def test_the_official_biases_are_those_that_the_bitfit_flag_trains(name: str):
    config = fairseq.infer_config(official_state(name, device="meta"), official_args(name))
    with torch.device("meta"):
        model = OFAForConditionalGeneration(config)
    freeze(model, train_only="official_bias")
    # The rule of the official flag, on official names.
    chosen = [key for key in official_shapes(name) if "bias" in key and ("layer_norm" in key or "fc" in key)]
    assert trained(model) == {f"model.{fairseq.rename(key)}" for key in chosen}


@pytest.mark.parametrize(
    ("name", "part", "like"),
    [("mini_prefix", "prefix", "_prompt_encoder."), ("mini_adapter", "adapters", ".adapter.")],
)
def test_an_official_checkpoint_goes_on_training_its_own_method_alone(name: str, part: str, like: str):
    state = official_state(name, exact=False)
    model = OFAForConditionalGeneration(fairseq.infer_config(state, official_args(name)))
    model.load_state_dict({f"model.{key}": value for key, value in fairseq.to_native(state).items()}, strict=False)
    freeze(model, train_only=part)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.train()(**TRAINED).loss.backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if like in key}


# ------------------------------------------------------------------------------------------------------ batch norms


@pytest.mark.parametrize("parts", ["batch_norm", "resnet", "encoder"])
def test_a_frozen_batch_norm_uses_and_keeps_its_statistics_in_training(parts: str):
    model = tiny_model()
    freeze(model, parts)
    pixels = batch()["pixel_values"]
    state = {key: value.clone() for key, value in model.state_dict().items() if "embed_images" in key}
    backbone = model.model.encoder.embed_images
    with torch.no_grad():
        expected = backbone(pixels)
    for _ in range(2):  # as `Trainer` calls it before every step
        model.train()
        torch.testing.assert_close(backbone(pixels), expected)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    twin = tiny_model()
    with torch.no_grad():
        twin.train().model.encoder.embed_images(pixels)
    assert not torch.equal(
        twin.state_dict()["model.encoder.embed_images.bn1.running_mean"],
        state["model.encoder.embed_images.bn1.running_mean"],
    )


def test_gradients_pass_through_a_frozen_batch_norm_as_through_the_configurations_own():
    model, constant = tiny_model(), tiny_model(freeze_resnet=True)
    constant.load_state_dict(model.state_dict(), strict=False)
    freeze(model, "batch_norm")
    loss, grads = gradients(model.train(), TRAINED)
    expected_loss, expected = gradients(constant.train(), TRAINED)
    torch.testing.assert_close(loss, expected_loss)
    assert grads.keys() == expected.keys() and any("embed_images.conv1" in name for name in grads)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], msg=lambda m, name=name: f"{name}: {m}")


def test_no_gradient_is_computed_of_a_frozen_backbone():
    model = tiny_model()
    freeze(model, "resnet")
    features = model.train().model.encoder.embed_images(batch()["pixel_values"])
    assert not features.requires_grad
    assert isinstance(model.model.encoder.embed_images.bn1, OFABatchNorm2d)


def test_trainer_leaves_frozen_weights_and_statistics_bit_for_bit(tmp_path: Path):
    scenes = Path(modeling_ofa.DEFAULT_CHECKPOINT).parent / "scenes"
    rows = [{"task": "caption", "image": Image.open(scenes / "scene_1.png"), "target": "a walrus reads the news"}]
    processor = OFAProcessor.from_pretrained(modeling_ofa.DEFAULT_CHECKPOINT)
    model = OFAForConditionalGeneration.from_pretrained(modeling_ofa.DEFAULT_CHECKPOINT, dtype=torch.float32)
    freeze(model, ["embeddings", "resnet"], encoder_layers=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    arguments = TrainingArguments(
        tmp_path,
        remove_unused_columns=False,
        max_steps=2,
        learning_rate=1e-3,
        weight_decay=0.1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    Trainer(model, arguments, train_dataset=rows * 8, data_collator=DataCollatorForOFA(processor, size=64)).train()
    frozen = re.compile(r"embed_tokens|lm_head|embed_images|model\.encoder\.(layers|\w+_table_list)\.0\.")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) or not frozen.search(key), key
    assert not torch.equal(model.model.encoder.layers[1].fc1.weight, before["model.encoder.layers.1.fc1.weight"])


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": "embedding"}, f"no part 'embedding'; the parts are {', '.join(PARTS)}"),
        ({"train_only": ["bias", "lora"]}, "no part 'lora'"),
        ({"train_only": "adapters"}, "'adapters' shall be trained.*no weights there.*`adapter_dim=…`"),
        ({"train_only": "prefix"}, "'prefix' shall.*`encoder_prompt_length=…` and `decoder_prompt_length=…`"),
        ({"train_only": "classifier"}, "'classifier' shall.*`OFAForSequenceClassification`"),
        ({"encoder_layers": 3}, "`encoder_layers` is 3, but the encoder has 2 layers"),
        ({"decoder_layers": -1}, "`decoder_layers` is -1"),
        ({"parts": ["encoder", "decoder"]}, "Nothing is left to train after freezing encoder, decoder"),
        (
            {"parts": "resnet", "train_only": "batch_norm"},
            "Nothing is left to train after freezing resnet and training batch_norm only",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_and_freezes_nothing(arguments: dict[str, Any], message: str):
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        freeze(model, **arguments)
    assert trained(model) == everything(model)


def test_a_part_that_a_model_lacks_may_be_frozen():
    model = OFAForConditionalGeneration(tiny_config(freeze_resnet=True))
    assert freeze(model, ["batch_norm", "adapters"]).trained == model.num_parameters()
