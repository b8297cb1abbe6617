"""The official losses: every recorded case of the criteria, values and gradients, and what they leave open."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_ofa.training import OFALoss
from modeling_ofa.training import losses as module


GOLDEN = Path(__file__).parent / "golden"
RECORDED = json.loads((GOLDEN / "losses.json").read_text(encoding="utf-8"))["cases"]
CASES = sorted(name for name, case in RECORDED.items() if "kwargs" in case)
# Sums of float32 in another order: 2e-7 of the values, and gradients of size 1 by as much.
VALUES = {"rtol": 2e-6, "atol": 0.0}
GRADIENTS = {"rtol": 0.0, "atol": 2e-6}


@pytest.fixture(scope="module")
def arrays() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "losses.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def labels_of(target: torch.Tensor) -> torch.Tensor:
    return target.masked_fill(target == 1, -100)


def loss_of(name: str) -> OFALoss:
    """The loss that was recorded; options that the recorded criterion ignores (`drop_best_*`) have no counterpart."""
    given = RECORDED[name]["kwargs"]
    bounds = given.get("constraint_range")
    options: dict[str, Any] = {
        key: given[key]
        for key in ("drop_worst_ratio", "drop_worst_after", "ignore_prefix_size", "ignore_eos")
        if key in given
    }
    return OFALoss(
        label_smoothing=0.0 if name.endswith("eps0") else 0.1,
        constraint_range=None if bounds is None else tuple(int(one) for one in bounds.split(",")),
        rdrop_alpha=given.get("reg_alpha", 1.0) if given.get("use_rdrop") else None,
        encouraging_log_end=given.get("log_end"),
        official_rdrop_order=True,
        **options,
    )


def inputs_of(name: str, arrays: dict[str, torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    """Logits, labels, sample weights and constraint masks of a case, twice over for R-Drop."""
    logits = arrays["logits"].repeat(2, 1, 1) if name.endswith("rdrop_same") else arrays[RECORDED[name]["logits"]]
    labels = labels_of(arrays["target_eq" if "ignore_eos" in name else "target"])
    weights = arrays["conf"] if "conf" in name else None
    masks = arrays["constraint_masks"] if "masks" in name else None
    if name.endswith("ignore_eos_masks"):
        masks = torch.ones_like(arrays["constraint_masks"])  # recorded with everything allowed
    others = (labels, weights, masks)
    if RECORDED[name]["kwargs"].get("use_rdrop"):
        others = tuple(None if one is None else torch.cat([one, one]) for one in others)
    return logits.clone().requires_grad_(), *others


@pytest.mark.parametrize("chunk", [module.CHUNK, 150])
@pytest.mark.parametrize("name", CASES)
def test_recorded_cases_are_repeated(name, chunk, arrays, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    case, loss = RECORDED[name], loss_of(name)
    logits, labels, weights, masks = inputs_of(name, arrays)
    sums = loss(logits, labels, weights, masks, step=case["update_num"])
    recorded = torch.tensor([case["loss"], case["logging"]["nll_loss"]])
    torch.testing.assert_close(torch.stack([sums.loss.detach(), sums.nll]), recorded, **VALUES)
    if not name.endswith("sentence_avg"):  # which divides by rows; that is the caller's choice here
        assert sums.num_tokens == case["sample_size"]
    once = labels[: len(labels) // 2] if loss.rdrop_alpha is not None else labels
    assert loss.count(once, step=case["update_num"]) == sums.num_tokens

    gradient = arrays[f"grad_{name}"]
    if math.isinf(case["loss"]):
        assert not gradient.isfinite().all()  # nothing to repeat
        return
    sums.loss.backward()
    found = logits.grad
    if name == "el_rdrop_same":
        # Twins have the same loss, so which of them comes first in the official order is left to chance.
        found, gradient = (one[:4] + one[4:] for one in (found, gradient))
    torch.testing.assert_close(found, gradient, **GRADIENTS)


def test_pretraining_adds_up_the_means_of_its_two_batches(arrays):
    loss, case = OFALoss(), RECORDED["ce_pretrain_pair"]
    weights = arrays["conf"]
    pairs = loss(arrays["logits"], labels_of(arrays["target"]), weights)
    extras = loss(arrays["logits2"][:4], labels_of(arrays["target_eq"]), 2 * weights)
    assert (pairs.num_tokens, extras.num_tokens) == (19, 28)
    total = pairs.loss / pairs.num_tokens + extras.loss / extras.num_tokens
    assert total.item() == pytest.approx(case["loss"], rel=1e-6)


def test_rdrop_with_encouraging_loss_compares_each_token_with_itself(arrays):
    logits = arrays["logits"].repeat(2, 1, 1)
    labels = labels_of(arrays["target"]).repeat(2, 1)
    options: dict[str, Any] = {"label_smoothing": 0.1, "encouraging_log_end": 0.75}
    alone = OFALoss(**options)(arrays["logits"], labels[:4], step=1)
    twice = OFALoss(rdrop_alpha=1.0, **options)(logits, labels, step=1)
    assert twice.loss.item() == pytest.approx(2 * alone.loss.item(), rel=1e-6)  # equal halves do not diverge
    official = OFALoss(rdrop_alpha=1.0, official_rdrop_order=True, **options)(logits, labels, step=1)
    assert official.loss > twice.loss + 40


@pytest.mark.parametrize("log_end", [0.25, 0.5, 0.75, 1.0])
def test_encouraging_loss_rewards_what_is_nearly_right(log_end):
    """By its definition, in float64, where targets have probabilities on both sides of `log_end`."""
    logits = torch.zeros(1, 8, 11, dtype=torch.float64)
    labels = torch.arange(8)[None] % 11
    logits[0, torch.arange(8), labels[0]] = torch.linspace(-3.0, 14.0, 8, dtype=torch.float64)
    eps, number = 0.1, logits.shape[-1]

    def defined(x: torch.Tensor) -> torch.Tensor:
        log_probs = x.log_softmax(-1)
        probs = log_probs.exp()
        bonus = (1 - probs).clamp(min=1e-5).log()
        if log_end < 1.0:
            bonus = torch.where(probs > log_end, (probs - log_end) / (log_end - 1) + math.log(1 - log_end), bonus)
        rest = eps / (number - 1)
        chosen = labels.unsqueeze(-1)
        likelihood = -(1 - eps - rest) * log_probs.gather(-1, chosen).sum() - rest * log_probs.sum()
        return likelihood + (1 - eps) * bonus.gather(-1, chosen).sum() + eps / number * bonus.sum()

    wanted, found = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected = defined(wanted)
    expected.backward()
    sums = OFALoss(label_smoothing=eps, encouraging_log_end=log_end)(found, labels)
    sums.loss.backward()
    # log(1 - p) in float32 has 1 - p to 1e-7, of 1e-5 at the least.
    assert sums.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=2e-3 if log_end == 1.0 else 1e-5)


def test_half_precision_logits_are_scored_in_float32(arrays):
    labels = labels_of(arrays["target"])
    rounded = arrays["logits"].bfloat16()
    exact = OFALoss(label_smoothing=0.1)(rounded.float(), labels)
    sums = OFALoss(label_smoothing=0.1)(rounded, labels)
    assert sums.loss.dtype == torch.float32
    torch.testing.assert_close(sums.loss, exact.loss)


def test_all_logits_are_never_in_float32_at_once(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4 * 1000)
    logits = torch.randn(2, 32, 1000, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    labels = torch.randint(1000, (2, 32), generator=torch.Generator().manual_seed(1))
    seen: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                seen.append(result.numel())
            return result

    with Watch():
        sums = OFALoss(label_smoothing=0.1, encouraging_log_end=0.75)(logits, labels)
        sums.loss.backward()
    assert max(seen) == 4 * 1000 < logits.numel()
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16


def test_a_batch_without_labels_costs_nothing():
    logits = torch.randn(2, 3, 9, requires_grad=True)
    sums = OFALoss(drop_worst_ratio=0.5)(logits, torch.full((2, 3), -100), step=1)
    sums.loss.backward()
    assert sums.loss == 0 and sums.num_tokens == 0 and logits.grad.abs().sum() == 0


def test_dropping_the_worst_keeps_one_token():
    sums = OFALoss(drop_worst_ratio=0.9)(torch.randn(1, 1, 9), torch.tensor([[3]]), step=1)
    assert sums.num_tokens == 1 and sums.loss > 0


def test_a_row_of_no_confidence_costs_nothing_under_a_constraint():
    masks = torch.zeros(2, 1, 9, dtype=torch.bool)
    masks[..., [4, 5]] = True
    logits = torch.randn(2, 1, 9, requires_grad=True)
    loss = OFALoss(label_smoothing=0.1, encouraging_log_end=0.75)
    sums = loss(logits, torch.tensor([[4], [5]]), torch.tensor([0.0, 1.0]), masks)
    sums.loss.backward()
    assert sums.loss.isfinite() and logits.grad.isfinite().all()
    assert logits.grad[0].abs().sum() == 0 and logits.grad[1].abs().sum() > 0


def test_range_and_masks_together_allow_what_both_allow(arrays):
    labels = labels_of(arrays["target"])
    masks = arrays["constraint_masks"].clone()
    both = OFALoss(label_smoothing=0.1, constraint_range=(20, 45))(arrays["logits"], labels, None, masks)
    masks[..., 4:20] = masks[..., 45:] = False
    one = OFALoss(label_smoothing=0.1)(arrays["logits"], labels, None, masks)
    torch.testing.assert_close(both.loss, one.loss)


@pytest.mark.parametrize(
    "options, labels, message",
    [
        ({}, [[5, 9]], "Label 1 of row 0 is the token 9, but the model has 9 tokens"),
        ({}, [[-7, 3]], "Label 0 of row 0 is the token -7, but the model has 9 tokens"),
        ({"constraint_range": (6, 8)}, [[6, 5]], "Label 1 of row 0 is the token 5, which the constraint of the loss"),
        ({"constraint_range": (6, 10)}, [[6, 7]], "`constraint_range` ends at 10, but the model has 9 tokens"),
        ({"rdrop_alpha": 1.0}, [[6, 7]], "R-Drop compares every row with itself, but there are 1 rows"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(options, labels, message):
    with pytest.raises(ValueError, match=message):
        OFALoss(**options)(torch.randn(1, 2, 9), torch.tensor(labels))


def test_a_label_outside_of_its_closed_list_is_refused():
    masks = torch.ones(1, 2, 9, dtype=torch.bool)
    masks[0, 1, 7] = False
    with pytest.raises(ValueError, match="Label 1 of row 0 is the token 7, which the constraint of the loss forbids"):
        OFALoss()(torch.randn(1, 2, 9), torch.tensor([[6, 7]]), constraint_masks=masks)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"label_smoothing": 1.0}, "`label_smoothing` is a part of a whole"),
        ({"drop_worst_ratio": -0.1}, "`drop_worst_ratio` is a part of a whole"),
        ({"encouraging_log_end": 1.5}, "`encouraging_log_end` is a probability"),
        ({"constraint_range": (2, 9)}, "`constraint_range` is the first token"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OFALoss(**options)
