"""Pre-training as the official code does it, through `Trainer`."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..modeling_ofa import OFAForConditionalGeneration
from .losses import OFALoss
from .pretraining_data import MixedBatches, PretrainingCollator, PretrainingMixture
from .pretraining_rows import Negatives, PretrainingRows
from .recipes import last_checkpoint
from .streams import StreamShare
from .trainer import OFATrainer


DATA_STATE = "data_state.json"
_PATCH = 16


class PretrainingTrainer(Trainer):
    """
    `Trainer` for a [`PretrainingMixture`].

    A step costs the mean over all tokens of its image-text rows, and the mean over all tokens of its other rows, added
    up. Both are means over all processes and accumulated batches, so it does not matter how a step is divided. As
    officially, all weights decay.

    Each process reads its own streams. A checkpoint says where all of them are, and a run goes on with the next row,
    on any number of processes.

    Args:
        model ([`OFAForConditionalGeneration`]): The model.
        args ([`TrainingArguments`]):
            With `max_steps`, since the data has no end. `per_device_train_batch_size` counts image-text Examples, of
            which each makes two rows.
        train_dataset ([`PretrainingMixture`]): The data. Its processor is saved beside the model.
        sample_patch_num (`int`, *optional*):
            Patches that are drawn from each picture of image-text rows, officially 196; all by default.
        **kwargs: Passed to `Trainer`.

    Raises:
        ValueError: Model, data and arguments do not fit together.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: OFAForConditionalGeneration,
        args: TrainingArguments,
        train_dataset: PretrainingMixture,
        sample_patch_num: int | None = None,
        **kwargs: Any,
    ):
        self.mixture, self.sample_patch_num = train_dataset, sample_patch_num
        self._check(model.config, args)
        args.ignore_data_skip = True  # the streams are where they were, and batches need not be made to be thrown away
        processor = train_dataset.rows.processor
        super().__init__(model, args, train_dataset=train_dataset, processing_class=processor, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "Processes that share the weights need batches that are alike, and those of pre-training are not: use "
                "plain data parallelism."
            )
        self.loss = OFALoss()
        self._taken = 0  # batches, by all processes
        self._streams: dict[int, Any] = {}  # where they are
        self._part_losses = torch.zeros(2, device=args.device)
        self._logged_step = 0

    def _check(self, config: Any, args: TrainingArguments) -> None:
        rows = self.mixture.rows
        if args.max_steps <= 0:
            raise ValueError("The data of pre-training has no end: max_steps must say when to stop.")
        if len(rows.tokenizer) > config.vocab_size:
            raise ValueError(
                f"The tokenizer has {len(rows.tokenizer):,} tokens, but the model {config.vocab_size:,}: they do not "
                "belong together."
            )
        if rows.code_image_size != config.code_image_size:
            raise ValueError(
                f"Rows are made for a code_image_size of {rows.code_image_size}, but the model's is "
                f"{config.code_image_size}."
            )
        side = -(-rows.image_size // _PATCH)
        largest = max(side, 2 * config.code_image_size // _PATCH)
        if largest > config.image_bucket_size:
            raise ValueError(
                f"Pictures of {largest * _PATCH} pixels have {largest} patches a side, but this model has positions "
                f"for {config.image_bucket_size} (image_bucket_size)."
            )
        if self.sample_patch_num is not None and not 0 < self.sample_patch_num <= side**2:
            raise ValueError(
                f"sample_patch_num is {self.sample_patch_num}, but pictures of {rows.image_size} pixels have "
                f"{side**2} patches."
            )
        workers = max(1, args.dataloader_num_workers)
        StreamShare(self.mixture.num_streams, args.world_size, num_workers=workers)  # refuses what cannot be shared

    get_decay_parameter_names = OFATrainer.get_decay_parameter_names

    # Where the data is

    def get_train_dataloader(self) -> DataLoader:
        args, rows = self.args, self.mixture.rows
        batches = MixedBatches(
            self.mixture,
            args.per_device_train_batch_size,
            args.world_size,
            args.process_index,
            self._taken,
            dict(self._streams),
        )
        collate = PretrainingCollator(rows.processor, rows.image_size, rows.code_image_size)
        return DataLoader(
            batches,
            batch_size=None,
            collate_fn=collate,  # type: ignore[arg-type]  # without a batch size it gets what the data set gives
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            # Else it draws from the generator of dropout, and a run that goes on would draw once more than one that
            # was never stopped.
            generator=torch.Generator(),
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        Trains, from a checkpoint on if one is named, or from the last whole one with `True`.

        Raises:
            ValueError: There is no such checkpoint, or its data was divided into another number of streams.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"{self.args.output_dir} holds no checkpoint to go on from.")
        self._taken, self._streams, self._logged_step = 0, {}, 0
        if resume_from_checkpoint:
            self._load_data_state(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def _load_data_state(self, folder: Path) -> None:
        try:
            state = json.loads((folder / DATA_STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} does not say where its data was, so it cannot be resumed: {error}") from error
        if state["num_streams"] != self.mixture.num_streams:
            raise ValueError(
                f"{folder} was written with {state['num_streams']} streams of data: num_streams cannot become "
                f"{self.mixture.num_streams}."
            )
        self._taken = state["taken"]
        self._streams = {int(number): stream for number, stream in state["streams"].items()}
        self._logged_step = state["step"]

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._streams.update((batch["stream"], batch["state"]) for batch in batches)
        self._taken += len(batches) * self.args.world_size
        return batches, num_items

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        args = self.args
        share = StreamShare(self.mixture.num_streams, args.world_size, args.process_index, start=self._taken)
        own = {number: state for number, state in self._streams.items() if number in share}
        streams = dict(item for one in gather_object([own]) for item in one.items())
        if args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            state = {
                "num_streams": self.mixture.num_streams,
                "step": self.state.global_step,
                "taken": self._taken,
                "streams": streams,
            }
            (folder / DATA_STATE).write_text(json.dumps(state), encoding="utf-8")
        super()._save_checkpoint(model, trial)

    # What a step costs

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Counts what is to be learned in both parts of a step, over all processes: `(2,)`."""
        counts = torch.zeros(2, dtype=torch.long, device=device)
        for batch in batch_samples:
            for i, part in enumerate(batch["parts"]):
                counts[i] += part["labels"].ne(-100).sum()
        return self.accelerator.reduce(counts, reduction="sum")

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Goes forward and backward with one part after the other, so that one of them is in memory at a time."""
        parts, losses = inputs["parts"], torch.zeros(2, device=self.args.device)
        state, ends_step = self.accelerator.gradient_state, self.accelerator.sync_gradients
        for i, part in enumerate(parts):
            is_last = i == len(parts) - 1
            if i == 0 and self.sample_patch_num is not None:
                part["sample_patch_num"] = self.sample_patch_num
            state._set_sync_gradients(ends_step and is_last)
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                losses[i] = super().training_step(model, part, num_items_in_batch[i])
        self._part_losses += losses
        return losses.sum()

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        labels, weights = inputs.pop("labels"), inputs.pop("sample_weights")
        with _rows_share_pictures(self.accelerator.unwrap_model(model), inputs.pop("picture_index", None)):
            outputs = model(**inputs, use_cache=False)
        # The gradients of processes are averaged, but their tokens are to be added up.
        loss = self.loss(outputs.logits, labels, weights).loss * self.args.world_size / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: Any) -> int:
        return sum(super(PretrainingTrainer, self).floating_point_ops(part) for part in inputs["parts"])

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs what both parts cost beside their sum."""
        if "loss" in logs:
            steps = max(1, self.state.global_step - self._logged_step)
            pairs, extras = (self.accelerator.reduce(self._part_losses, reduction="mean") / steps).tolist()
            logs = {**logs, "loss_image_text": pairs, "loss_extra": extras}
            self._part_losses.zero_()
            self._logged_step = self.state.global_step
        super().log(logs, *args, **kwargs)


@contextlib.contextmanager
def _rows_share_pictures(model: OFAForConditionalGeneration, picture_index: torch.Tensor | None) -> Iterator[None]:
    """Lets the ResNet see each picture once, and gives its features to all rows that ask about it."""
    if picture_index is None:
        yield
        return
    resnet = model.get_encoder().embed_images
    hook = resnet.register_forward_hook(lambda module, args, features: features.index_select(0, picture_index))
    try:
        yield
    finally:
        hook.remove()


__all__ = ["Negatives", "PretrainingCollator", "PretrainingMixture", "PretrainingRows", "PretrainingTrainer"]
