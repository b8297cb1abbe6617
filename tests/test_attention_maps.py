"""Where a model reads in its picture: the weights, and how they are drawn."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import save_checkpoint

from modeling_ofa import OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.attention_maps import AttentionMaps, attention_maps
from modeling_ofa.drawing import draw_heat, enlarged


PICTURE = Image.effect_noise((100, 80), 80).convert("RGB")
ROWS = [
    {"task": "vqa", "image": PICTURE, "text": "what is it?", "target": "mug"},
    {"task": "visual_entailment", "image": PICTURE, "text": "a mug", "target": "maybe"},
    {"task": "visual_grounding", "image": PICTURE, "text": "a mug", "boxes": [[10, 20, 50, 60]], "labels": ["a mug"]},
    {"task": "object_detection", "image": PICTURE, "boxes": [[10, 20, 50, 60]], "labels": ["mug"]},
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = save_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    return OFAForConditionalGeneration.from_pretrained(folder, dtype="float32").eval(), OFAProcessor.from_pretrained(
        folder
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["task"])
@pytest.mark.parametrize("decoder_prompt", ["none", "src", "prev_output"])
def test_maps_are_the_weights_of_the_steps_that_write_the_answer(loaded, row, decoder_prompt, monkeypatch):
    model, processor = loaded
    monkeypatch.setattr(processor, "decoder_prompt", decoder_prompt)
    maps = attention_maps(model, processor, row)
    words = {"mug": ["m", "u", "g"], "maybe": ["m", "a", "y", "b", "e"]}
    written = ["<bin_"] * 4 if "boxes" in row else ["", *words[row["target"]]]  # a space comes first
    assert [token[: len(one)] for token, one in zip(maps.tokens, written, strict=False)] == written
    layers, heads, tokens, height, width = maps.weights.shape
    assert (layers, heads, tokens, height, width) == (2, 2, len(maps.tokens), 4, 4)

    target = row.get("target") or ({"boxes": row["boxes"], "labels": row["labels"]})
    if row["task"] == "visual_grounding":
        target = row["boxes"][0]
    batch = processor(PICTURE, task=row["task"], text=row.get("text"), target=target, return_tensors="pt")
    labels = batch.pop("labels")
    batch.pop("decoder_prompt_lengths", None)
    batch.setdefault("decoder_input_ids", torch.cat([torch.tensor([[0]]), labels[:, :-1]], dim=1))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(**batch, output_attentions=True)
    model.set_attn_implementation("sdpa")
    wanted = (labels[0] != -100) & (labels[0] != 2)
    for layer, expected in zip(maps.weights, output.cross_attentions, strict=True):
        assert torch.allclose(expected.sum(-1), torch.ones(()))
        torch.testing.assert_close(layer.flatten(-2), expected[0][:, wanted, :16])


def test_a_tuned_prefix_is_no_part_of_the_picture(tmp_path):
    folder = save_checkpoint(tmp_path)
    processor = OFAProcessor.from_pretrained(folder)
    model = OFAForConditionalGeneration.from_pretrained(folder, dtype="float32", encoder_prompt_length=3).eval()
    plain = OFAForConditionalGeneration.from_pretrained(folder, dtype="float32", decoder_prompt_length=3).eval()
    for one in (model, plain):
        maps = attention_maps(one, processor, ROWS[0])
        assert maps.weights.shape[-2:] == (4, 4) and 0 < maps.weights.sum(dim=(-1, -2)).max() < 1


def test_the_model_goes_on_with_the_attention_that_it_had(loaded):
    model, processor = loaded
    model.set_attn_implementation("sdpa")
    attention_maps(model, processor, ROWS[0])
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="a picture and with an answer"):
        attention_maps(model, processor, {"task": "vqa", "image": PICTURE, "text": "what is it?"})
    assert model.config._attn_implementation == "sdpa"


def test_one_map_is_chosen_or_the_mean():
    weights = torch.rand(2, 3, 4, 5, 6)
    maps = AttentionMaps(weights, ["a", "b", "c", "d"])
    torch.testing.assert_close(maps.mean(), weights.mean(dim=(0, 1, 2)))
    torch.testing.assert_close(maps.mean(layer=1, token=3), weights[1, :, 3].mean(dim=0))
    assert torch.equal(maps.mean(layer=0, head=2, token=1), weights[0, 2, 1])


def test_heat_is_drawn_where_it_is_and_the_rest_is_grey():
    heat = np.zeros((4, 5))
    heat[1, 3] = 0.3
    drawn = draw_heat(Image.new("RGB", (100, 80), (0, 200, 0)), heat)
    assert drawn.size == (100, 80) and drawn.mode == "RGB"
    red, green, blue = drawn.getpixel((70, 30))  # the middle of that patch
    assert red > 200 and green > 150 and blue < 80
    grey = drawn.getpixel((10, 70))
    assert len(set(grey)) == 1
    assert draw_heat(Image.new("L", (10, 10)), np.zeros((2, 2))).size == (10, 10)


def test_a_picture_and_its_boxes_are_enlarged_together():
    picture, boxes = enlarged(Image.new("L", (50, 20)), [[5, 2, 10, 20]], 100)
    assert picture.size == (100, 40) and picture.mode == "RGB" and boxes == [[10.0, 4.0, 20.0, 40.0]]
