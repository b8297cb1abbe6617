"""The evaluation of data on any number of processes: exact, resumable, the same on one process as on many."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, tqdm

from ..data.lines import write_whole
from ..drawing import save_picture
from .predictor import Predictor, task_of
from .results import draw, metric_of, score, submission


Item = TypeVar("Item")
Result = TypeVar("Result")
_SAMPLED = 1024  # values of each weight that tell models apart


def evaluate(
    predictor: Predictor,
    data: Any,
    output: str | os.PathLike,
    *,
    batch_size: int = 16,
    accelerator: Accelerator | None = None,
    metric: str | None = None,
    metric_options: Mapping[str, Any] | None = None,
    categories: Mapping[str, int] | None = None,
    pictures: int = 0,
    seed: int = 0,
    on_bad_row: Literal["raise", "skip"] = "raise",
) -> dict[str, Any] | None:
    """
    Answers all Examples of a data set and scores the answers.

    Batch `b` holds Examples `b * batch_size` up to `(b + 1) * batch_size` whatever the number of processes, and every
    process takes every so-many-th batch; so no Example is lost or doubled, and answers do not depend on the number of
    processes. A process appends each batch that it has finished to a file of its own in `output/parts`. A run that was
    stopped, in whatever way, goes on from there when it is started again, with as many processes as you like.

    At the end the main process writes into `output`, each file whole or not at all:

    - `predictions.json`, a list of `{"id", "task", …answer}` in the order of the data, scores with four digits,
    - `submission_TASK.json`, the same in the form of the task's public server, if there is one,
    - `metrics.json`, by task what [`~modeling_ofa.evaluation.results.score`] gives,
    - `pictures/`, if asked for.

    Args:
        predictor ([`Predictor`]): Answers the batches.
        data (`datasets.Dataset` or `Sequence[Mapping[str, Any]]`): Examples, of one task or of several.
        output (`str` or `os.PathLike`): The folder to write to, which all processes see.
        batch_size (`int`, *optional*, defaults to 16): Examples that a process answers at a time.
        accelerator (`Accelerator`, *optional*): The processes; by default those that this one was launched with.
        metric (`str`, *optional*): A key of `METRICS`, if it is not the tasks' own.
        metric_options (`Mapping[str, Any]`, *optional*): For its function, where all Examples are of one task.
        categories (`Mapping[str, int]`, *optional*): Numbers of the labels of detection, for COCO's results.
        pictures (`int`, *optional*, defaults to 0): Of how many of the first Examples to draw the answers.
        seed (`int`, *optional*, defaults to 0): For tasks that sample, with the number of the batch.
        on_bad_row (`str`, *optional*, defaults to `"raise"`):
            `"skip"` goes on when a picture cannot be decoded. Its prediction is an `"error"`, which is not scored.
            A run that ended at one may be given again with it.

    Returns:
        `dict[str, Any]`: What `metrics.json` holds, on the main process; `None` on the others.

    Raises:
        `ValueError`: if there is nothing to evaluate, if `output` holds an evaluation of something else, if a target
            is not among the answers that the model may choose, or if an Example cannot be answered.
    """
    accelerator = accelerator or Accelerator()
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, not {batch_size}.")
    folder = Path(output)
    data = _undecoded(data)
    parts = _Parts(folder / "parts", accelerator.process_index)
    batches = -(-len(data) // batch_size)

    def begin() -> list[int]:
        settings = {
            **_settings(predictor, data, metric, metric_options),
            "batch_size": batch_size,
            "seed": seed,
        }
        _begin(folder, settings)
        finished = parts.read()
        return [batch for batch in range(batches) if batch not in finished]

    waiting = on_main(accelerator, begin)
    mine = waiting[accelerator.process_index :: accelerator.num_processes]
    with parts:
        indices = [range(len(data))[batch * batch_size : (batch + 1) * batch_size] for batch in mine]
        read = _ahead(partial(_read, predictor, data, on_bad_row), indices)
        for batch, rows in zip(tqdm(mine, desc="evaluating", unit="batch"), read, strict=True):
            torch.manual_seed(seed + batch)  # of all devices
            parts.append(batch, _answer(predictor, rows))
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return None

    found = parts.read()
    if missing := [batch for batch in range(batches) if batch not in found]:
        raise ValueError(
            f"{len(missing)} of {batches} batches are not in {parts.folder}: all processes must see the same folder."
        )
    answers = [answer for batch in range(batches) for answer in found[batch]]
    if len(answers) != len(data):
        raise ValueError(f"{parts.folder} holds {len(answers)} answers to {len(data)} Examples; delete {folder}.")
    score_task = partial(score, metric=metric, metric_options=metric_options)
    metrics = _finish(folder, data, answers, score_task, categories)
    for i in range(min(pictures, len(data))):
        if data[i].get("image") is not None and "error" not in answers[i]:
            (folder / "pictures").mkdir(exist_ok=True)
            row = predictor.read(data[i])
            save_picture(draw(row["image"], row, answers[i]), folder / "pictures" / f"{i:06d}.png")
    return metrics


def on_main(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Calls a function on the main process, and gives every process what it gives, or raises what it raises."""
    shared: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            shared[0] = function()
        except Exception as error:  # whatever it is, the others would wait for it
            shared[1] = error
    broadcast_object_list(shared)
    if shared[1] is not None:
        raise shared[1]
    return shared[0]


