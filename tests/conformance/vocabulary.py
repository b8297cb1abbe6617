"""A tokenizer with few words, which the common tests can load and save quickly."""

import json
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

from modeling_ofa import OFATokenizer


TEXTS = [
    "lower newer upper older longer string",
    " what does the image describe?",
    "This is the first sentence. This is the second one.",
    "the quick brown fox jumps over the lazy dog",
]


@cache
def words() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level vocabulary of 400 tokens and its merges."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def small_tokenizer() -> OFATokenizer:
    """A tokenizer with 400 words, 16 image codes and 20 locations."""
    vocab, merges = words()
    return OFATokenizer(vocab, merges, num_codes=16, num_bins=20)


def small_chinese_tokenizer(folder: Path) -> OFATokenizer:
    """A tokenizer of word pieces, from a `vocab.txt` that it writes into `folder`."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [
        "[PAD]",
        "[UNK]",
        *"。，？！.,?!()#'12345图片描述了什么",
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    for text in TEXTS:
        pieces += [word for word in text.lower().strip(" ?.").replace(".", "").split() if word not in pieces]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n", encoding="utf-8")
    return OFATokenizer.from_pretrained(folder, num_codes=16, num_bins=20)
