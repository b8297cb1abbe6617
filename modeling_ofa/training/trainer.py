"""`Seq2SeqTrainer` with the official losses, and with evaluation that knows the task of each row."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainingArguments

from ..answers_ofa import constraint_masks
from ..constraints_ofa import TrieConstraint
from ..data.collator import DataCollatorForOFA
from ..modeling_ofa import shift_tokens_right
from ..processing_ofa import OFAProcessor
from ..tasks_ofa import TASKS, Task, get_task
from ..trie_ofa import AnswerTrie
from .ema import EMACallback
from .losses import LossSums, OFALoss
from .sharding import ShardingTrainer


@dataclass
class OFATrainingArguments(Seq2SeqTrainingArguments):
    """
    [`~transformers.Seq2SeqTrainingArguments`] and what [`OFATrainer`] adds to them. `remove_unused_columns` is off,
    since no column of a raw row is an argument of the model, and `label_smoothing_factor` is that of [`OFALoss`].

    Args:
        constrained_loss (`bool`, *optional*, defaults to `False`):
            Whether the loss knows the closed list of a task that has one, and only rules out its answers. Lists of the
            data set (VQA's answers, ImageNet's classes) belong to the processor: `OFAProcessor(answers={"vqa": […]})`.
        constraint_range (`list[int]`, *optional*):
            First token, and the one behind the last, of those that the loss takes for possible: `[50265, 58457]`, the
            image codes, in text-to-image training.
        drop_worst_ratio (`float`, *optional*, defaults to 0.0), drop_worst_after (`int`, *optional*, defaults to 0):
            Part of the tokens of each batch that is left out, those with the largest loss, after so many updates.
        rdrop_alpha (`float`, *optional*): Weight of R-Drop, which runs every batch twice; none by default.
        encouraging_log_end (`float`, *optional*): Turns encouraging loss on (0.75 is the authors' first try).
        sample_patch_num (`int`, *optional*): Patches that are kept of each picture in training.
        ema_decay (`float`, *optional*): Turns the moving average of the weights on ([`EMACallback`]).
        ema_start_step (`int`, *optional*, defaults to 0): The step after which averaging starts.
        ema_final_model (`bool`, *optional*, defaults to `True`):
            Whether the averaged weights are the model's after training.

    Raises:
        ValueError: An option is out of its range.
    """

    remove_unused_columns: bool = field(default=False, metadata={"help": "Drop columns that the model does not take."})
    constrained_loss: bool = field(default=False, metadata={"help": "Let the loss know the closed list of a task."})
    constraint_range: list[int] | None = field(
        default=None, metadata={"help": "First token, and the one behind the last, that may be written.", "nargs": 2}
    )
    drop_worst_ratio: float = field(default=0.0, metadata={"help": "Part of the tokens left out, the worst."})
    drop_worst_after: int = field(default=0, metadata={"help": "Updates before the worst tokens are left out."})
    rdrop_alpha: float | None = field(default=None, metadata={"help": "Weight of R-Drop."})
    encouraging_log_end: float | None = field(default=None, metadata={"help": "Turns encouraging loss on: 0.75, …"})
    sample_patch_num: int | None = field(default=None, metadata={"help": "Patches kept of each picture in training."})
    ema_decay: float | None = field(default=None, metadata={"help": "Turns the average of the weights on: 0.9999, …"})
    ema_start_step: int = field(default=0, metadata={"help": "The step after which averaging starts."})
    ema_final_model: bool = field(default=True, metadata={"help": "Whether the average is the model at the end."})

    def __post_init__(self):
        super().__post_init__()
        if self.accelerator_config.dispatch_batches is None:
            self.accelerator_config.dispatch_batches = False  # a stream's batches differ in size, and cannot be sent
        self.loss()
        if self.ema_decay is not None:
            EMACallback(self.ema_decay)
        if self.sample_patch_num is not None and self.sample_patch_num < 1:
            raise ValueError(f"`sample_patch_num` is a number of patches, not {self.sample_patch_num}.")

    def loss(self) -> OFALoss:
        """
        Gives the loss that these arguments ask for.

        Raises:
            ValueError: An option is out of its range.
        """
        return OFALoss(
            label_smoothing=self.label_smoothing_factor,
            constraint_range=self.constraint_range,
            drop_worst_ratio=self.drop_worst_ratio,
            drop_worst_after=self.drop_worst_after,
            rdrop_alpha=self.rdrop_alpha,
            encouraging_log_end=self.encouraging_log_end,
        )


class _RowsOfTasks:
    """
    Batches of a [`DataCollatorForOFA`], with what the trainer must know of the rows: `task_ids` of shape `(rows,)`,
    places in `tasks`, and `sample_weights` of shape `(rows,)`, where rows have a `confidence`. Both are tensors, so
    that they are split and sent among processes as the rest of the batch.
    """

    def __init__(self, collator: DataCollatorForOFA):
        self.collator = collator

    @property
    def tasks(self) -> list[Task]:
        """The tasks that rows may have: those with a name, and the collator's."""
        own = self.collator.task
        return [*TASKS.values()] if own is None else [*TASKS.values(), own]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        batch = self.collator(rows)
        known = self.tasks
        named: list[Any] = [row.get("task") or self.collator.task for row in rows]
        tasks = [get_task(one) for one in named]
        for task in tasks:
            if task not in known:
                raise ValueError(f"Task {task.name!r} has no name for the trainer: register_task(task) gives it one.")
        batch["task_ids"] = torch.tensor([known.index(task) for task in tasks])
        confidence = [row.get("confidence") for row in rows]
        if any(one is not None for one in confidence):
            batch["sample_weights"] = torch.tensor([1.0 if one is None else float(one) for one in confidence])
        return batch


class OFATrainer(ShardingTrainer):
    """
    [`~transformers.Seq2SeqTrainer`] with the losses of the official recipes ([`OFALoss`]). What a batch costs is
    divided by the tokens that count in all its parts, whatever `gradient_accumulation_steps` and the number of
    processes. All weights decay, biases and norms too, as officially. Rows with a `confidence` are weighted by it in
    training; with `predict_with_generate` each row is decoded as its task is (constraint, lengths, beams), behind its
    decoder prompt, which is not part of the predictions. `nll_loss`, the plain negative log-likelihood, is logged
    beside `loss`. In evaluation both are means over tokens, whatever the batches.

    Args:
        model ([`OFAForConditionalGeneration`]): The model, or a `peft` model of it.
        args ([`OFATrainingArguments`]): The arguments.
        data_collator ([`DataCollatorForOFA`], *optional*):
            Makes batches; by default `DataCollatorForOFA(processing_class)`. With a collator of another kind the
            trainer does not know tasks: `constrained_loss` is refused, and generation has the model's own settings.
        processing_class ([`OFAProcessor`], *optional*): By default the collator's.
        **kwargs: As those of [`~transformers.Seq2SeqTrainer`].

    Raises:
        TypeError: `args` are others.
        ValueError: Processor, arguments and model do not fit each other.

    Example:

    ```python
    >>> arguments = OFATrainingArguments("out", label_smoothing_factor=0.1, ema_decay=0.9999)
    >>> trainer = OFATrainer(model, arguments, processing_class=processor, train_dataset=rows)
    >>> trainer.train()
    ```
    """

    args: OFATrainingArguments
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module | None = None,
        args: OFATrainingArguments | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        *,
        processing_class: Any = None,
        **kwargs: Any,
    ):
        if not isinstance(args, OFATrainingArguments):
            raise TypeError(f"OFATrainer takes OFATrainingArguments, not {type(args).__name__}.")
        if data_collator is None and isinstance(processing_class, OFAProcessor):
            data_collator = DataCollatorForOFA(processing_class)
        if isinstance(data_collator, DataCollatorForOFA):
            processing_class = processing_class or data_collator.processor
            data_collator = _RowsOfTasks(data_collator)
        elif args.constrained_loss:
            raise ValueError("`constrained_loss` needs the tasks of rows: use a DataCollatorForOFA.")
        super().__init__(model, args, data_collator, processing_class=processing_class, **kwargs)
        self.loss = args.loss()
        self._check_fit()
        self._tries: dict[str, AnswerTrie] = {}
        # Loss, negative log-likelihood and tokens since they were last logged, in evaluation and in training.
        self._sums = {training: torch.zeros(3, device=args.device) for training in (False, True)}
        self._ema = None
        if args.ema_decay is not None:
            self._ema = EMACallback(args.ema_decay, args.ema_start_step, args.ema_final_model)
            self.add_callback(self._ema)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters()]

    def _check_fit(self) -> None:
        """Refuses what would fail, or fail to learn, in the middle of training."""
        if isinstance(self.processing_class, OFAProcessor):
            known, has = self.model.config.vocab_size, len(self.processing_class.tokenizer)
            if has > known:
                raise ValueError(
                    f"The processor has {has:,} tokens, but the model knows {known:,}: take both from one checkpoint, "
                    f"or call model.resize_token_embeddings({has})."
                )
        if self.args.fp16 and any(p.requires_grad and p.dtype == torch.float16 for p in self.model.parameters()):
            raise ValueError(
                "fp16 training keeps its weights in float32, but these are float16: load the model with "
                "dtype=torch.float32."
            )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if self._ema is not None and isinstance(resume_from_checkpoint, str):
            self._ema.resume_from = resume_from_checkpoint
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        batches, number = super().get_batch_samples(epoch_iterator, num_batches, device)
        if number is not None:
            # As many labels as count, since only those are counted.
            step = self.state.global_step
            counted = [{"labels": torch.zeros(self.loss.count(batch["labels"], step))} for batch in batches]
            number = self._get_num_items_in_batch(counted, device)
        return batches, number

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """
        Gives the loss of a batch by [`OFALoss`]; in evaluation without R-Drop and with all tokens.

        Raises:
            ValueError: The batch has no labels, or one that [`OFALoss`] refuses.
        """
        inputs = dict(inputs)
        if inputs.get("labels") is None:
            raise ValueError(f"A batch has no labels, only {', '.join(inputs)}: give each row a target.")
        loss = self.loss if model.training else replace(self.loss, rdrop_alpha=None, drop_worst_ratio=0.0)
        if "decoder_input_ids" not in inputs:
            config = self.model.config
            inputs["decoder_input_ids"] = shift_tokens_right(
                inputs["labels"], config.pad_token_id, config.decoder_start_token_id
            )
        if loss.rdrop_alpha is not None:
            inputs = {name: torch.cat([value, value]) for name, value in inputs.items()}
        if model.training and self.args.sample_patch_num is not None and "pixel_values" in inputs:
            inputs["sample_patch_num"] = self.args.sample_patch_num
        labels, tasks, weights = (inputs.pop(name, None) for name in ("labels", "task_ids", "sample_weights"))
        outputs = model(**inputs, use_cache=False)
        if not model.training:
            labels = self._without_repeats(labels)
        masks = self._answer_masks(labels, tasks) if self.args.constrained_loss else None
        sums: LossSums = loss(outputs.logits, labels, weights, masks, step=self.state.global_step)

        number = sums.nll.new_tensor(sums.num_tokens)
        self._sums[model.training] += torch.stack([sums.loss.detach(), sums.nll, number])
        if num_items_in_batch is None:
            mean = sums.loss / max(1, sums.num_tokens)
        else:
            mean = sums.loss / num_items_in_batch
            if self.args.average_tokens_across_devices:
                mean = mean * (self.accelerator.num_processes // self.get_tp_size())  # gradients are averaged
        return (mean, outputs) if return_outputs else mean

    def _without_repeats(self, labels: torch.Tensor) -> torch.Tensor:
        """Takes the labels from rows that only fill the last batch up, so that all processes have as many."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return labels
        rows = torch.arange(len(labels), device=labels.device) + self.args.process_index * len(labels)
        return labels.masked_fill((rows >= state.remainder)[:, None], -100)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """
        Gives loss, predictions and labels of a batch; with `predict_with_generate`, predictions are padded where the
        decoder prompt was, so that `batch_decode` gives the answers.
        """
        inputs = self._prepare_inputs(inputs)
        model_inputs = {name: value for name, value in inputs.items() if name not in ("task_ids", "sample_weights")}
        labels = inputs.get("labels")
        if prediction_loss_only or not self.args.predict_with_generate:
            given = model_inputs if labels is None else inputs
            return super().prediction_step(model, given, prediction_loss_only, ignore_keys)
        options = gen_kwargs or getattr(self, "_gen_kwargs", {})
        if "task_ids" in inputs:
            tasks = self._tasks(inputs["task_ids"])
            known = {task.name: trie for task in tasks if (trie := self._trie(task)) is not None}
            options = {**self.processing_class.generation_kwargs(tasks, answers=known or None), **options}
        # Without labels the base class generates only: their loss is another one here.
        model_inputs.pop("labels", None)
        # It also fills the model's settings with defaults (20 tokens at most), which would be saved with checkpoints.
        settings = self.model.generation_config
        self.model.generation_config = copy.deepcopy(settings)
        try:
            _, ids, _ = super().prediction_step(model, model_inputs, False, ignore_keys, **options)
        finally:
            self.model.generation_config = settings
        lengths = inputs.get("decoder_prompt_lengths")
        if lengths is None and labels is None and "decoder_attention_mask" in inputs:
            lengths = inputs["decoder_attention_mask"].sum(dim=1)
        if lengths is not None:
            places = torch.arange(ids.shape[1], device=ids.device)
            ids = ids.masked_fill(places < lengths[:, None], self.model.config.pad_token_id)
        loss = None
        if labels is not None:
            number = self._get_num_items_in_batch([inputs], self.args.device)
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs, num_items_in_batch=number).detach()
        return loss, ids, labels

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if (means := self._means(training=False)) is not None:
            # The mean of tokens, where the base class has that of batches, which changes with their size.
            output.metrics[f"{metric_key_prefix}_loss"], output.metrics[f"{metric_key_prefix}_nll_loss"] = means
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and (means := self._means(training=True)) is not None:
            logs["nll_loss"] = means[1]
        super().log(logs, *args, **kwargs)

    def _means(self, training: bool) -> tuple[float, float] | None:
        """Loss and negative log-likelihood of a token since the last call, over all processes."""
        loss, nll, number = self.accelerator.gather(self._sums[training].unsqueeze(0)).sum(dim=0).tolist()
        self._sums[training].zero_()
        return (loss / number, nll / number) if number else None

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A checkpoint that lacks weights, or has others, is one of another model."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = [name for name in load_result.missing_keys if name not in tied]
        unknown = list(load_result.unexpected_keys)
        if missing or unknown:
            raise ValueError(
                f"The checkpoint does not fit the model: it lacks {', '.join(missing[:3]) or 'nothing'} and has "
                f"{', '.join(unknown[:3]) or 'nothing'} too many ({len(missing)} and {len(unknown)} weights)."
            )

    # Tasks

    def _tasks(self, task_ids: torch.Tensor) -> list[Task]:
        known = self.data_collator.tasks
        return [known[place] for place in task_ids.tolist()]

    def _trie(self, task: Task) -> AnswerTrie | None:
        """The trie of a task's closed list, built once; `None` if it writes freely."""
        answers = self.processing_class.closed_list(task)
        if answers is not None and task.name not in self._tries:
            self._tries[task.name] = self.processing_class.answer_trie(answers, task)
        return self._tries.get(task.name)

    def _answer_masks(self, labels: torch.Tensor, task_ids: torch.Tensor) -> torch.Tensor | None:
        """What may be written at each label, `(rows, length, vocab_size)`: answers where a task has a closed list."""
        masks, vocab_size = None, self.model.config.vocab_size
        tasks = self._tasks(task_ids)
        for task in {task.name: task for task in tasks}.values():
            trie = self._trie(task)
            if trie is None:
                if task.answer == "label" or task.metric.startswith("vqa"):
                    raise ValueError(
                        f"`constrained_loss` needs the closed list of task {task.name!r}: give the processor "
                        f"answers={{{task.name!r}: […]}}."
                    )
                continue
            if masks is None:
                masks = torch.ones(*labels.shape, vocab_size, dtype=torch.bool, device=labels.device)
            rows = torch.tensor([one.name == task.name for one in tasks], device=labels.device)
            masks[rows] = constraint_masks(labels[rows], TrieConstraint(trie), vocab_size)
        return masks


__all__ = ["OFATrainer", "OFATrainingArguments"]
