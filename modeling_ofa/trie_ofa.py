"""A prefix tree of answers, as tensors: what constrained decoding walks down and candidate scoring walks through."""

import copy
from collections.abc import Sequence

import torch


class AnswerTrie:
    """
    Prefix tree of answers, each ended by `eos_token_id`. Node 0 is the root; nodes are in breadth-first order, the
    children of a node side by side and sorted by token. Duplicates end in the same node, and an answer may be the
    beginning of another one or empty. Tries pickle and copy.

    Args:
        answers (`Sequence` of `list[int]`, `tuple[int]` or one-dimensional integer `torch.Tensor`):
            Token ids of each answer, without start and end.
        eos_token_id (`int`, *optional*, defaults to 2): The token that ends every answer, and is in none.

    Attributes:
        answers (`list[list[int]]`): The answers in the order given.
        eos_token_id (`int`): As given.
        tokens, parents (`torch.LongTensor` of shape `(nodes,)`): Token and parent of each node; -1 for the root.
        first_child (`torch.LongTensor` of shape `(nodes + 1,)`):
            The children of node `n` are nodes `first_child[n]` to `first_child[n + 1] - 1`.
        levels (`list[int]`): The nodes of depth `d` (the root's: 0) are `levels[d]` to `levels[d + 1] - 1`.
        leaves (`torch.LongTensor` of shape `(answers,)`): The node at the end of each answer.

    Raises:
        TypeError: An answer is a string or else no list of integers.
        ValueError: There is no answer, or an answer holds the end or a negative number.
    """

    def __init__(self, answers: Sequence[Sequence[int] | torch.Tensor], eos_token_id: int = 2):
        if len(answers) == 0:
            raise ValueError("There is no answer to choose from: pass at least one.")
        self.answers = [self._check(answer, eos_token_id) for answer in answers]
        self.eos_token_id = eos_token_id
        ended = [[*answer, eos_token_id] for answer in self.answers]
        lengths = torch.tensor([len(answer) for answer in ended])
        flat = torch.tensor([token for answer in ended for token in answer])
        starts = lengths.cumsum(0) - lengths
        self._radix = int(flat.max()) + 1

        # Level by level: an edge's key sorts by parent, then by token, which is the order that the nodes shall have.
        nodes = torch.zeros(len(ended), dtype=torch.long)  # where each answer has got to
        levels, keys = [0, 1], []
        for depth in range(int(lengths.max())):
            active = lengths > depth
            edges = nodes[active] * self._radix + flat[starts[active] + depth]
            new, inverse = edges.unique(return_inverse=True)
            nodes[active] = levels[-1] + inverse
            levels.append(levels[-1] + len(new))
            keys.append(new)
        self.levels = levels
        self.leaves = nodes
        self._keys = torch.cat(keys)  # (nodes - 1,), ascending: the edge above each node but the root
        root = torch.tensor([-1])
        self.tokens = torch.cat([root, self._keys % self._radix])
        self.parents = torch.cat([root, self._keys // self._radix])
        self.first_child = 1 + torch.searchsorted(self.parents[1:].contiguous(), torch.arange(levels[-1] + 1))

    @staticmethod
    def _check(answer: Sequence[int] | torch.Tensor, eos_token_id: int) -> list[int]:
        """An answer as a list of integers."""
        tokens = answer.tolist() if isinstance(answer, torch.Tensor) else answer
        if not isinstance(tokens, list | tuple) or any(type(token) is not int for token in tokens):
            raise TypeError(f"An answer is a list of token ids, got {answer!r}: encode it with the tokenizer first.")
        if eos_token_id in tokens or any(token < 0 for token in tokens):
            raise ValueError(
                f"The answer {list(tokens)} holds the end ({eos_token_id}) or a negative number: give the tokens of "
                "its words alone, without special tokens."
            )
        return list(tokens)

    def descend(self, nodes: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """
        The child of each node by token.

        Args:
            nodes (`torch.LongTensor`): Nodes; -1 (outside the tree) has no children.
            tokens (`torch.LongTensor`): Tokens, of a shape that broadcasts with `nodes`; any number.

        Returns:
            `torch.LongTensor`: The children, -1 where there is none.
        """
        nodes, tokens = torch.broadcast_tensors(nodes, tokens)
        children = 1 + torch.searchsorted(self._keys, nodes * self._radix + tokens).clamp(max=len(self._keys) - 1)
        found = (self.parents[children] == nodes) & (self.tokens[children] == tokens)
        return torch.where(found, children, -1)

    def to(self, device: torch.device | str) -> "AnswerTrie":
        """The same tree with its tensors on `device`."""
        moved = copy.copy(self)
        for name in ("tokens", "parents", "first_child", "leaves", "_keys"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved


__all__ = ["AnswerTrie"]
