"""
Lets the encoder mark what is asked about, and the decoder look there.

    python scripts/point_heads.py runs/world_lessons runs/world_marked

After scripts/align_heads.py a patch looks at the word for what it shows, and so tells where a thing is in 19 of 20
scenes; but what these heads pass on was left to training, and the decoder did not look there. Here it is computed. A
few channels of the encoder's states are cleared of all else. Some get the column and the row of each patch. In the two
heads that tell best, a patch gets a mark from a word that names a thing, and a word gets how much it looks at patches,
and where these are. In each layer of the decoder the head that matters least looks at marked patches, and passes on
where they are and how far the sides of their thing. Training goes on from there (docs/world.md).
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from align_heads import OF_ENCODER, asked_scenes, command, first_token, importance, patches_of
from PIL import Image
from torch import nn
from world.scenes import World
from world.splits import SIZE, make_example
from world.tasks import SCENE_TASKS
from world.things import THINGS
from world.words import plural

from modeling_ofa import OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.data.collator import DataCollatorForOFA
from modeling_ofa.modeling_ofa import OFADecoder, OFAEncoder
from modeling_ofa.vision_ofa import PATCH_SIZE


logger = logging.getLogger("point_heads")

_SIDE = SIZE // PATCH_SIZE  # patches to a side
HEADS = 2  # of the first layer
SCENES, ROWS = 320, 640
_SEED, _FIRST = 91, 10_000_000  # of rows that no run has
_BATCH = 16
_MARK, _MASS = 8.0, 2.0  # how far the channels of the first layer's heads stand out from the others
_PLACE = 3.0  # the same, of a patch's column and row
_SEEN = 3.0  # how far all of them stand out for the decoder
NEXT_TO_NOTHING = 1e-4
_LOGIT = 48.0  # of a patch whose mark is one, before it is scaled
PATCH, FIRST, WORD, NAME = range(4)  # of what the first layer gets; the first token is a word like others


class Channels(NamedTuple):
    """Which channels of the encoder's states say what: one for each column and row of patches."""

    mark: int
    mass: int
    columns: list[int]
    rows: list[int]

    @property
    def places(self) -> list[int]:
        return [*self.columns, *self.rows]

    @property
    def all(self) -> list[int]:
        return [self.mark, self.mass, *self.places]


