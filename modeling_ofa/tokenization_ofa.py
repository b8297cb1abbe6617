"""OFA's tokenizer: one vocabulary for words, image codes and locations.

The English checkpoints use BART's byte-level BPE, the Chinese ones BERT's word pieces. Both continue with `<code_0>`,
`<code_1>`, … (the words of the image VQGAN) and `<bin_0>`, `<bin_1>`, … (quantised coordinates).
"""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece
from transformers.tokenization_utils_tokenizers import TokenizersBackend


VOCAB_FILES_NAMES = {
    "vocab_file": "vocab.json",
    "merges_file": "merges.txt",
    "wordpiece_file": "vocab.txt",
    "tokenizer_file": "tokenizer.json",
}

# What fairseq's dictionary puts before the words of a plain BERT list.
_LEADING_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
_CODE_OR_BIN = re.compile(r"<(?:code|bin)_\d+>")


class OFATokenizer(TokenizersBackend):
    """
    OFA's tokenizer, backed by the *tokenizers* library.

    `from_pretrained` takes a folder with `vocab.json` and `merges.txt` (the layout of `OFA-Sys/*`: byte-level BPE),
    with `vocab.txt` (Chinese word pieces), or with the `tokenizer.json` that `save_pretrained` writes. A text becomes
    `<s> text </s>`. BPE sees a leading space, so `" a"` and `"a"` differ; OFA's English instructions start with one.

    With BPE, a `<code_i>` or `<bin_i>` written in a text is that token, and takes the spaces before it along. With
    word pieces it is spelled out like any other text, as the official code does; there (and wherever ids are at hand
    anyway) add `i` to `code_start_id` or `bin_start_id`.

    Args:
        vocab (`dict[str, int]` or `str`, *optional*):
            The words, without codes and bins: a BPE vocabulary, or the path of `vocab.json` (BPE) or `vocab.txt` (word
            pieces; a plain BERT list gets the leading tokens of fairseq's dictionary and `<mask>`). Without it only
            the special tokens exist.
        merges (`list[tuple[str, str]]` or `str`, *optional*):
            The BPE merges, or the path of `merges.txt`.
        num_codes (`int`, *optional*, defaults to 8192):
            How many `<code_i>` follow the words.
        num_bins (`int`, *optional*, defaults to 1000):
            How many `<bin_i>` follow the codes.
        do_lower_case (`bool`, *optional*, defaults to `True`):
            Whether word pieces are lower-cased and stripped of accents. BPE keeps the case.
        add_prefix_space (`bool`, *optional*, defaults to `False`):
            Whether BPE puts a space before a text that does not start with one.
        bos_token, eos_token, sep_token, cls_token, unk_token, pad_token, mask_token (`str`, *optional*):
            The special tokens, BART's by default. `unk_token` stands for tokens that the dictionary lacks; an unknown
            Chinese character becomes BERT's own `[UNK]`.
        **kwargs:
            Passed to [`TokenizersBackend`]. `model_max_length` defaults to 1024, the positions of every published
            checkpoint.

    Example:

    ```python
    >>> tokenizer = OFATokenizer.from_pretrained("OFA-Sys/ofa-base")
    >>> tokenizer(" what does the image describe?")["input_ids"]
    [0, 99, 473, 5, 2274, 6190, 116, 2]
    >>> tokenizer.bin_start_id, tokenizer("<bin_0> <bin_999>", add_special_tokens=False)["input_ids"]
    (58457, [58457, 59456])
    ```
    """

    vocab_files_names = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "attention_mask"]
    model = BPE

    def __init__(
        self,
        vocab: str | os.PathLike | dict[str, int] | None = None,
        merges: str | os.PathLike | Sequence[tuple[str, str]] | None = None,
        num_codes: int = 8192,
        num_bins: int = 1000,
        do_lower_case: bool = True,
        add_prefix_space: bool = False,
        bos_token: str = "<s>",
        eos_token: str = "</s>",
        sep_token: str = "</s>",
        cls_token: str = "<s>",
        unk_token: str = "<unk>",
        pad_token: str = "<pad>",
        mask_token: str | AddedToken = "<mask>",
        **kwargs: Any,
    ):
        self.num_codes = num_codes
        self.num_bins = num_bins
        self.do_lower_case = do_lower_case
        clean_up = kwargs.pop("clean_up_tokenization_spaces", None)
        kwargs.setdefault("model_max_length", 1024)
        if isinstance(mask_token, str):
            mask_token = AddedToken(mask_token, lstrip=True, special=True)

        names = [f"<code_{i}>" for i in range(num_codes)] + [f"<bin_{i}>" for i in range(num_bins)]
        is_new = kwargs.get("tokenizer_file") is None and kwargs.get("tokenizer_object") is None
        known_ids: dict[str, int] = {}
        if is_new:
            # Codes and bins are added below, the same way wherever the folder got its words from.
            added = kwargs.get("added_tokens_decoder") or {}
            known_ids = {str(token): int(i) for i, token in added.items() if _CODE_OR_BIN.fullmatch(str(token))}
            kwargs["added_tokens_decoder"] = {i: t for i, t in added.items() if str(t) not in known_ids}
            if isinstance(vocab, str | os.PathLike) and str(vocab).endswith(".txt"):
                self._tokenizer = _word_piece_tokenizer(vocab, str(mask_token), names, do_lower_case)
            else:
                if vocab is None:
                    vocab = {token: i for i, token in enumerate([*_LEADING_TOKENS, str(mask_token)])}
                self._tokenizer = _bpe_tokenizer(vocab, merges, str(unk_token), add_prefix_space)

        super().__init__(
            num_codes=num_codes,
            num_bins=num_bins,
            do_lower_case=do_lower_case,
            add_prefix_space=add_prefix_space,
            bos_token=bos_token,
            eos_token=eos_token,
            sep_token=sep_token,
            cls_token=cls_token,
            unk_token=unk_token,
            pad_token=pad_token,
            mask_token=mask_token,
            **kwargs,
        )

        is_bpe = isinstance(self._tokenizer.model, BPE)
        if is_bpe and getattr(self._tokenizer.pre_tokenizer, "add_prefix_space", add_prefix_space) != add_prefix_space:
            # A saved tokenizer.json brings the choice that it was saved with.
            self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        # Word pieces are joined as BERT joins them: no space before a full stop. With BPE spaces are tokens.
        self.clean_up_tokenization_spaces = not is_bpe if clean_up is None else clean_up
        if is_new:
            self._tokenizer.post_processor = processors.RobertaProcessing(
                (self.sep_token, self.sep_token_id), (self.cls_token, self.cls_token_id), is_bpe, add_prefix_space
            )
            if is_bpe:
                self.add_tokens([AddedToken(name, lstrip=True, normalized=False) for name in names])
            for name, index in known_ids.items():
                if self._tokenizer.token_to_id(name) != index:
                    raise ValueError(
                        f"The tokenizer's folder gives {name} the id {index}, but after {self.vocab_size:,} words, "
                        f"{num_codes:,} codes and {num_bins:,} bins it is {self._tokenizer.token_to_id(name)}; pass "
                        "the num_codes and num_bins that the folder was made with."
                    )

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Picks the files that `__init__` reads: a whole `tokenizer.json` first, then BPE, then word pieces."""
        files = {key: kwargs.pop(key, None) for key in VOCAB_FILES_NAMES}
        if files["tokenizer_file"] is not None:
            return {**kwargs, "tokenizer_file": files["tokenizer_file"]}
        kwargs.setdefault("vocab", files["vocab_file"] or files["wordpiece_file"])
        kwargs.setdefault("merges", files["merges_file"])
        folder = kwargs.get("name_or_path")
        if kwargs["vocab"] is None:
            raise ValueError(
                f"No tokenizer in {folder!r}: it holds neither tokenizer.json, nor vocab.json and merges.txt (BPE), "
                "nor vocab.txt (Chinese word pieces)."
            )
        if str(kwargs["vocab"]).endswith(".json") and kwargs["merges"] is None:
            raise ValueError(f"Half a tokenizer in {folder!r}: vocab.json is there, but merges.txt is missing.")
        return kwargs

    @property
    def code_start_id(self) -> int | None:
        """`int`: The id of `<code_0>`; `<code_i>` has `code_start_id + i`. `None` in a vocabulary without codes."""
        return self._tokenizer.token_to_id("<code_0>")

    @property
    def bin_start_id(self) -> int | None:
        """`int`: The id of `<bin_0>`; `<bin_i>` has `bin_start_id + i`. `None` in a vocabulary without bins."""
        return self._tokenizer.token_to_id("<bin_0>")

    @property
    def is_chinese(self) -> bool:
        """`bool`: Whether this is the Chinese variant, which speaks in word pieces."""
        return isinstance(self._tokenizer.model, WordPiece)


def _bpe_tokenizer(
    vocab: str | os.PathLike | dict[str, int],
    merges: str | os.PathLike | Sequence[tuple[str, str]] | None,
    unk_token: str,
    add_prefix_space: bool,
) -> Tokenizer:
    """BART's byte-level BPE."""
    words: dict[str, int]
    if isinstance(vocab, dict):
        words = vocab
    else:
        try:
            with open(vocab, encoding="utf-8") as file:
                words = json.load(file)
        except ValueError as error:
            raise ValueError(f"{vocab} is not a BPE vocabulary in JSON: {error}") from error
    pairs: list[tuple[str, str]]
    if isinstance(merges, str | os.PathLike):
        with open(merges, encoding="utf-8") as file:
            lines = [line.rstrip("\n") for line in file if not line.startswith("#version")]
        pairs = [tuple(line.split(" ")) for line in lines if line]  # type: ignore[misc]
    else:
        pairs = list(merges or [])
    try:
        model = BPE(vocab=words, merges=pairs, unk_token=unk_token if unk_token in words else None)
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ValueError(f"The BPE merges do not fit the vocabulary of {len(words):,} tokens: {error}") from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _word_piece_tokenizer(
    path: str | os.PathLike, mask_token: str, names: list[str], do_lower_case: bool
) -> Tokenizer:
    """BERT's Chinese word pieces; codes and bins (`names`) are words of the model, so no text can spell them."""
    with open(path, encoding="utf-8") as file:
        words = [line.rstrip("\n") for line in file]
    if _LEADING_TOKENS[0] not in words:
        words = [*_LEADING_TOKENS, *words]
    known = set(words)
    words += [word for word in [mask_token, *names] if word not in known]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]" if "[UNK]" in vocab else _LEADING_TOKENS[3]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=do_lower_case
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return tokenizer


__all__ = ["OFATokenizer"]
