"""Tests of how OCR and image infilling see pictures, against recordings of the official code."""

import random

import numpy as np
import PIL.Image
import pytest
import torch
from recorded_pictures import assert_recorded, decode, load, to_pixels

from modeling_ofa.layouts_ofa import hide_middle, ocr_resize


OCR = load("data_ocr.json")


@pytest.mark.parametrize("variant", [0, 1], ids=["line", "document"])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_text_is_resized_and_placed_as_officially(variant, row):
    recorded = OCR["variants"][variant]
    document = recorded["kwargs"].get("is_document", False)
    picture = ocr_resize(decode(OCR["tsv_rows"][row][1]), 480, document, random.Random(row))
    assert_recorded(picture, recorded["items"][row]["item"]["patch_image"])


def test_without_random_numbers_text_lies_in_the_middle_and_its_edges_are_drawn_out():
    pixels = np.zeros((16, 64, 3), dtype=np.uint8)
    pixels[:8] = 200
    square = np.asarray(ocr_resize(PIL.Image.fromarray(pixels), 256))
    assert square.shape == (256, 256, 3)
    # 64 pixels high, from 96 to 160: the upper half is bright, and so is all above it.
    assert (square[:120] == 200).all() and (square[136:] == 0).all()
    tall = np.asarray(ocr_resize(PIL.Image.fromarray(pixels.transpose(1, 0, 2).copy()), 256))
    assert (tall == square.transpose(1, 0, 2)).all()


def test_thin_text_is_at_least_64_pixels_high_and_the_smallest_square_has_no_space_left():
    line = PIL.Image.new("L", (1000, 3), 90)
    assert ocr_resize(line, 64, rng=random.Random(0)).size == (64, 64)
    assert ocr_resize(line, 256, document=True).size == (256, 256)


@pytest.mark.parametrize(("side", "document"), [(63, False), (255, True)])
def test_squares_too_small_for_text_are_refused(side, document):
    with pytest.raises(ValueError, match=f"not {side}"):
        ocr_resize(PIL.Image.new("RGB", (10, 10)), side, document)


def test_the_hidden_middle_is_half_as_wide_and_high_as_the_picture():
    pixels = torch.ones(2, 3, 8, 16)
    hidden = hide_middle(pixels)
    assert hidden[..., 2:6, 4:12].abs().sum() == 0
    assert hidden.sum() == pixels.numel() * 3 / 4 and pixels.min() == 1


def test_the_middle_is_hidden_as_officially():
    unify = load("data_unify.json")
    pixels = to_pixels(decode(unify["image_rows"][0][1]))
    assert_recorded(hide_middle(pixels), unify["items"][7]["extra"][2]["patch_image"])