def first_states(encoder: OFAEncoder, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Gives what the first layer's attention gets, `(batch, patches + tokens, d_model)`, and its weights, `(batch, heads,
    patches + tokens, patches + tokens)`.
    """
    with torch.no_grad():
        out = encoder(**{name: batch[name] for name in OF_ENCODER}, output_hidden_states=True, output_attentions=True)
        return encoder.layers[0].self_attn_layer_norm(out.hidden_states[0]), out.attentions[0]


def best_heads(model: OFAForConditionalGeneration, processor: OFAProcessor, world: World, scenes: int) -> list[int]:
    """Gives the heads in which a patch's attention to a word differs most by whether the patch shows what it names."""
    encoder, known = model.get_encoder(), list(THINGS)
    shown, others = [], []
    for pictures, things, words, texts in asked_scenes(world, scenes):
        images = [Image.fromarray(scene.pixels) for scene in pictures]
        batch = processor(task="visual_grounding", images=images, text=texts, padding=True, return_tensors="pt")
        weights = first_states(encoder, batch)[1]
        for scene, thing, word, ids, rows in zip(
            pictures, things, words, batch["input_ids"].tolist(), weights.numpy(), strict=True
        ):
            places = patches_of(scene, known)
            to_word = rows[:, : len(places), len(places) + first_token(processor, word, ids)]
            shown.append(to_word[:, places == known.index(thing)])
            others.append(to_word[:, places != known.index(thing)])
    contrast = np.concatenate(shown, axis=1).mean(axis=1) - np.concatenate(others, axis=1).mean(axis=1)
    logger.info("patches of a thing look at its name by %s more", ", ".join(f"{one:.2f}" for one in contrast))
    return np.argsort(-contrast)[:HEADS].tolist()


def least_squares(
    values: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor, part: float = 1e-3
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds what of rows `(rows, width)` tells what is wanted of them, `(rows, outputs)`, by weights `(rows,)`; `part` of
    the mean spread is added to each.

    Returns:
        Directions of shape `(outputs, width)`, and what to add to their products, `(outputs,)`.
    """
    weights = weights / weights.sum()
    mean, middle = weights @ values, weights @ wanted
    centred = (values - mean) * weights[:, None]
    spread = centred.T @ (values - mean)
    spread += part * spread.trace() / len(spread) * torch.eye(len(spread), dtype=spread.dtype)
    directions = torch.linalg.solve(spread, centred.T @ (wanted - middle)).T
    return directions.float(), (middle - directions @ mean).float()


def states_of_rows(
    model: OFAForConditionalGeneration, processor: OFAProcessor, world: World, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Gives what the first layer's attention gets of so many rows of all tasks, `(states, d_model)`, and of each whether
    it is a `PATCH`, the `FIRST` token, another `WORD` or the `NAME` of a thing, `(states,)`.
    """
    tokenizer, collate = processor.tokenizer, DataCollatorForOFA(processor)
    words = [word for thing in THINGS for word in (thing, plural(thing))]
    names = torch.tensor(sorted({tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in words}))
    states, kinds = [], []
    tasks = list(SCENE_TASKS)
    for start in range(_FIRST, _FIRST + number, _BATCH):
        batch = collate(
            [
                make_example(world, "train", row, [tasks[row % len(tasks)]], seed=_SEED)
                for row in range(start, start + _BATCH)
            ]
        )
        got, _ = first_states(model.get_encoder(), batch)
        ids = batch["input_ids"]
        kind = torch.where(torch.isin(ids, names), NAME, WORD)
        kind[:, 0] = FIRST
        patches = got.shape[1] - ids.shape[1]
        there = nn.functional.pad(ids != tokenizer.pad_token_id, (patches, 0), value=True)
        states.append(got[there])
        kinds.append(nn.functional.pad(kind, (patches, 0), value=PATCH)[there])
    return torch.cat(states).double(), torch.cat(kinds)


def telling_directions(
    model: OFAForConditionalGeneration, processor: OFAProcessor, world: World, channels: Channels, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds, by least squares over rows of all tasks, what tells words that name things from all else, and patches from
    words, without the channels.

    Returns:
        Directions of shape `(2, d_model)`, and what to add to their products, `(2,)`.
    """
    values, kind = states_of_rows(model, processor, world, number)
    values[:, channels.all] = 0
    kind[kind == FIRST] = WORD
    weights = 1 / kind.bincount().double()[kind]  # each kind counts as much
    directions, offsets = least_squares(values, torch.stack([kind == NAME, kind == PATCH], dim=1).double(), weights)
    directions[:, channels.all] = 0
    return directions, offsets


def hush(module: nn.Linear, rows: Sequence[int] | slice) -> None:
    """Makes these outputs next to nothing. Of nothing no gradient would ever come, and DoRA divides by its length."""
    module.weight[rows] = NEXT_TO_NOTHING * torch.randn_like(module.weight[rows])
    module.bias[rows] = 0


def clear_channels(model: OFAForConditionalGeneration, number: int, taken: Sequence[int] = ()) -> list[int]:
    """
    Takes so many channels from all else in the encoder, and from what the decoder reads of it: those that matter
    least, but for these, which are taken.
    """
    encoder, decoder = model.get_encoder(), model.get_decoder()
    readers = [
        module
        for layer in encoder.layers
        for module in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.fc1)
    ]
    reading = torch.stack([module.weight.norm(dim=0) for module in readers]).mean(dim=0)
    reading = reading * encoder.layernorm_embedding.weight.abs()
    reading[list(taken)] = torch.inf
    chosen = reading.argsort()[:number].tolist()
    for norm in (encoder.layernorm_embedding, encoder.patch_layernorm_embedding):
        norm.weight[chosen] = norm.bias[chosen] = 0
    for layer in encoder.layers:
        for module in (layer.self_attn.out_proj, layer.fc2):
            hush(module, chosen)
        for norm in (layer.self_attn_layer_norm, layer.self_attn_mid_layer_norm, layer.final_layer_norm):
            norm.weight[chosen], norm.bias[chosen] = 1, 0
    for module in [
        *readers,
        *(one for layer in decoder.layers for one in (layer.cross_attn.k_proj, layer.cross_attn.v_proj)),
    ]:
        module.weight[:, chosen] = 0
    encoder.layer_norm.weight[chosen], encoder.layer_norm.bias[chosen] = _SEEN, 0
    return chosen


def write_places(encoder: OFAEncoder, decoder: OFADecoder, channels: Channels) -> None:
    """Makes the embedding of a patch's place say its column and its row in channels, which get nothing else."""
    places = channels.places
    for module in (encoder.pos_q_linear, encoder.pos_k_linear, decoder.cross_pos_k_linear):
        module.weight[:, places] = 0
    encoder.image_proj.weight[places] = encoder.image_proj.bias[places] = 0
    encoder.type_embedding.weight[:, places] = 0
    table, width = encoder.embed_image_positions.weight, encoder.config.image_bucket_size
    size = 10 * table.std()  # so little that norms leave the other channels as they are
    table[:, places] = 0
    for i in range(_SIDE):
        table[1 + i : 1 + width * _SIDE : width, channels.columns[i]] = size
        table[1 + i * width : 1 + i * width + _SIDE, channels.rows[i]] = size
    encoder.patch_layernorm_embedding.weight[places] = _PLACE / size


def pass_on(
    encoder: OFAEncoder, heads: Sequence[int], channels: Channels, directions: torch.Tensor, offsets: torch.Tensor
) -> None:
    """Makes heads of the first layer write the channels, in place of those values of theirs that mattered least."""
    attention = encoder.layers[0].self_attn
    importance = attention.v_proj.weight.norm(dim=1) * attention.out_proj.weight.norm(dim=0)
    for head in heads:
        first = head * attention.head_dim
        least = importance[first : first + attention.head_dim].argsort()[: len(channels.all)]
        values = (least + first).tolist()
        attention.out_proj.weight[:, values] = 0
        attention.v_proj.weight[values] = attention.v_proj.bias[values] = 0
        attention.v_proj.weight[values[:2]], attention.v_proj.bias[values[:2]] = directions, offsets
        for value, channel in zip(values[2:], channels.all[2:], strict=True):
            attention.v_proj.weight[value, channel] = 1
        for value, channel in zip(values, channels.all, strict=True):
            size = _MARK if channel == channels.mark else _MASS
            attention.out_proj.weight[channel, value] = size / attention.c_attn[head]


def telling_sides(
    model: OFAForConditionalGeneration, processor: OFAProcessor, world: World, scenes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds, by least squares, what of a patch's last states tells how far the sides of the thing are that it shows.

    Returns:
        Directions of shape `(4, d_model)`, and what to add to their products, `(4,)`, in halves of a patch.
    """
    y, x = (grid.ravel() for grid in np.meshgrid(*[np.arange(PATCH_SIZE // 2, SIZE, PATCH_SIZE)] * 2, indexing="ij"))
    states, sides = [], []
    for pictures, _, _, texts in asked_scenes(world, scenes):
        images = [Image.fromarray(scene.pixels) for scene in pictures]
        batch = processor(task="visual_grounding", images=images, text=texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            last = model.get_encoder()(**{name: batch[name] for name in OF_ENCODER}).last_hidden_state.numpy()
        for scene, patches in zip(pictures, last, strict=True):
            for x0, y0, x1, y1 in scene.boxes:
                inner = (x0 < x) & (x < x1) & (y0 < y) & (y < y1)
                states.append(patches[: len(x)][inner])
                sides.append(np.stack([x0 - x, y0 - y, x1 - x, y1 - y], axis=1)[inner] / (PATCH_SIZE / 2))
    values, wanted = np.concatenate(states).astype(float), np.concatenate(sides)
    mean, middle, deviation = values.mean(axis=0), wanted.mean(axis=0), values.std(axis=0) + 1e-6
    scaled = (values - mean) / deviation
    spread = scaled.T @ scaled / len(scaled) + 0.01 * np.eye(len(mean))
    directions = np.linalg.solve(spread, scaled.T @ (wanted - middle) / len(scaled)).T / deviation
    return torch.tensor(directions).float(), torch.tensor(middle - directions @ mean).float()


def look_at_marks(decoder: OFADecoder, channels: Channels, directions: torch.Tensor, offsets: torch.Tensor) -> int:
    """
    Makes the head that matters least in the decoder's cross-attention look at marked patches, in every layer, and pass
    on where they are and how far the sides of the thing. What other heads do with the channels is left to chance and
    training.

    Returns:
        `int`: The head.
    """
    attentions = [layer.cross_attn for layer in decoder.layers]
    head, width = int(importance(*attentions).argmin()), attentions[0].head_dim
    rows = slice(head * width, (head + 1) * width)
    for module in (decoder.cross_pos_q_linear, decoder.cross_pos_k_linear):
        hush(module, rows)
    for one in attentions:
        for module, size in ((one.k_proj, 0.05), (one.v_proj, 0.1)):
            module.weight[:, channels.all] = torch.randn(len(module.weight), len(channels.all)) * size
        for module in (one.q_proj, one.k_proj, one.v_proj):
            hush(module, rows)
        one.q_proj.bias[rows.start] = one.k_proj.weight[rows.start, channels.mark] = _LOGIT**0.5
        free = rows.start
        for weight, bias in ((torch.eye(one.v_proj.in_features)[channels.places], 0), (directions, offsets)):
            there = slice(free, free + len(weight))
            one.v_proj.weight[there], one.v_proj.bias[there] = weight, bias
            free = there.stop
        nn.init.normal_(one.v_proj.weight[free : rows.stop], std=0.06)
        one.out_proj.weight[:, rows] = torch.randn(one.out_proj.out_features, width) * 1.5 * one.out_proj.weight.std()
        one.c_attn[head] = 1
    return head


def point(
    model: OFAForConditionalGeneration, processor: OFAProcessor, world: World, scenes: int, rows: int
) -> tuple[Channels, int]:
    """Does all of it, in place. Gives the channels, and the decoder's head that looks at marks."""
    encoder, decoder = model.get_encoder(), model.get_decoder()
    torch.manual_seed(0)
    model.set_attn_implementation("eager")  # which gives its weights
    heads = best_heads(model, processor, world, scenes)
    with torch.no_grad():
        mark, mass, *places = clear_channels(model, 2 + 2 * _SIDE)
        channels = Channels(mark, mass, places[:_SIDE], places[_SIDE:])
        directions, offsets = telling_directions(model, processor, world, channels, rows)
        write_places(encoder, decoder, channels)
        pass_on(encoder, heads, channels, directions, offsets)
        head = look_at_marks(decoder, channels, *telling_sides(model, processor, world, scenes))
    logger.info("channels %s, heads %s of the encoder and %d of the decoder", channels.all, heads, head)
    return channels, head


def main(arguments: Sequence[str] | None = None) -> int:
    numbers = {
        "scenes": (SCENES, "so many choose the heads"),
        "rows": (ROWS, "so many tell names from other words"),
    }
    return command(logger, __doc__, point, numbers, arguments)


if __name__ == "__main__":
    sys.exit(main())