class _Parts:
    """
    Batches that are finished: a file for each process with a line for each batch. A line that was cut off when its
    process was killed is no batch.
    """

    def __init__(self, folder: Path, process: int):
        self.folder = folder
        self.path = folder / f"{process:05d}.jsonl"

    def __enter__(self) -> "_Parts":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab+")
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def append(self, batch: int, answers: Sequence[Mapping[str, Any]]) -> None:
        self._file.write(json.dumps({"batch": batch, "answers": answers}, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def read(self) -> dict[int, list[dict[str, Any]]]:
        """Gives the answers of all batches that any process has finished."""
        batches: dict[int, list[dict[str, Any]]] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if record["batch"] in batches:
                    raise ValueError(
                        f"Batch {record['batch']} is twice in {self.folder}: two evaluations ran at once. Delete "
                        f"{self.folder.parent} and start one."
                    )
                batches[record["batch"]] = record["answers"]
        return batches


def _undecoded(data: Any) -> Any:
    """Leaves pictures as they were encoded: those that are bad are reported by the processor, with their Example."""
    if not hasattr(data, "cast_column") or "image" not in data.column_names:
        return data
    from datasets import Image

    return data.cast_column("image", Image(decode=False))


def _annotations(data: Any) -> Iterator[Mapping[str, Any]]:
    """Gives the Examples without their pictures."""
    rows = data
    if hasattr(data, "remove_columns"):
        rows = data.remove_columns([name for name in data.column_names if name == "image"])
    for i, row in enumerate(rows):
        yield {"id": str(i), **{name: value for name, value in row.items() if name != "image"}}


def _ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Gives what a function gives for each item, and works on the next one meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        last = None
        for item in items:
            coming = pool.submit(function, item)
            if last is not None:
                yield last.result()
            last = coming
        if last is not None:
            yield last.result()


def _read(
    predictor: Predictor, data: Any, on_bad_row: Literal["raise", "skip"], indices: range
) -> dict[int, dict[str, Any]]:
    """Gives Examples with their pictures decoded, or, where that cannot be done, with an `"error"` alone."""
    rows: dict[int, dict[str, Any]] = {}
    for i in indices:
        try:
            rows[i] = predictor.read(data[i])
        except (ValueError, OSError) as error:
            if on_bad_row == "raise":
                raise ValueError(f"Example {i}: {error} (on_bad_row='skip' goes on without it.)") from error
            rows[i] = {"error": str(error)}
    return rows


def _answer(predictor: Predictor, rows: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Gives the stored answers of one batch."""
    whole = {i: row for i, row in rows.items() if "error" not in row}
    try:
        answers = dict(zip(whole, predictor(list(whole.values())), strict=True))
    except ValueError as error:
        raise ValueError(f"Examples {min(rows)} to {max(rows)}: {error}") from error
    return [_stable(answers.get(i, row)) for i, row in rows.items()]


def _stable(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Rounds scores to four digits, which do not change with the order in which a processor sums."""

    def rounded(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.4g}")

    kept = dict(answer)
    if "score" in kept:
        kept["score"] = rounded(kept["score"])
    if "scores" in kept:
        kept["scores"] = [rounded(value) for value in kept["scores"]]
    return kept


def _settings(
    predictor: Predictor, data: Any, metric: str | None, metric_options: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Checks the data, and gives all that the answers depend on, in short."""
    from .. import __version__

    if len(data) == 0:
        raise ValueError("There are no Examples to evaluate.")
    digest, lists = hashlib.sha256(), {}
    for i, row in enumerate(_annotations(data)):
        task = task_of(row)
        if task.name not in lists:
            metric_of(task, [row], metric, metric_options)
            lists[task.name] = predictor.closed_list(task)
        answers, target = lists[task.name], row.get("target")
        if task.answer == "label" and answers and target is not None:
            if task.labels.get(target, target) not in answers:
                raise ValueError(
                    f"Example {i} has the target {target!r}, which is not among the {len(answers)} answers of task "
                    f"{task.name!r}: no answer would be right."
                )
        digest.update(_json(row).encode())
    return {
        "version": __version__,
        "examples": len(data),
        "data": digest.hexdigest(),
        "model": _fingerprint(predictor.model),
        "processor": hashlib.sha256(predictor.processor.to_json_string().encode()).hexdigest(),
        "dtype": str(predictor.model.dtype),
        "answers": hashlib.sha256(_json(lists).encode()).hexdigest(),
        "strategy": predictor.strategy,
        "decoder_prompt": predictor.collator.decoder_prompt,
        "with_scores": predictor.with_scores,
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _fingerprint(model: torch.nn.Module) -> str:
    """Tells models apart by some values of each weight."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if weight.device.type != "meta":  # those that are kept on disk
            values = weight.detach().flatten()
            digest.update(values[:: max(1, len(values) // _SAMPLED)].double().cpu().numpy().tobytes())
    return digest.hexdigest()


def _begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Marks a folder as that of an evaluation, and refuses that of another one."""
    manifest = folder / "manifest.json"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; the output is a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    if manifest.exists():
        there = json.loads(manifest.read_text(encoding="utf-8"))
        if differing := [name for name in settings if there.get(name) != settings[name]]:
            what = ", ".join(
                f"{name} {there.get(name)!r} and not {settings[name]!r}"
                if name not in ("data", "model", "processor", "answers")
                else f"other {name}"
                for name in differing
            )
            raise ValueError(f"{folder} holds an evaluation with {what}. Choose another folder, or delete this one.")
    else:
        write_whole(manifest, json.dumps(settings, indent=2) + "\n")


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Gives a JSON list with a row on each line."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


def _finish(
    folder: Path,
    data: Any,
    answers: Sequence[Mapping[str, Any]],
    score_task: Callable[..., dict[str, Any]],
    categories: Mapping[str, int] | None,
) -> dict[str, Any]:
    """Writes what an evaluation leaves, the predictions first: they stay if a score cannot be computed."""
    rows = list(_annotations(data))
    pairs = list(zip(rows, answers, strict=True))
    write_whole(
        folder / "predictions.json",
        _lines({"id": row["id"], "task": task_of(row).name, **answer} for row, answer in pairs),
    )
    metrics = {}
    tasks = {task_of(row).name: task_of(row) for row in rows}
    for name, task in sorted(tasks.items()):
        own, given = zip(*(pair for pair in pairs if task_of(pair[0]).name == name), strict=True)
        if (converted := submission(task, own, given, categories)) is not None:
            write_whole(folder / f"submission_{name}.json", _lines(converted))
        metrics[name] = score_task(task, own, given)
    write_whole(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return metrics


__all__ = ["evaluate", "on_main"]
