"""
What decoding may write. `constraints_ofa` says which tokens may come next and decodes each row of a batch under its
own options; `trie_ofa` has the prefix trees of answers. Both are core files, which travel with the weights.
"""

from ..constraints_ofa import (
    BoxConstraint,
    Constraint,
    LabelledBoxesConstraint,
    RowLogitsProcessor,
    RowOptions,
    TokenRange,
    TrieConstraint,
)
from ..trie_ofa import AnswerTrie


__all__ = [
    "AnswerTrie",
    "BoxConstraint",
    "Constraint",
    "LabelledBoxesConstraint",
    "RowLogitsProcessor",
    "RowOptions",
    "TokenRange",
    "TrieConstraint",
]
