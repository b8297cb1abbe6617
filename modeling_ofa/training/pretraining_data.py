"""The data of pre-training: its sources, mixed by the official schedule into batches of two parts."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import get_worker_info
from transformers.feature_extraction_utils import BatchFeature

from ..data.augment import Randomness
from ..data.collator import DataCollatorForOFA
from ..data.readers import OnBadRow
from ..processing_ofa import OFAProcessor
from ..tasks_ofa import TASKS
from .pretraining_rows import PretrainingRows, Row
from .streams import RowStream, StreamShare


logger = logging.getLogger(__name__)

# Officially every eighth image-text Example brings so many rows of the other sources along.
EVERY = 8
EXTRAS = {"text": 2, "image": 1, "detection": 1}
_MOST_BAD = 100  # one after the other
TASKS_OF = {
    "image_text": tuple(TASKS),
    "text": ("text_infilling",),
    "image": ("image_infilling",),
    "detection": ("object_detection",),
}


class BadRow(ValueError):
    """No row can be made of an Example."""


class PretrainingMixture:
    """
    Up to four data sets of Examples as endless streams of rows, of which `image_text` sets the pace.

    Args:
        rows ([`PretrainingRows`]): Makes the rows.
        image_text (`IterableDataset` or `Dataset`):
            Examples of `caption`, `vqa` and `visual_grounding`, and of other tasks, if they are to be learned beside.
        text (`IterableDataset` or `Dataset`, *optional*): Examples of `text_infilling`.
        image (`IterableDataset` or `Dataset`, *optional*): Examples of `image_infilling`.
        detection (`IterableDataset` or `Dataset`, *optional*): Examples of `object_detection`.
        num_streams (`int`, *optional*, defaults to 64):
            Into how many streams the data is divided, a multiple of the processes times their workers. The order of
            the rows depends on this number, and not on those.
        shuffle_buffer (`int`, *optional*, defaults to 8192):
            How many rows of each data set all streams together shuffle, and hold in memory, at a time.
        seed (`int`, *optional*, defaults to 7): Of all that is drawn for rows.
        on_bad_row (`str`, *optional*, defaults to `"raise"`):
            What to do with a damaged picture, and the like: `"raise"`, or `"skip"` with a warning.

    Raises:
        ValueError: A data set has no rows, or rows of other tasks, or no row can be made of its first Example.
    """

    def __init__(
        self,
        rows: PretrainingRows,
        image_text: IterableDataset | Dataset,
        text: IterableDataset | Dataset | None = None,
        image: IterableDataset | Dataset | None = None,
        detection: IterableDataset | Dataset | None = None,
        num_streams: int = 64,
        shuffle_buffer: int = 8192,
        seed: int = 7,
        on_bad_row: OnBadRow = "raise",
    ):
        self.rows, self.num_streams, self.seed, self.on_bad_row = rows, num_streams, seed, on_bad_row
        self.block_size = max(1, shuffle_buffer // num_streams)
        given = {"image_text": image_text, "text": text, "image": image, "detection": detection}
        self.sources = {name: data for name, data in given.items() if data is not None}
        for name, data in self.sources.items():
            example = next(iter(data), None)
            if example is None:
                raise ValueError(f"The data for {name} has no rows.")
            try:
                self.make(name, example, Randomness.seeded(0))  # a wrong file is found now, and not hours later
            except BadRow:
                if on_bad_row == "raise":
                    raise

    def make(self, name: str, example: Mapping[str, Any], rng: Randomness) -> list[Row]:
        """
        Makes the rows of an Example.

        Args:
            name (`str`): Whose Example it is: `"image_text"`, `"text"`, `"image"` or `"detection"`.
            example (`Mapping[str, Any]`): The Example.
            rng ([`Randomness`]): Where numbers are drawn.

        Raises:
            ValueError: It is of a task that these Examples may not be of.
            BadRow: It is damaged.
        """
        if example.get("task") not in TASKS_OF[name]:
            raise ValueError(
                f"The data for {name} holds Examples of {' or '.join(TASKS_OF[name])}, not of {example.get('task')!r}."
            )
        try:
            if name == "image_text":
                return self.rows.image_text(example, rng)
            return [getattr(self.rows, example["task"])(example, rng)]
        except (ValueError, OSError) as error:
            raise BadRow(f"Row {example.get('id')!r} of the data for {name}: {error}") from error


class MixedStream:
    """
    One stream of a [`PretrainingMixture`]. What is drawn for a row depends on the seed, the stream and the row's
    number, and on nothing that was drawn before.

    Args:
        mixture ([`PretrainingMixture`]): All data.
        index (`int`): Which stream this is.
        state (`Mapping[str, Any]`, *optional*): Where it shall begin: what `state` was there.
    """

    def __init__(self, mixture: PretrainingMixture, index: int, state: Mapping[str, Any] | None = None):
        self.mixture, self.index = mixture, index
        self.sources = {
            name: RowStream(data, name, index, mixture.num_streams, mixture.block_size, mixture.seed)
            for name, data in mixture.sources.items()
        }
        self.count = 0
        if state is not None:
            self.count = state["count"]
            for name, source in self.sources.items():
                source.load_state(state["sources"][name])

    @property
    def state(self) -> dict[str, Any]:
        """`dict[str, Any]`: Where the stream is, as plain numbers."""
        return {"count": self.count, "sources": {name: source.state for name, source in self.sources.items()}}

    def take(self, number: int) -> tuple[list[Row], list[Row]]:
        """Gives the rows of the next `number` image-text Examples, and those of other sources that come with them."""
        pairs: list[Row] = []
        extras: list[Row] = []
        for _ in range(number):
            [seed] = np.random.SeedSequence([self.mixture.seed, self.index, self.count]).generate_state(1)
            rng = Randomness.seeded(int(seed))
            pairs += self._next("image_text", rng)
            self.count += 1
            if self.count % EVERY == 0:
                for name in self.sources:
                    for _ in range(EXTRAS.get(name, 0)):
                        extras += self._next(name, rng)
        return pairs, extras

    def _next(self, name: str, rng: Randomness) -> list[Row]:
        bad = 0
        while True:
            try:
                return self.mixture.make(name, next(self.sources[name]), rng)
            except BadRow as error:
                bad += 1
                if self.mixture.on_bad_row == "raise" or bad == _MOST_BAD:
                    raise
                logger.warning("%s; the row is skipped", error)


class MixedBatches(torch.utils.data.IterableDataset):
    """
    The batches that one process takes, made in the workers of its loader: rows as [`PretrainingCollator`] takes them,
    and the `stream` that they come from, with its `state` behind them.

    Args:
        mixture ([`PretrainingMixture`]): The data.
        batch_size (`int`): Image-text Examples in a batch.
        num_processes (`int`), process_index (`int`): The processes, and which this is.
        start (`int`): How many batches all processes have taken before.
        states (`Mapping[int, Mapping[str, Any]]`): Where the streams are that have begun.

    Raises:
        ValueError: When iterated over: the streams cannot be divided evenly.
    """

    def __init__(
        self,
        mixture: PretrainingMixture,
        batch_size: int,
        num_processes: int = 1,
        process_index: int = 0,
        start: int = 0,
        states: Mapping[int, Mapping[str, Any]] | None = None,
    ):
        self.mixture, self.batch_size = mixture, batch_size
        self.num_processes, self.process_index = num_processes, process_index
        self.start, self.states = start, states or {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        workers, index = (1, 0) if worker is None else (worker.num_workers, worker.id)
        share = (self.num_processes, self.process_index, workers, index)
        streams: dict[int, MixedStream] = {}
        for number in StreamShare(self.mixture.num_streams, *share, start=self.start):
            if number not in streams:
                streams[number] = MixedStream(self.mixture, number, self.states.get(number))
            rows = streams[number].take(self.batch_size)
            yield {"rows": rows, "stream": number, "state": streams[number].state}


class PretrainingCollator:
    """
    Makes the two parts of a batch: image-text rows, and, where there are any, those of the other sources, whose
    pictures have another size.

    Args:
        processor ([`OFAProcessor`]): Makes the inputs.
        image_size (`int`, *optional*, defaults to 384): Side of the pictures of image-text rows.
        code_image_size (`int`, *optional*, defaults to 128): Half the side of the others.
    """

    def __init__(self, processor: OFAProcessor, image_size: int = 384, code_image_size: int = 128):
        self.processor = processor
        sizes = (image_size, 2 * code_image_size)
        self.collators = [DataCollatorForOFA(processor, decoder_prompt="none", size=size) for size in sizes]

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """
        Args:
            batch (`Mapping[str, Any]`): The lists of rows that [`MixedStream.take`] gives as `rows`, and the like.

        Returns:
            `dict[str, Any]`: One or two [`BatchFeature`] as `parts`, with the model's inputs, `labels`, and
            `sample_weights` of shape `(batch,)`; the rest of `batch` as it came. `pixel_values` has each picture once,
            of shape `(pictures, 3, height, width)`, and `picture_index` of shape `(batch,)` says which one a row has.
        """
        pairs = zip(batch["rows"], self.collators, strict=True)
        parts = [self._part(rows, collate) for rows, collate in pairs if rows]
        return {**{name: value for name, value in batch.items() if name != "rows"}, "parts": parts}

    def _part(self, rows: Sequence[Row], collate: DataCollatorForOFA) -> BatchFeature:
        made, tokenizer = collate(rows), self.processor.tokenizer
        sources, targets, labels = [], [], []
        masks = made["attention_mask"].bool()
        for row, read, mask, written in zip(rows, made["input_ids"], masks, made["labels"], strict=True):
            source, target = read[mask], written[written >= 0]
            if "source_ids" in row:
                [place] = (source == tokenizer.mask_token_id).nonzero()[:, 0].tolist()
                source = torch.cat([source[:place], torch.tensor(row["source_ids"]), source[place + 1 :]])
                target = torch.tensor([*row["target_ids"], tokenizer.eos_token_id])
            sources.append(source)
            targets.append(torch.cat([target.new_tensor([tokenizer.bos_token_id]), target[:-1]]))
            # The decoder reads also what it need not learn, so the model cannot make its inputs of the labels.
            labels.append(target.index_fill(0, torch.arange(min(row["unlearned"], len(target) - 1)), -100))
        pad = tokenizer.pad_token_id
        part = {
            "input_ids": pad_sequence(sources, batch_first=True, padding_value=pad),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in sources], batch_first=True),
            "decoder_input_ids": pad_sequence(targets, batch_first=True, padding_value=pad),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
            "sample_weights": torch.tensor([row["confidence"] for row in rows]),
        }
        part |= {name: made[name] for name in ("patch_masks", "code_masks") if name in made}
        if "pixel_values" in made:
            pictures = [id(row.get("image")) for row in rows]  # rows that are made of one Example share the object
            places = {picture: place for place, picture in enumerate(dict.fromkeys(pictures))}
            part["pixel_values"] = made["pixel_values"][[pictures.index(picture) for picture in places]]
            part["picture_index"] = torch.tensor([places[picture] for picture in pictures])
        return BatchFeature(part)


__all__ = ["MixedBatches", "MixedStream", "PretrainingCollator", "PretrainingMixture"]
