"""
Lets the model count: gives it the middles of things, and a head that looks for others of a kind.

    python scripts/count_heads.py runs/world_middles runs/world_countable

How much is looked at a thing says how large it is, not whether there are two of them. scripts/pretrain_backbone.py
taught the ResNet which patches are the middle of a thing; here a channel of the encoder gets what tells them from
others. In the head of the first layer that matters least, patches look at patches of their kind that are not beside
them, if there are any, else at the first token, and another channel gets which of the two. In each layer of the
decoder a head looks at middles. Training goes on from there (docs/world.md).
"""

import logging
import sys
from collections.abc import Sequence

import numpy as np
import torch
from align_heads import collect, command, discriminant, importance
from PIL import Image
from point_heads import FIRST, NEXT_TO_NOTHING, PATCH, clear_channels, hush, least_squares, states_of_rows
from pretrain_backbone import middles_of
from torch import nn
from world.scenes import World
from world.splits import SIZE, SPLITS

from modeling_ofa import OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.layers_ofa import image_distance_buckets
from modeling_ofa.modeling_ofa import OFADecoder, OFAEncoder
from modeling_ofa.vision_ofa import PATCH_SIZE


logger = logging.getLogger("count_heads")

SCENES, NAMES, ROWS = 2000, 1200, 320
_SEED = (9, 2)  # of scenes that no split has
_COUNTS = (0, 1, 2, 3, 4, 5)
_BATCH = 16
_SIDE = SIZE // PATCH_SIZE  # patches to a side
_MIDDLE = 1.5  # how far its channel stands out for the first layer, for half a middle
_OTHERS = 6.0  # how far that of the head stands out from the others
_SHARPNESS = 0.9  # between the two of scripts/align_heads.py
_START = 7.3  # what a patch gets from the first token, in place of which it looks at others of its kind
_WORD = -12.0  # and from words
_BESIDE = 2  # patches to any side, which are most likely the same thing
_NEVER = -30.0
_LOGIT = 24.0  # of a patch that is a middle, in the decoder, before it is scaled


