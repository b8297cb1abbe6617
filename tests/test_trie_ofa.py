"""The prefix tree of answers."""

import copy
import pickle
import random
import time

import pytest
import torch

from modeling_ofa.trie_ofa import AnswerTrie


EOS = 2


def random_answers(count: int, words: int = 12, longest: int = 5, seed: int = 0) -> list[list[int]]:
    """Answers of up to `longest` of `words` tokens, many of which begin alike, are alike, or go on."""
    draw = random.Random(seed)
    return [[draw.randrange(4, 4 + words) for _ in range(draw.randint(1, longest))] for _ in range(count)]


ANSWERS = [*random_answers(60), [5], [5, 6], [5, 6], []]


@pytest.fixture
def trie() -> AnswerTrie:
    return AnswerTrie(ANSWERS)


def path_to(trie: AnswerTrie, node: int) -> tuple[int, ...]:
    """The tokens from the root to a node."""
    tokens: list[int] = []
    while node != 0:
        tokens.insert(0, int(trie.tokens[node]))
        node = int(trie.parents[node])
    return tuple(tokens)


def test_the_nodes_are_the_prefixes_of_the_ended_answers(trie: AnswerTrie):
    ended = [(*answer, EOS) for answer in ANSWERS]
    prefixes = {answer[:length] for answer in ended for length in range(len(answer) + 1)}
    paths = [path_to(trie, node) for node in range(len(trie.tokens))]
    assert set(paths) == prefixes and len(paths) == len(prefixes)
    # Breadth first, the children of a node side by side and sorted by token.
    depths_first = sorted(prefixes, key=lambda prefix: (len(prefix), prefix))
    assert paths == depths_first
    assert trie.tokens[0] == trie.parents[0] == -1


def test_levels_children_and_leaves_point_to_the_right_nodes(trie: AnswerTrie):
    depths = [len(path_to(trie, node)) for node in range(len(trie.tokens))]
    for depth in range(max(depths) + 1):
        assert depths.count(depth) == trie.levels[depth + 1] - trie.levels[depth]
    assert depths == sorted(depths) and trie.levels[-1] == len(trie.tokens)
    for node in range(len(trie.tokens)):
        children = range(int(trie.first_child[node]), int(trie.first_child[node + 1]))
        assert list(children) == (trie.parents == node).nonzero().flatten().tolist()
    assert [path_to(trie, leaf) for leaf in trie.leaves.tolist()] == [(*answer, EOS) for answer in ANSWERS]
    assert trie.answers == ANSWERS


def test_descending_finds_each_child_and_nothing_else(trie: AnswerTrie):
    nodes = torch.arange(-1, len(trie.tokens))[:, None]
    tokens = torch.arange(-3, 200)
    children = trie.descend(nodes, tokens)  # every node by every token
    assert children.shape == (len(nodes), len(tokens))
    edges = {(int(trie.parents[node]), int(trie.tokens[node])): node for node in range(1, len(trie.tokens))}
    for row, node in zip(children.tolist(), nodes.flatten().tolist(), strict=True):
        assert row == [edges.get((node, token), -1) for token in tokens.tolist()]


def test_descending_along_an_answer_ends_at_its_leaf(trie: AnswerTrie):
    for answer, leaf in zip(ANSWERS, trie.leaves, strict=True):
        node = torch.zeros((), dtype=torch.long)
        for token in [*answer, EOS]:
            node = trie.descend(node, torch.tensor(token))
        assert node == leaf
        assert trie.descend(node, torch.tensor(EOS)) == -1


def test_duplicates_share_a_leaf_and_an_answer_may_begin_another():
    trie = AnswerTrie([[7], [7, 8], [7]])
    assert trie.leaves[0] == trie.leaves[2] != trie.leaves[1]
    assert trie.tokens.tolist() == [-1, 7, EOS, 8, EOS]
    assert trie.leaves.tolist() == [2, 4, 2]


def test_tuples_and_tensors_are_answers_too():
    trie = AnswerTrie([(7, 8), torch.tensor([9]), torch.tensor([], dtype=torch.long)], eos_token_id=5)
    assert trie.answers == [[7, 8], [9], []]
    assert trie.tokens[trie.leaves].tolist() == [5, 5, 5]


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda trie: pickle.loads(pickle.dumps(trie))])
def test_copies_and_pickles_are_the_same_tree(trie: AnswerTrie, clone):
    cloned = clone(trie)
    for name in ("tokens", "parents", "first_child", "leaves"):
        assert torch.equal(getattr(cloned, name), getattr(trie, name))
    assert cloned.levels == trie.levels and cloned.answers == trie.answers
    tokens = torch.arange(20)
    assert torch.equal(cloned.descend(torch.tensor(0), tokens), trie.descend(torch.tensor(0), tokens))


def test_moving_a_tree_moves_all_its_tensors_and_leaves_the_original(trie: AnswerTrie):
    moved = trie.to("meta")
    assert {value.device.type for value in vars(moved).values() if isinstance(value, torch.Tensor)} == {"meta"}
    assert {value.device.type for value in vars(trie).values() if isinstance(value, torch.Tensor)} == {"cpu"}
    assert moved.descend(torch.zeros(3, dtype=torch.long, device="meta"), torch.tensor(5, device="meta")).shape == (3,)


def test_the_names_of_21000_classes_become_a_tree_within_a_second():
    answers = random_answers(21_000, words=20_000, longest=8)
    start = time.process_time()
    trie = AnswerTrie(answers)
    assert time.process_time() - start < 1.0
    assert len(trie.tokens) > 80_000


def test_no_answers_at_all_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        AnswerTrie([])


@pytest.mark.parametrize("answer", ["red", 7, [7.0], [True], ["7"], torch.tensor([0.5]), torch.tensor(7), None])
def test_what_is_no_list_of_token_ids_is_refused(answer):
    with pytest.raises(TypeError, match="list of token ids"):
        AnswerTrie([[5], answer])


@pytest.mark.parametrize("answer", [[7, EOS], [EOS], [-1]])
def test_an_answer_with_an_end_or_a_negative_token_is_refused(answer: list[int]):
    with pytest.raises(ValueError, match="without special tokens"):
        AnswerTrie([[5], answer])
