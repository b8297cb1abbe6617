"""
Endless streams of rows for long trainings: shuffled, shared by any number of processes, and resumable to the row.

Data is read as a fixed number of streams, each with a part of it, whatever the number of processes and workers: these
take the streams among them. So the same rows come in the same batches on one process and on many, also when a run goes
on with another number than it was begun with.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from datasets import Dataset, Image, IterableDataset
from datasets.distributed import split_dataset_by_node


class RowStream:
    """
    One of several endless streams over a data set. Rows are shuffled within blocks, anew each time that the data is
    read. Unlike a buffer that is refilled row by row, a block is the same again when it is read again, so a few
    numbers say where the stream is.

    Args:
        data (`datasets.IterableDataset` or `datasets.Dataset`): The rows. Pictures are left encoded.
        name (`str`): What the data is called in errors.
        index (`int`), count (`int`):
            Which stream of how many this is. Each time that the data is read, each row is in one of them.
        block_size (`int`): How many rows are shuffled, and held in memory, at a time; 1 keeps their order.
        seed (`int`): Of the shuffling.

    Raises:
        ValueError: When rows are taken: there is none in this stream's part of the data.
    """

    def __init__(self, data: IterableDataset | Dataset, name: str, index: int, count: int, block_size: int, seed: int):
        if isinstance(data, Dataset):
            data = data.to_iterable_dataset(num_shards=min(count, len(data)))
        if data.features and isinstance(data.features.get("image"), Image):
            data = data.cast_column("image", Image(decode=False))
        if data.num_shards % count == 0:
            self.data = data.shard(count, index, contiguous=False)
        else:
            self.data = split_dataset_by_node(data, index, count)  # every `count`-th row
        self.name, self.index, self.count = name, index, count
        self.block_size, self.seed = block_size, seed
        # `data` is the state of the data set in front of the block, `row` the place in the shuffled block
        self.state: dict[str, Any] = {"epoch": 0, "block": 0, "data": None, "row": 0}
        self._rows: Iterator[dict[str, Any]] | None = None

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes to where `state` was read."""
        self.state, self._rows = dict(state), None

    def __next__(self) -> dict[str, Any]:
        if self._rows is None:
            self._rows = self._read(**self.state)
        return next(self._rows)

    def _read(self, epoch: int, block: int, data: dict[str, Any] | None, row: int) -> Iterator[dict[str, Any]]:
        """Gives rows without end, and keeps `state` at the one behind the row that it gave last."""
        while True:
            self.data.set_epoch(epoch)  # shuffles the files
            if data is not None:
                self.data.load_state_dict(data)
            # `iter` does not divide the data among the workers of a loader once more, as iterating over it would
            for columns in self.data.iter(self.block_size):
                length = len(next(iter(columns.values())))
                order = np.random.default_rng([self.seed, self.index, epoch, block]).permutation(length)
                for place in range(row, length):
                    self.state = {"epoch": epoch, "block": block, "data": data, "row": place + 1}
                    yield {name: values[order[place]] for name, values in columns.items()}
                block, data, row = block + 1, self.data.state_dict(), 0
            if block == 0:
                raise ValueError(
                    f"Stream {self.index} of {self.count} has no row of {self.name}: give more data, or fewer streams."
                )
            epoch, block, data = epoch + 1, 0, None


class StreamShare:
    """
    Which streams a process, or a worker of its loader, reads, and in which order. Batch `n` of all processes comes
    from stream `n % num_streams`, and goes to process `n % num_processes`.

    Args:
        num_streams (`int`): All streams.
        num_processes (`int`), process_index (`int`): The processes, and which this is.
        num_workers (`int`), worker_index (`int`): The workers of each process, and which this is.
        start (`int`): How many batches all processes have taken before.

    Raises:
        ValueError: The streams cannot be divided evenly.
    """

    def __init__(
        self,
        num_streams: int,
        num_processes: int = 1,
        process_index: int = 0,
        num_workers: int = 1,
        worker_index: int = 0,
        start: int = 0,
    ):
        self.step = num_processes * num_workers
        if num_streams % self.step:
            raise ValueError(
                f"{num_processes} processes with {num_workers} workers each cannot share {num_streams} streams: "
                f"num_streams must be a multiple of {self.step}."
            )
        self.num_streams, self.first = num_streams, start + process_index + worker_index * num_processes

    def __contains__(self, stream: int) -> bool:
        return (stream - self.first) % self.step == 0

    def __iter__(self) -> Iterator[int]:
        """Gives the streams of the batches to come, without end."""
        batch = self.first
        while True:
            yield batch % self.num_streams
            batch += self.step


__all__ = ["RowStream", "StreamShare"]
