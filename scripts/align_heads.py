"""
Lets four heads of the first encoder layer compare: words with patches, and words with words.

    python scripts/align_heads.py runs/world_model runs/world_aligned

scripts/pretrain_backbone.py makes patches look like the words for what they show, so that a product of the two tells
whether a thing is there. Training finds that product slowly, since the answer to a question has one bit. Here it is
computed: Fisher's linear discriminant of what the first layer gets of patches and of words, by the things of the small
world that they stand for, becomes queries and keys of the four heads that mattered least. Nothing else is changed, and
training goes on from there (docs/world.md).
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from world.artwork import CACHE, FILE, WorldError
from world.scenes import Scene, World
from world.splits import SIZE, SPLITS, load_world
from world.things import THINGS
from world.words import plural

from modeling_ofa import OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.cli.errors import first_line
from modeling_ofa.layers_ofa import OFAAttention
from modeling_ofa.vision_ofa import PATCH_SIZE


logger = logging.getLogger("align_heads")

SCENES = 1200
_BATCH = 16
_SEED = (9, 1)  # of scenes that no split has
_COUNTS = (3, 4, 5)
_FORMS = (
    "is there a {}?", "how many {} are there?", "where is the {}?", "the {}", "there is a {}",
    "is the {} left of the dog?",
)  # fmt: skip
_INNER = 0.32  # of a box's sides, to either side of its middle: what a patch there shows is the thing
_NEVER = -30.0
OF_ENCODER = ("input_ids", "attention_mask", "pixel_values", "patch_masks")


class Head(NamedTuple):
    """
    What a head compares: with the best directions, or those that come after so many heads' worth of them, how sharply,
    and whether only across modalities.
    """

    skipped: int
    sharpness: float
    across: bool


HEADS = (Head(0, 1.2, True), Head(1, 1.2, True), Head(0, 0.6, True), Head(0, 1.2, False))
_ELSEWHERE = 4.0  # what other words gain in heads that compare across: a word without a patch ends there


class States(NamedTuple):
    """What the first layer gets, `(rows, d_model)`, and the places of the things that it stands for, `(rows,)`."""

    values: np.ndarray
    things: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """`(d_model,)`."""
        return self.values.mean(axis=0)

    def means(self) -> np.ndarray:
        """The mean of each thing: `(things, d_model)`; that of all, where there are none."""
        there = [self.things == place for place in range(len(THINGS))]
        return np.stack([self.values[one].mean(axis=0) if one.any() else self.mean for one in there])


def patches_of(scene: Scene, names: Sequence[str]) -> np.ndarray:
    """Gives the place in `names` of what each patch shows, -1 where that is in doubt: `(patches,)`."""
    middles = np.arange(PATCH_SIZE // 2, SIZE, PATCH_SIZE)
    y, x = (grid.ravel() for grid in np.meshgrid(middles, middles, indexing="ij"))
    shown = np.full(len(x), -1)
    for name, (x0, y0, x1, y1) in zip(scene.names, scene.boxes, strict=True):
        across, down = abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)
        shown[(across < _INNER * (x1 - x0)) & (down < _INNER * (y1 - y0))] = names.index(name)
    return shown


def asked_scenes(world: World, number: int) -> Iterator[tuple[list[Scene], list[str], list[str], list[str]]]:
    """Gives batches of scenes; a thing of each, of which half are there; the word for it; and a text with the word."""
    known, designs = list(THINGS), SPLITS["train"].designs
    for start in range(0, number, _BATCH):
        scenes = [
            world.compose(np.random.default_rng([*_SEED, i]), designs, _COUNTS, SIZE, augment=True)
            for i in range(start, start + _BATCH)
        ]
        rng = np.random.default_rng(start + 1)
        things = []
        for scene in scenes:
            names = scene.names if rng.random() < 0.5 else known
            things.append(names[rng.integers(len(names))])
        forms = [_FORMS[rng.integers(len(_FORMS))] for _ in scenes]
        words = [plural(thing) if "many" in form else thing for thing, form in zip(things, forms, strict=True)]
        yield scenes, things, words, [form.format(word) for word, form in zip(words, forms, strict=True)]


def first_token(processor: OFAProcessor, word: str, ids: Sequence[int]) -> int:
    """Gives where in a text the word begins."""
    tokens = processor.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    return next(i for i in range(len(ids)) if ids[i : i + len(tokens)] == tokens)


def collect(
    model: OFAForConditionalGeneration, processor: OFAProcessor, world: World, number: int
) -> tuple[States, States]:
    """Gives what the first layer gets of patches, and of words, from so many scenes."""
    encoder, known = model.get_encoder(), list(THINGS)
    seen: list[torch.Tensor] = []
    hook = encoder.layers[0].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    patches, shown, words, meant = [], [], [], []
    for scenes, things, said, texts in asked_scenes(world, number):
        pictures = [Image.fromarray(scene.pixels) for scene in scenes]
        inputs = processor(task="vqa", images=pictures, text=texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            encoder(**{name: inputs[name] for name in OF_ENCODER})
        for scene, thing, word, ids, states in zip(
            scenes, things, said, inputs["input_ids"].tolist(), seen.pop().numpy(), strict=True
        ):
            places = patches_of(scene, known)
            patches.append(states[: len(places)][places >= 0])
            shown.append(places[places >= 0])
            words.append(states[len(places) + first_token(processor, word, ids)])
            meant.append(known.index(thing))
    hook.remove()
    return States(np.concatenate(patches), np.concatenate(shown)), States(np.stack(words), np.array(meant))


def discriminant(patches: States, words: States) -> tuple[np.ndarray, np.ndarray]:
    """
    Finds the directions in which things differ most, compared with what stands for one of them: as Fisher's linear
    discriminant, but without any direction in which patches differ from words as such.

    Returns:
        Directions `(d_model, d_model)`, the best first, each as long as makes the spread in it one; and the middle
        between patches and words, `(d_model,)`.
    """
    of_patches, of_words = patches.means(), words.means()
    offset = patches.mean - words.mean
    within = np.cov((patches.values - of_patches[patches.things]).T)
    within += np.cov((words.values - of_words[words.things]).T)
    within += 0.5 * np.cov((of_patches - of_words - offset).T)
    width = len(within)
    within += 1e-3 * np.trace(within) / width * np.eye(width)
    centred = (of_patches - patches.mean + of_words - words.mean) / 2
    between = centred.T @ centred / len(centred)
    # A generalized problem of eigenvalues, made an ordinary one.
    inverse = np.linalg.inv(np.linalg.cholesky(within + 10 * np.outer(offset, offset)))
    _, vectors = np.linalg.eigh(inverse @ between @ inverse.T)
    directions = inverse.T @ vectors[:, ::-1]
    directions /= np.sqrt(np.einsum("ij,ik,kj->j", directions, within, directions))
    return directions, (patches.mean + words.mean) / 2


def importance(*attentions: OFAAttention) -> torch.Tensor:
    """Gives how much each head matters in all of these together, `(heads,)`, by its factor, values and outputs."""
    width = attentions[0].head_dim
    return sum(
        one.c_attn.detach().abs()
        * one.v_proj.weight.detach().unflatten(0, (-1, width)).norm(dim=(1, 2))
        * one.out_proj.weight.detach().unflatten(1, (-1, width)).norm(dim=(0, 2))
        for one in attentions
    )


def set_heads(model: OFAForConditionalGeneration, directions: np.ndarray, middle: np.ndarray) -> list[int]:
    """Makes those heads of the first layer compare whose values and outputs are the smallest, and says which."""
    encoder = model.get_encoder()
    attention = encoder.layers[0].self_attn
    width = attention.head_dim
    chosen = importance(attention).argsort()[: len(HEADS)].tolist()
    texts, pictures = encoder.token_rel_pos_table_list[0].weight, encoder.image_rel_pos_table_list[0].weight
    here = encoder.token_buckets[encoder.max_length - 1]  # the distance of nothing
    with torch.no_grad():
        for head, (skipped, sharpness, across) in zip(chosen, HEADS, strict=True):
            # Products are to be as large as a mean over the directions, whatever the model scales them by.
            factor = (sharpness / attention.scaling / width**0.5) ** 0.5
            best = directions[:, skipped * width : (skipped + 1) * width]
            weight = torch.tensor(best.T * factor, dtype=torch.float32)
            rows = slice(head * width, (head + 1) * width)
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight[rows] = weight
                projection.bias[rows] = -weight @ torch.tensor(middle, dtype=torch.float32)
            if across:
                texts[:, head] = _ELSEWHERE
                pictures[:, head] = _NEVER
            texts[here, head] = _NEVER  # itself is no news
    return chosen


def load(checkpoint: Path) -> tuple[OFAForConditionalGeneration, OFAProcessor]:
    """
    Loads a model of the small world, in float32.

    Raises:
        ValueError: It is not one.
    """
    processor = OFAProcessor.from_pretrained(checkpoint)
    if processor.image_processor.size != {"height": SIZE, "width": SIZE}:
        raise ValueError(f"{checkpoint} is no model of the small world, whose pictures have {SIZE} pixels a side.")
    return OFAForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval(), processor


def align(model: OFAForConditionalGeneration, processor: OFAProcessor, world: World, scenes: int) -> None:
    """Does all of it, in place."""
    directions, middle = discriminant(*collect(model, processor, world, scenes))
    logger.info("heads %s", ", ".join(map(str, set_heads(model, directions, middle))))


def command(
    log: logging.Logger,
    about: str | None,
    change: Callable[..., object],
    numbers: Mapping[str, tuple[int, str]],
    arguments: Sequence[str] | None,
) -> int:
    """
    What this script does when it is called, and those that go on after it: changes a model of the small world, and
    writes a folder, whole or not at all; one that is there stays.

    Args:
        log (`logging.Logger`): The script's, by its name.
        about (`str`): What it is for.
        change (`Callable`): Changes a model, given with its processor, the drawings and the numbers, in place.
        numbers (`Mapping[str, tuple[int, str]]`): By its name what else can be said, as it is if not, and what it is.
        arguments (`Sequence[str]`, *optional*): Those of the command line.

    Returns:
        `int`: The status of the process.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a model of the small world")
    parser.add_argument("output", type=Path, help="folder to write; if there is one, it stays")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the artwork (%(default)s)")
    for name, (number, text) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=number, help=f"{text} (%(default)s)")
    args = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    try:
        if args.output.exists():
            log.info("%s is there", args.output)
            return 0
        model, processor = load(args.checkpoint)
        change(model, processor, load_world(str(args.cache / FILE)), **{name: getattr(args, name) for name in numbers})
        part = args.output.with_name(f"{args.output.name}.part")
        OFAProcessor.from_pretrained(args.checkpoint).save_pretrained(part)  # the used one would keep how it padded
        model.save_pretrained(part)
        print(part.rename(args.output))
    except (WorldError, ValueError, OSError, ImportError) as error:
        print(f"{log.name}.py: error: {first_line(error)}", file=sys.stderr)
        return 2
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return command(logger, __doc__, align, {"scenes": (SCENES, "so many scenes are looked at")}, arguments)


if __name__ == "__main__":
    sys.exit(main())