def telling_middles(
    model: OFAForConditionalGeneration, processor: OFAProcessor, world: World, scenes: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """
    Finds, by least squares, what of the ResNet's features tells how many middles of things are in a patch.

    Returns:
        A direction of shape `(channels,)`; what to add to its products; and how large the projected features are.
    """
    encoder = model.get_encoder()
    features, middles = [], []
    for start in range(0, scenes, _BATCH):
        drawn = [
            world.compose(np.random.default_rng([*_SEED, i]), SPLITS["train"].designs, _COUNTS, SIZE, augment=True)
            for i in range(start, start + _BATCH)
        ]
        pictures = [Image.fromarray(scene.pixels) for scene in drawn]
        with torch.no_grad():
            got = encoder.get_image_features(processor.image_processor(pictures, return_tensors="pt")["pixel_values"])
        features.append(got[0].flatten(0, 1))
        middles += [middles_of(scene.boxes / SIZE, _SIDE, _SIDE).ravel() for scene in drawn]
    values, wanted = torch.cat(features).double(), torch.from_numpy(np.concatenate(middles))
    (direction,), (offset,) = least_squares(values, wanted[:, None], torch.ones(len(values)).double(), part=1e-2)
    error = values.float() @ direction + offset - wanted
    logger.info("middles: %.2f of their spread is told", 1 - error.var() / wanted.var())
    with torch.no_grad():
        size = encoder.image_proj(values.float()).std(dim=1).mean().item()
    return direction, offset, size


def write_middles(
    encoder: OFAEncoder, channel: int, direction: torch.Tensor, offset: torch.Tensor, size: float
) -> None:
    """Makes the projection of pictures say in a channel, which gets nothing else, how much a patch is a middle."""
    for table in (encoder.embed_image_positions.weight, encoder.type_embedding.weight):
        table[:, channel] = 0
    for module in (encoder.pos_q_linear, encoder.pos_k_linear):
        module.weight[:, channel] = 0
    encoder.image_proj.weight[channel], encoder.image_proj.bias[channel] = 2 * size * direction, 2 * size * offset
    encoder.patch_layernorm_embedding.weight[channel] = _MIDDLE


def free_head(encoder: OFAEncoder) -> int:
    """Gives the head of the first layer that matters least, of those that compare nothing yet."""
    matters = importance(encoder.layers[0].self_attn)
    here = encoder.token_buckets[encoder.max_length - 1]  # where those that do have what they never look at
    matters[encoder.token_rel_pos_table_list[0].weight[here] < _NEVER / 2] = torch.inf
    return int(matters.argmin())


def look_for_others(
    model: OFAForConditionalGeneration,
    processor: OFAProcessor,
    world: World,
    names: int,
    rows: int,
    channel: int,
    cleared: Sequence[int],
) -> int:
    """
    Makes a head of the first layer look from a patch at others of its kind, and write to a channel how much, by what
    the cleared channels don't say.

    Returns:
        `int`: The head.
    """
    encoder = model.get_encoder()
    attention = encoder.layers[0].self_attn
    head, width = free_head(encoder), attention.head_dim
    head_rows = slice(head * width, (head + 1) * width)
    patches, words = collect(model, processor, world, names)
    for states in (patches, words):
        states.values[:, list(cleared)] = 0
    directions, middle = (torch.from_numpy(part).float() for part in discriminant(patches, words))
    values, kind = states_of_rows(model, processor, world, rows)
    wanted = torch.stack([kind == PATCH, kind == FIRST], dim=1).double()
    (patch, first), (patch_offset, first_offset) = least_squares(values, wanted, 1 / kind.bincount().double()[kind])

    # All is compared by what it means, of which the first token has nothing. The last row is for what it is.
    weight = directions[:, : width - 1].T * (_SHARPNESS / attention.scaling / width**0.5) ** 0.5
    meant = weight @ (values[kind == FIRST].mean(dim=0).float() - middle)
    unscaled = attention.scaling**-0.5
    query, key = attention.q_proj, attention.k_proj
    hush(query, head_rows)
    query.weight[head_rows][:-1] = weight
    query.bias[head_rows] = nn.functional.pad(-weight @ middle, (0, 1), value=unscaled)
    last = unscaled * (-_WORD * patch + (_START - _WORD) * first)
    key.weight[head_rows] = torch.cat([weight - torch.outer(meant, first), last[None]])
    last_offset = unscaled * (_WORD - _WORD * patch_offset + (_START - _WORD) * first_offset)
    key.bias[head_rows] = torch.cat([-weight @ middle - meant * first_offset, last_offset[None]])
    for module in (encoder.pos_q_linear, encoder.pos_k_linear):  # other layers lose them too, and have their tables
        hush(module, head_rows)
    bucket_size, table = encoder.config.image_bucket_size, encoder.image_rel_pos_table_list[0].weight
    beside = torch.cartesian_prod(*[torch.arange(2 * _BESIDE + 1)] * 2) @ torch.tensor([bucket_size, 1]) + 1
    table[:, head] = 0
    table[image_distance_buckets(beside, beside[len(beside) // 2, None], bucket_size), head] = _NEVER

    least = attention.v_proj.weight[head_rows].norm(dim=1) * attention.out_proj.weight[:, head_rows].norm(dim=0)
    value = head_rows.start + int(least.argmin())
    attention.v_proj.weight[value], attention.v_proj.bias[value] = patch, patch_offset
    attention.out_proj.weight[:, value] = 0
    attention.out_proj.weight[channel, value] = _OTHERS / attention.c_attn[head]
    return head


def look_at_middles(decoder: OFADecoder, channels: list[int]) -> int:
    """
    Makes the head that matters least in the decoder's cross-attention look at middles too, of which the first of these
    channels tells, in every layer. What other heads do with them is left to chance and training.

    Returns:
        `int`: The head.
    """
    attentions = [layer.cross_attn for layer in decoder.layers]
    head, width = int(importance(*attentions).argmin()), attentions[0].head_dim
    rows = slice(head * width, (head + 1) * width)
    for one in attentions:
        for module, size in ((one.k_proj, 0.05), (one.v_proj, 0.1)):
            module.weight[:, channels] = torch.randn(len(module.weight), len(channels)) * size
        row = rows.start + int((one.q_proj.weight[rows].norm(dim=1) * one.k_proj.weight[rows].norm(dim=1)).argmin())
        for module in (one.q_proj, one.k_proj):
            hush(module, [row])
        one.q_proj.bias[row] = one.k_proj.weight[row, channels[0]] = _LOGIT**0.5
    return head


def count(
    model: OFAForConditionalGeneration, processor: OFAProcessor, world: World, scenes: int, names: int, rows: int
) -> tuple[list[int], int, int]:
    """Does all of it, in place. Gives the channels, of middles and of others, and the heads of encoder and decoder."""
    encoder = model.get_encoder()
    torch.manual_seed(0)
    model.set_attn_implementation("eager")  # which gives its weights
    direction, offset, size = telling_middles(model, processor, world, scenes)
    # What scripts/point_heads.py cleared gets next to nothing from almost all that the first layer's heads give.
    taken = encoder.layers[0].self_attn.out_proj.weight.abs().median(dim=1).values < 10 * NEXT_TO_NOTHING
    taken = taken.nonzero().ravel().tolist()
    with torch.no_grad():
        channels = clear_channels(model, 2, taken)
        head = look_for_others(model, processor, world, names, rows, channels[1], [*taken, *channels])
        write_middles(encoder, channels[0], direction, offset, size)
        at_middles = look_at_middles(model.get_decoder(), channels)
    logger.info("channels %s, head %d of the encoder and %d of the decoder", channels, head, at_middles)
    return channels, head, at_middles


def main(arguments: Sequence[str] | None = None) -> int:
    numbers = {
        "scenes": (SCENES, "so many tell middles"),
        "names": (NAMES, "scenes that tell what things differ by"),
        "rows": (ROWS, "so many tell patches from words"),
    }
    return command(logger, __doc__, count, numbers, arguments)


if __name__ == "__main__":
    sys.exit(main())
