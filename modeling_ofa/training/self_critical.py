"""
Self-critical training: the model answers several times, and what earned more than the other answers becomes likelier.

Rennie et al., "Self-critical Sequence Training for Image Captioning" (https://arxiv.org/abs/1612.00563), with the mean
reward of the picture's other answers as the baseline (Luo, https://arxiv.org/abs/2003.09971): OFA's second stage for
captions, where the reward is CIDEr-D.
"""

import contextlib
import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, register_fsdp_forward_method
from torch.utils.data import DataLoader, IterableDataset
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from ..answers_ofa import constraint_masks
from ..constraints_ofa import Constraint, RowLogitsProcessor, RowOptions, TokenRange
from ..data.collator import DataCollatorForOFA, encoded_picture
from ..evaluation.captions import CiderD, reward_text
from ..processing_ofa import OFAProcessor
from ..tasks_ofa import Task, get_task
from .trainer import OFATrainer, OFATrainingArguments


class Reward(Protocol):
    """What answers are worth: any function or object that is called like this."""

    def __call__(self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Sequence[float]:
        """
        Rewards answers.

        Args:
            answers (`Sequence[Mapping[str, Any]]`):
                What [`OFAProcessor.post_process`] gives: `{"text": …}` for a caption, `{"codes": …}` for a drawing, …
            rows (`Sequence[Mapping[str, Any]]`):
                The row of data of each answer, with all of its columns. The answers to one row are side by side.

        Returns:
            `Sequence[float]`: A finite number for each answer. Its scale counts, its zero does not.
        """


class CiderReward:
    """
    The CIDEr-D of texts against the `references` of their row (or its `target`, if it has no others), from 0 to 10.

    Args:
        cider ([`CiderD`]):
            Has the document frequencies, counted on texts in the form that [`reward_text`] gives.

    Example:

    ```python
    >>> reward = CiderReward.from_references(train_dataset["references"])
    >>> reward.cider.save("train_df.json")
    >>> reward = CiderReward(CiderD.load("train_df.json"))
    >>> reward([{"text": "A black dog."}], [{"references": ["a black dog", "a dog on a beach"]}])
    ```
    """

    def __init__(self, cider: CiderD):
        self.cider = cider

    @classmethod
    def from_references(cls, references: Iterable[Sequence[str]]) -> "CiderReward":
        """
        Counts document frequencies.

        Args:
            references (`Iterable[Sequence[str]]`):
                The captions of each picture of the training set, each picture once.
        """
        return cls(CiderD.from_references([reward_text(text) for text in texts] for texts in references))

    def __call__(self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """
        Scores answers, as [`Reward`] describes it.

        Raises:
            `ValueError`: if there are no answers, if an answer is no text, or if a row has no reference.
        """
        candidates, references = [], []
        for answer, row in zip(answers, rows, strict=True):
            if "text" not in answer:
                raise ValueError(f"CIDEr-D compares texts, but an answer has {', '.join(answer)} instead of one.")
            texts = row.get("references") or [row[name] for name in ("target",) if row.get(name)]
            if not texts:
                raise ValueError(
                    f"CIDEr-D compares answers with references, but a row of data has none (its columns: "
                    f"{', '.join(row)}): fill the column `references` (a list of texts) or `target`."
                )
            candidates.append(reward_text(answer["text"]))
            references.append([reward_text(text) for text in texts])
        return self.cider.score(candidates, references)


def advantages_over_others(rewards: torch.Tensor, written: torch.Tensor | None = None) -> torch.Tensor:
    """
    How much more than the mean of the other answers to the same row each answer earned. An answer that has no others
    is compared with nothing: its reward is its advantage.

    Args:
        rewards (`torch.FloatTensor` of shape `(rows, answers)`): The rewards.
        written (`torch.BoolTensor` of shape `(rows, answers)`, *optional*):
            False for what is no answer, which then counts for nothing. All are by default.

    Returns:
        `torch.FloatTensor` of shape `(rows, answers)`.
    """
    written = torch.ones_like(rewards, dtype=torch.bool) if written is None else written
    rewards = rewards * written
    others = (written.sum(1, keepdim=True) - 1).clamp(min=1)
    return (rewards - (rewards.sum(1, keepdim=True) - rewards) / others) * written


def self_critical_loss(
    logits: torch.Tensor, labels: torch.Tensor, advantages: torch.Tensor, masks: torch.Tensor | None = None
) -> torch.Tensor:
    """
    The sum of the negative log-probabilities of the answers' tokens, each times the advantage of its answer.

    Args:
        logits (`torch.FloatTensor` of shape `(answers, length, vocab_size)`): What the model says.
        labels (`torch.LongTensor` of shape `(answers, length)`): The answers, -100 where there is no token.
        advantages (`torch.FloatTensor` of shape `(answers,)`): What [`advantages_over_others`] gives.
        masks (`torch.BoolTensor` of shape `(answers, length, vocab_size)`, *optional*):
            The tokens among which each label was chosen, if not all.

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    logits = logits.float()
    if masks is not None:
        logits = logits.masked_fill(~masks, -math.inf)
    surprisals = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return (surprisals.view_as(labels).sum(1) * advantages).sum()


@dataclasses.dataclass
class SelfCriticalTrainingArguments(OFATrainingArguments):
    """
    [`OFATrainingArguments`], and how a model answers in self-critical training. Rows of data stay whole
    (`remove_unused_columns` is false), since rewards read them. `label_smoothing_factor` is that of evaluation, where
    answers are given; what else changes the loss of [`OFATrainer`] in training is refused.

    Args:
        num_samples (`int`, *optional*, defaults to 5): Answers to each row, at best two or more.
        do_sample (`bool`, *optional*, defaults to `False`):
            Whether answers are drawn from the model's probabilities. By default they are the beams of the search by
            which the task is decoded, as officially; tasks that sample at evaluation do so here too.
        sentence_avg (`bool`, *optional*, defaults to `False`):
            Whether the loss is divided by the number of answers, and not by the number of their tokens.
        constraint_range (`list[int]`, *optional*):
            First token, and the one behind the last, of those that may be written, beside `<s>`, `<pad>`, `</s>` and
            `<unk>`. It holds for the loss too, as does the constraint of a task that has one.

    Raises:
        `ValueError`: if a number is out of range, or an option has no meaning here.
    """

    num_samples: int = dataclasses.field(default=5, metadata={"help": "Answers to each row."})
    do_sample: bool = dataclasses.field(default=False, metadata={"help": "Draw answers instead of searching beams."})
    sentence_avg: bool = dataclasses.field(default=False, metadata={"help": "Mean over answers, not over tokens."})

    def __post_init__(self):
        super().__post_init__()
        if self.num_samples < 1:
            raise ValueError(f"num_samples is the number of answers to each row, at least 1, not {self.num_samples}.")
        for name in ("constrained_loss", "drop_worst_ratio", "rdrop_alpha", "encouraging_log_end", "sample_patch_num"):
            if getattr(self, name):
                raise ValueError(f"{name} is of training with given answers: self-critical training has none.")


class _KeepRows:
    """A collator whose batches have the rows that they were made of."""

    def __init__(self, collator: Callable[[list[Any]], Mapping[str, Any]]):
        self.collator = collator

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        if not rows:
            raise ValueError("The batch is empty: there is no row to answer.")
        return {**self.collator(rows), "rows": list(rows)}


class SelfCriticalTrainer(OFATrainer):
    """
    [`OFATrainer`] that trains on the model's own answers, each weighted by what it earned more than the others.

    Before each update the model answers all rows of it, in evaluation mode: the weights do not change in between, and
    so the loss is divided by the number of all tokens of the update, on all processes, as without accumulation. The
    loss then reads each picture once, with all answers to it as rows of the decoder. Evaluation is
    [`OFATrainer`]'s.

    The logs have `reward`, the mean of all answers, and the seconds that went by for each update: `sample_time` for
    answers, `reward_time` for rewards, `backward_time` for the loss and its gradients.

    Args:
        model ([`OFAForConditionalGeneration`]): The model, or what `peft` made of it.
        args ([`SelfCriticalTrainingArguments`]): How to train.
        reward ([`Reward`]): What answers are worth.
        processing_class ([`OFAProcessor`]): The model's processor, which decodes answers.
        data_collator (`Callable`, *optional*):
            Makes batches of rows; by default `DataCollatorForOFA(processing_class)`. Rows that name no task have its
            `task`. Labels are only read in evaluation.
        **kwargs: As for [`OFATrainer`].

    Raises:
        `TypeError`: if `args` or `processing_class` are others, or `reward` cannot be called.
        `ValueError`: if rows of data would not reach the reward.

    Example:

    ```python
    >>> trainer = SelfCriticalTrainer(
    ...     model,
    ...     SelfCriticalTrainingArguments("stage2", learning_rate=1e-5),
    ...     train_dataset=dataset,
    ...     processing_class=processor,
    ...     reward=CiderReward.from_references(dataset["references"]),
    ... )
    >>> trainer.train()
    ```
    """

    args: SelfCriticalTrainingArguments

    def __init__(
        self,
        model: Any,
        args: SelfCriticalTrainingArguments,
        *,
        reward: Reward,
        processing_class: OFAProcessor,
        data_collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ):
        if not isinstance(args, SelfCriticalTrainingArguments):
            raise TypeError(f"`args` are SelfCriticalTrainingArguments here, not {type(args).__name__}.")
        if not callable(reward):
            raise TypeError(f"`reward` is called with answers and rows of data, which {type(reward).__name__} is not.")
        if not isinstance(processing_class, OFAProcessor):
            raise TypeError(f"`processing_class` is the model's OFAProcessor, not {type(processing_class).__name__}.")
        if data_collator is None:
            data_collator = DataCollatorForOFA(processing_class)
        self._task_of_all = getattr(data_collator, "task", None)
        super().__init__(model, args, data_collator, processing_class=processing_class, **kwargs)
        if self.args.remove_unused_columns:
            raise ValueError("The reward reads the rows of data: set remove_unused_columns=False.")
        if self.args.n_gpu > 1:
            raise ValueError("One process drives one GPU here: start with `accelerate launch` or `torchrun`.")
        shared = self.args.world_size > 1 and isinstance(self.train_dataset, IterableDataset)
        if shared and self.args.accelerator_config.dispatch_batches is not False:
            raise ValueError(
                "Processes must read a stream of data themselves, since rows cannot be sent as tensors are: set "
                'accelerator_config={"dispatch_batches": False}.'
            )
        self.reward = reward
        bounds = self.args.constraint_range
        self._constraint = None if bounds is None else TokenRange(bounds[0], bounds[1])
        self._task_options: dict[str, dict[str, Any]] = {}
        self._seen: defaultdict[str, float] = defaultdict(float)

    def get_train_dataloader(self) -> DataLoader:
        collator = self.data_collator  # type: ignore[has-type]
        self.data_collator = _KeepRows(collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """Gives the batches of one update, answered and rewarded, and the number by which their loss is divided."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        answered = [self.answer(batch) for batch in batches]
        self._seen["updates"] += 1
        count = torch.tensor(sum(self._count(batch["labels"]) for batch in answered), device=device)
        return answered, self.accelerator.reduce(count, "sum").clamp(min=1)

    def answer(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """
        Lets the model answer the rows of a batch, and the reward judge.

        Args:
            batch (`Mapping[str, Any]`): What the collator made, and its `rows`.

        Returns:
            `dict[str, Any]`: What the encoder reads, for each row; and for each answer, those to one row side by side,
            `decoder_input_ids`, `labels` (-100 for prompts and padding), `code_masks` if any, and `advantages`; at
            last `constraints`, what may be written to each row or to all. The model stays in evaluation mode.

        Raises:
            `ValueError`: if a row names no task, or there is not one finite reward an answer.
        """
        rows = batch["rows"]
        tasks = [self._task(row) for row in rows]
        options, constraints = self._options(tasks)
        inputs = self._prepare_inputs({name: value for name, value in batch.items() if name != "rows"})
        inputs = self._without_targets(inputs)
        number = self.args.num_samples

        with self._timed("sample_time"):
            sequences = self._generate(inputs, options)
            answers = self.processing_class.post_process(
                sequences, tasks, image_sizes=self._image_sizes(rows, tasks), inputs=inputs
            )
        with self._timed("reward_time"):
            rewards = self._rewards(answers, [row for row in rows for _ in range(number)])

        prompts = inputs.pop("decoder_attention_mask", None)
        lengths = 1 if prompts is None else prompts.sum(1, keepdim=True).repeat_interleave(number, dim=0)
        labels = self._labels(sequences, lengths)
        written = labels.ne(-100).any(1).cpu()
        self._seen["reward"] += rewards[written].sum().item()
        self._seen["answers"] += int(written.sum())
        advantages = advantages_over_others(rewards.view(-1, number), written.view(-1, number)).flatten()
        if "code_masks" in inputs:
            inputs["code_masks"] = inputs["code_masks"].repeat_interleave(number, dim=0)
        return {
            **inputs,
            "decoder_input_ids": sequences[:, :-1],
            # Answers are padded behind their end, where no label can see it.
            "decoder_attention_mask": torch.ones_like(sequences[:, :-1]),
            "labels": labels,
            "advantages": advantages.float().to(labels.device),
            "constraints": constraints,
        }

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self._timed("backward_time"):
            return super().training_step(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if "advantages" not in inputs:  # evaluation
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        others = ("labels", "advantages", "constraints")
        labels, advantages, constraints = (inputs[name] for name in others)
        inputs = {name: value for name, value in inputs.items() if name not in others}
        outputs = model(**inputs, use_cache=False)
        masks = self._masks(labels, constraints, outputs["logits"].shape[-1])
        loss = self_critical_loss(outputs["logits"], labels, advantages, masks)
        # Processes take the mean of their gradients, whereas the number of items is that of all.
        if num_items_in_batch is None:
            loss = loss / max(self._count(labels), 1)
        else:
            loss = loss * self.accelerator.num_processes / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._seen["updates"]:
            logs = {**logs, **self._seen_means()}
        super().log(logs, start_time)

    # Answers

    def _task(self, row: Mapping[str, Any]) -> Task:
        task = row.get("task") or self._task_of_all
        if task is None:
            raise ValueError("A row names no task: give the rows a column `task`, or the collator task=.")
        return get_task(task)

    def _options(self, tasks: list[Task]) -> tuple[dict[str, Any], list[Constraint | None]]:
        """Gives the options of `generate`, and the constraints in them: one for each row or one for all."""
        names = {task.name for task in tasks}
        if len(names) > 1:
            options = self.processing_class.generation_kwargs(tasks)
        else:
            # The trie of a long list of answers is built once.
            [name] = names
            if name not in self._task_options:
                self._task_options[name] = self.processing_class.generation_kwargs(tasks[0])
            options = dict(self._task_options[name])
        rows = [row for processor in options.get("logits_processor", ()) for row in processor.rows]
        if self._constraint is not None:
            rows = [dataclasses.replace(row, constraint=self._constraint) for row in rows or [RowOptions()]]
        if rows:
            # An answer of the greatest length is ended even where its constraint allows no end.
            options.pop("forced_eos_token_id", None)
            longest = options["max_new_tokens"]
            rows = [dataclasses.replace(row, max_new_tokens=row.max_new_tokens or longest) for row in rows]
            options["logits_processor"] = [RowLogitsProcessor(rows, self.processing_class.tokenizer.eos_token_id)]
        number = self.args.num_samples
        options |= {"num_return_sequences": number, "use_cache": True}
        if self.args.do_sample or options["do_sample"]:
            # All of the model's probabilities, unless the task has its own way to sample.
            options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options, "do_sample": True, "num_beams": 1}
        else:
            options |= {"num_beams": number, "early_stopping": True}
        if options["num_beams"] == 1:
            for name in ("early_stopping", "length_penalty"):  # of beams alone
                options.pop(name, None)
        return options, [row.constraint for row in rows] or [None]

    def _without_targets(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Gives inputs that tell no answer: of what the decoder reads, the prompts alone, padded on the right."""
        told = ("labels", "task_ids", "sample_weights")
        kept = {name: value for name, value in inputs.items() if name not in told and not name.startswith("decoder_")}
        ids, labels = inputs.get("decoder_input_ids"), inputs.get("labels")
        if ids is None:
            return kept
        if labels is None:
            lengths = inputs.get("decoder_attention_mask", torch.ones_like(ids)).sum(1, keepdim=True)
        else:
            lengths = labels.ne(-100).int().argmax(1, keepdim=True) + 1  # a label follows the token in its place
        width = int(lengths.max())
        mask = torch.arange(width, device=ids.device) < lengths
        prompts = ids[:, :width].masked_fill(~mask, self.processing_class.tokenizer.pad_token_id)
        return {**kept, "decoder_input_ids": prompts, "decoder_attention_mask": mask.long()}

    @torch.no_grad()
    def _generate(self, inputs: Mapping[str, Any], options: Mapping[str, Any]) -> torch.Tensor:
        """Gives the answers' tokens `(rows * answers, length)`, prompts included."""
        model: Any = self.model
        whole: contextlib.AbstractContextManager = contextlib.nullcontext()
        if isinstance(model, FullyShardedDataParallel):
            whole = FullyShardedDataParallel.summon_full_params(model, writeback=False)
        elif isinstance(self.model, FSDPModule) and "generate" not in vars(model):
            register_fsdp_forward_method(model, "generate")
        # Processes that share the weights must take the same number of steps.
        in_step = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)
        model.eval()
        with self.accelerator.autocast(), whole:
            return model.generate(**inputs, **options, synced_gpus=in_step)

    def _labels(self, sequences: torch.Tensor, prompt_lengths: torch.Tensor | int) -> torch.Tensor:
        """
        Gives the targets `(answers, length - 1)` of sequences: each answer and its end, -100 elsewhere.

        Args:
            sequences (`torch.LongTensor` of shape `(answers, length)`): What `generate` gives.
            prompt_lengths (`torch.LongTensor` of shape `(answers, 1)` or `int`): Their tokens before the answer.
        """
        tokenizer = self.processing_class.tokenizer
        labels = sequences[:, 1:]
        steps = torch.arange(1, sequences.shape[1], device=labels.device)
        ends = labels.eq(tokenizer.eos_token_id) & (steps >= prompt_lengths)
        ended = ends.cumsum(1) > ends
        # A search that finds fewer answers than it has beams fills up with padding.
        nothing = (labels.eq(tokenizer.pad_token_id) & (steps == prompt_lengths)).any(1, keepdim=True)
        return labels.masked_fill((steps < prompt_lengths) | ended | nothing, -100)

    def _image_sizes(self, rows: list[Mapping[str, Any]], tasks: list[Task]) -> list[tuple[int, int] | None] | None:
        """Gives height and width of the rows' pictures, where answers have boxes."""
        if not any(task.answer in ("box", "boxes") for task in tasks):
            return None
        fetch = self.processing_class.image_processor.fetch_images
        images = [encoded_picture(row.get("image")) for row in rows]
        pictures = [None if image is None else fetch(image) for image in images]
        return [None if picture is None else (picture.height, picture.width) for picture in pictures]

    def _rewards(self, answers: list[dict[str, Any]], rows: list[Mapping[str, Any]]) -> torch.Tensor:
        """Gives the rewards `(answers,)`, checked."""
        rewards = [float(reward) for reward in self.reward(answers, rows)]
        if len(rewards) != len(answers):
            raise ValueError(f"The reward gave {len(rewards)} numbers for {len(answers)} answers: one each is needed.")
        for reward, answer in zip(rewards, answers, strict=True):
            if not math.isfinite(reward):
                raise ValueError(f"The reward of {answer!r} is {reward}, which is not finite.")
        return torch.tensor(rewards, dtype=torch.float64)

    # The loss

    def _count(self, labels: torch.Tensor) -> int:
        """Gives what the loss of these answers is divided by."""
        tokens = labels.ne(-100)
        return int(tokens.any(1).sum() if self.args.sentence_avg else tokens.sum())

    def _masks(
        self, labels: torch.Tensor, constraints: list[Constraint | None], vocab_size: int
    ) -> torch.Tensor | None:
        """Gives the tokens among which labels were chosen, `(answers, length, vocab_size)`, if not among all."""
        if all(constraint is None for constraint in constraints):
            return None
        masks = torch.ones(*labels.shape, vocab_size, dtype=torch.bool, device=labels.device)
        answers = len(labels) // len(constraints)
        for i, constraint in enumerate(constraints):
            if constraint is not None:
                members = slice(i * answers, (i + 1) * answers)
                masks[members] = constraint_masks(labels[members], constraint, vocab_size)
        # An answer that was cut short has an end where the constraint allows none.
        return masks.scatter(2, labels.clamp(min=0).unsqueeze(2), True)

    # The logs

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.args.device.type != "cpu":
            torch.accelerator.synchronize()
        self._seen[name] += time.perf_counter() - start

    def _seen_means(self) -> dict[str, float]:
        """Gives the means since the last call, over all processes."""
        times = ("sample_time", "reward_time", "backward_time")
        values = [self._seen[name] for name in ("updates", "answers", "reward", *times)]
        self._seen.clear()
        sums = torch.tensor(values, dtype=torch.float32, device=self.args.device)
        updates, answers, reward, *seconds = self.accelerator.reduce(sums, "sum").tolist()
        means = {name: total / updates for name, total in zip(times, seconds, strict=True)}
        return {"reward": reward / max(answers, 1), **means}


__all__ = [
    "CiderReward",
    "Reward",
    "SelfCriticalTrainer",
    "SelfCriticalTrainingArguments",
    "advantages_over_others",
    "self_critical_loss",
]
