"""Exponential moving average of the weights, for any `Trainer`."""

from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


FILE_NAME = "ema.safetensors"


class EMACallback(TrainerCallback):
    """
    Averages the weights that are trained, in float32 whatever their own precision, and lets the average speak wherever
    the model is looked at: evaluation during training runs with it, and a checkpoint's weights are the averaged ones,
    so that `from_pretrained(checkpoint)` and `load_best_model_at_end` give what was evaluated. The weights from which
    training goes on lie beside them, in `ema.safetensors`; resuming needs this callback again.

    Args:
        decay (`float`, *optional*, defaults to 0.9999): What is kept of the average at each step.
        start_step (`int`, *optional*, defaults to 0): Up to this step the average is the weights themselves.
        final_model (`bool`, *optional*, defaults to `True`):
            Whether the model has the averaged weights after training. If not, it has those of the last step, or of
            the best checkpoint where `load_best_model_at_end` has loaded it.
        resume_from (`str`, *optional*):
            The checkpoint that training resumes from, if it is none of `output_dir`. `OFATrainer` fills it in.

    Raises:
        ValueError: `decay` is out of range.

    Example:

    ```python
    >>> trainer = Seq2SeqTrainer(model, arguments, callbacks=[EMACallback(0.9999)], train_dataset=rows)
    ```
    """

    def __init__(
        self, decay: float = 0.9999, start_step: int = 0, final_model: bool = True, resume_from: str | None = None
    ):
        if not 0.0 < decay < 1.0:
            raise ValueError(f"The decay of an average is between 0 and 1, not {decay}.")
        self.decay = decay
        self.start_step = start_step
        self.final_model = final_model
        self.resume_from = resume_from
        self.averages: dict[str, torch.Tensor] = {}
        self._update = get_ema_multi_avg_fn(decay)
        # The weights in training, while the model has the averaged ones.
        self._set_aside: dict[str, torch.Tensor] | None = None
        self._saved_step: int | None = None

    @torch.no_grad()
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ):
        """
        Raises:
            ValueError: DeepSpeed has the weights, or training resumes from a checkpoint without an average.
        """
        kind, is_fsdp2 = AcceleratorState().distributed_type, AcceleratorState().is_fsdp2
        kinds = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.FSDP)
        if kind in kinds and not is_fsdp2:
            raise ValueError(
                f"{kind.value} keeps the weights to itself, where they cannot be averaged: train without EMA, with "
                "plain data parallelism, or with the second version of FSDP."
            )
        self._set_aside = self._saved_step = None
        weights = _trained(model)
        self.averages = {name: weight.float().clone() for name, weight in weights.items()}
        if state.global_step == 0:
            return
        path = Path(self.resume_from or _checkpoint(args, state)) / FILE_NAME
        if not path.is_file():
            raise ValueError(
                f"Training resumes at step {state.global_step}, but there is no average of weights at {path}: give "
                "EMACallback(resume_from=FOLDER), or start anew without EMA."
            )
        for key, saved in load_file(path).items():
            kind, name = key.split(".", 1)
            if name not in weights or weights[name].shape != saved.shape:
                raise ValueError(f"{path} has an average of {name}, which this model does not train: is it another?")
            _put(saved, (self.averages if kind == "average" else weights)[name])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ):
        self._restore(model)

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ):
        averages, weights = list(self.averages.values()), [one.float() for one in _trained(model).values()]
        if state.global_step <= self.start_step:
            torch._foreach_copy_(averages, weights)
        else:
            self._update(averages, weights, state.global_step)
        self._apply_if_looked_at(args, state, control, model)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ):
        self._apply_if_looked_at(args, state, control, model)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self._save(args, state)

    def _save(self, args: TrainingArguments, state: TrainerState) -> None:
        """Writes what a checkpoint's weights do not tell: those in training, and averages finer than their type."""
        if self._saved_step == state.global_step:
            return
        self._saved_step = state.global_step
        tensors = {f"training.{name}": weight for name, weight in (self._set_aside or {}).items()}
        for name, average in self.averages.items():
            if self._set_aside is None or self._set_aside[name].dtype != average.dtype:
                tensors[f"average.{name}"] = average
        for name, tensor in tensors.items():
            # All processes put their pieces together, but one keeps the whole.
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            tensors[name] = whole.cpu() if args.should_save else tensor
        if not args.should_save:
            return
        folder = _checkpoint(args, state)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / FILE_NAME)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ):
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._set_aside = None  # the best checkpoint's weights are averages already
        elif self.final_model:
            self._apply(model)
            self._set_aside = None
        else:
            self._restore(model)

    def _apply_if_looked_at(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any
    ) -> None:
        if control.should_evaluate or control.should_save:
            self._apply(model)
        if control.should_save:
            self._save(args, state)  # before the trainer's own files, the last of which says that all are there

    @torch.no_grad()
    def _apply(self, model: Any) -> None:
        """Gives the model the averaged weights."""
        if self._set_aside is None:
            weights = _trained(model)
            self._set_aside = {name: weight.clone() for name, weight in weights.items()}
            for name, weight in weights.items():
                weight.copy_(self.averages[name])

    @torch.no_grad()
    def _restore(self, model: Any) -> None:
        """Gives the model the weights in training."""
        if self._set_aside is not None:
            for name, weight in _trained(model).items():
                weight.copy_(self._set_aside[name])
            self._set_aside = None


def _trained(model: Any) -> dict[str, torch.Tensor]:
    """The weights that are trained, as tensors that share their memory; with FSDP, the pieces of this process."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # evaluation leaves whole copies behind, which would be trained in place of the pieces
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def _put(whole: torch.Tensor, weight: torch.Tensor) -> None:
    """Copies a tensor to one of the same shape, or the pieces of it to one in pieces."""
    if isinstance(weight, DTensor):
        whole = distribute_tensor(whole.to(weight.device), weight.device_mesh, weight.placements)
    weight.copy_(whole)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """Where the `Trainer` saves at this step."""
    return Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


__all__ = ["EMACallback"]
