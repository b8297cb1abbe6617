"""The processor of a small model of the world: its own words, few places for boxes, small pictures."""

import json
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer

from modeling_ofa import OFAImageProcessor, OFAProcessor, OFATokenizer
from modeling_ofa.tasks_ofa import TASKS as ALL_TASKS

from .artwork import CACHE, FILE
from .splits import SIZE, load_world, make_example
from .tasks import TASKS
from .things import THINGS
from .words import plural


# A box is told to a sixty-fourth of the picture: as exactly as the patches, of sixteen pixels, show it well, and few
# enough for each place to be seen often.
NUM_BINS = 64
NUM_CODES = 1024  # words of pictures that are drawn, for a model that shall learn it
_WORDS = 1600
_ROWS = 2_000
_TEXT = 160  # tokens
_ALWAYS = 50  # so often is what every text must be able to say


def build_processor(path: str | Path = CACHE / FILE) -> OFAProcessor:
    """
    Makes the processor, with a byte-level BPE of the words of the world and of the instructions of all tasks.

    Args:
        path (`str` or `Path`): The drawings.

    Raises:
        WorldError: There are no drawings.
    """
    world = load_world(str(path))
    texts = [f" {word}" for name in THINGS for word in (name, plural(name))] * _ALWAYS
    texts += [task.instruction for task in ALL_TASKS.values()] * _ALWAYS
    for number in range(_ROWS):
        row = make_example(world, "train", number, TASKS)
        texts += [f" {row[column]}" for column in ("text", "text_pair", "target") if row[column]]
    trainer = ByteLevelBPETokenizer()
    # What is rarer is a misspelt word.
    trainer.train_from_iterator(texts, vocab_size=_WORDS, min_frequency=5, show_progress=False)
    trained = json.loads(trainer.to_str())["model"]
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(trained["vocab"], key=trained["vocab"].get), "<mask>"]
    tokenizer = OFATokenizer(
        {word: place for place, word in enumerate(words)},
        [tuple(merge) for merge in trained["merges"]],
        num_codes=NUM_CODES,
        num_bins=NUM_BINS,
        model_max_length=_TEXT,
    )
    pictures = OFAImageProcessor(size={"height": SIZE, "width": SIZE})
    answers = {"image_classification": list(THINGS)}
    return OFAProcessor(pictures, tokenizer, max_image_size=SIZE, answers=answers)
