"""
Answers a data set with a model and scores the answers, on any number of processes.

    python scripts/evaluate.py --task caption --model OFA-Sys/ofa-base --data caption_test.tsv --columns 1,4,2
    accelerate launch --num_processes 4 scripts/evaluate.py --task vqa --model FOLDER --data vqa_val.tsv \\
        --answers trainval_ans2label.json

A run that was stopped goes on where it was when the same command is given again. docs/evaluation.md has the command
for every published number, and says what is written.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import Accelerator
from prepare_data import FLAGS, OPTIONS, parse_columns

from modeling_ofa import DEFAULT_CHECKPOINT, OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.cli.errors import CommandError, first_line
from modeling_ofa.cli.predictor import DTYPES, check_model
from modeling_ofa.data.readers import FORMATS, load_examples
from modeling_ofa.evaluation.loop import evaluate, on_main
from modeling_ofa.evaluation.predictor import STRATEGIES, Predictor, read_answers
from modeling_ofa.processing_ofa import DECODER_PROMPTS
from modeling_ofa.tasks_ofa import get_task


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", help="the task; without it, that of the format or of each row")
    parser.add_argument("--model", default=DEFAULT_CHECKPOINT, help="folder or Hub id (default: the embedded one)")
    parser.add_argument("--output", type=Path, help="folder to write to (default: evaluation/TASK)")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        required=True,
        nargs="+",
        help="file, folder or Hub id; TSV files and folders of Parquet may be several",
    )
    data.add_argument("--format", default="tsv", choices=["parquet", *FORMATS], help="how to read it (default: tsv)")
    data.add_argument("--split", help="the split, where the data holds several")
    data.add_argument("--limit", type=parse_count, help="evaluate no more than the first so many Examples")
    data.add_argument("--on-bad-row", choices=["raise", "skip"], default="raise", help="stop at bad rows, or warn")
    for name, text in OPTIONS.items():
        data.add_argument(f"--{name}", help=text, type=parse_columns if name == "columns" else str)
    for name, text in FLAGS.items():
        data.add_argument(f"--{name}", action="store_true", default=None, help=text)
    how = parser.add_argument_group("how to answer and score")
    how.add_argument("--answers", help="closed list to choose from: a line each, or JSON")
    how.add_argument("--strategy", choices=STRATEGIES, default="auto", help="choose by all candidates, or generate")
    how.add_argument("--decoder-prompt", choices=DECODER_PROMPTS, help="in place of the checkpoint's own")
    how.add_argument("--with-scores", action="store_true", help="score what is generated too (takes memory)")
    how.add_argument("--metric", help="in place of the task's own")
    how.add_argument("--metric-options", type=parse_options, metavar="JSON", help='such as {"tokenizer": "none"}')
    how.add_argument(
        "--batch-size", type=parse_count, default=16, help="Examples of a process at a time (default: 16)"
    )
    how.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: float32 on CPUs, else the checkpoint's")
    how.add_argument("--seed", type=int, default=0, help="for tasks that sample (default: 0)")
    how.add_argument("--pictures", type=int, default=0, metavar="N", help="draw the answers to the first N Examples")
    return parser.parse_args(arguments)


def parse_count(text: str) -> int:
    """Reads a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 on")
    return int(text)


def parse_options(text: str) -> dict[str, Any]:
    """Reads a JSON object."""
    try:
        options = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f'{text} is no object, such as {{"tokenizer": "none"}}')
    return options


def load_data(args: argparse.Namespace, processor: OFAProcessor) -> datasets.Dataset:
    """Loads the Examples, and refuses those of other tasks."""
    options = {name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name in (*OPTIONS, *FLAGS)}
    path = args.data[0] if len(args.data) == 1 else args.data
    data = load_examples(args.format, path, task=args.task, split=args.split, on_bad_row=args.on_bad_row, **options)
    for task in data.unique("task"):
        row = get_task(task)
        if args.task not in (None, task):
            raise ValueError(f"{path} has Examples of task {task!r}, and not only of {args.task!r}.")
        if row.takes_audio:
            raise ValueError(f"Task {task!r} is about recorded speech, which these models do not read.")
        if row.answer == "label" and args.strategy == "auto" and not (args.answers or processor.closed_list(row)):
            raise ValueError(f"Task {task!r} chooses from a list that you give: --answers FILE.")
    return data if args.limit is None else data.select(range(min(args.limit, len(data))))


def load(cls: Any, model: str, **options: Any) -> Any:
    """Loads a part of a checkpoint."""
    try:
        return cls.from_pretrained(model, **options)
    except Exception as error:  # whatever is wrong in a user's folder, or on the way to the Hub
        raise CommandError(f"cannot load the checkpoint {model}: {first_line(error)}") from error


def read_categories(args: argparse.Namespace) -> dict[str, int] | None:
    """Gives COCO's numbers of the labels, where the data has them."""
    if args.format != "coco_detection":
        return None
    categories = json.loads(Path(args.data[0]).read_bytes())["categories"]
    return {category["name"]: category["id"] for category in categories}


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    if args.task is not None:
        get_task(args.task)
    answers = None if args.answers is None else read_answers(args.answers)
    check_model(args.model)
    processor = load(OFAProcessor, args.model)
    accelerator = Accelerator()
    if not accelerator.is_main_process:
        logging.disable(logging.WARNING)
        datasets.disable_progress_bars()
    on_main(accelerator, lambda: len(load_data(args, processor)))  # the others find it in the cache
    data = load_data(args, processor)
    args.output = args.output or Path("evaluation") / (args.task or args.format)

    dtype = "float32" if args.dtype == "auto" and accelerator.device.type == "cpu" else args.dtype
    model = load(OFAForConditionalGeneration, args.model, dtype=dtype).to(accelerator.device).eval()
    try:
        return evaluate(
            Predictor(model, processor, answers, args.strategy, args.decoder_prompt, args.with_scores),
            data,
            args.output,
            batch_size=args.batch_size,
            accelerator=accelerator,
            metric=args.metric,
            metric_options=args.metric_options,
            categories=read_categories(args),
            pictures=args.pictures,
            seed=args.seed,
            on_bad_row=args.on_bad_row,
        )
    except torch.OutOfMemoryError as error:
        raise CommandError(f"{accelerator.device} has too little memory for --batch-size {args.batch_size}") from error
    finally:
        accelerator.end_training()


def tell(metrics: dict[str, Any], output: Path) -> None:
    """Prints the scores as a table, and where everything is."""
    for task, found in metrics.items():
        unreadable = f", {found['unreadable']} unreadable" if found["unreadable"] else ""
        print(f"{task}: {found['examples']} examples, {found['scored']} scored{unreadable} ({found['metric']})")
        if found["scores"] is None:
            print("  no score, since the data does not say what is right")
        for name, value in (found["scores"] or {}).items():
            print(f"  {name:24} {value:.4f}{'  *' if name == found['headline'] else ''}")
    files = sorted(path.name for path in output.iterdir() if path.name != "parts")
    print(f"{output}: {', '.join(files)}")


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    transformers.logging.set_verbosity_error()
    try:
        metrics = run(args)
    except (CommandError, ValueError, TypeError, OSError, ImportError) as error:
        print(f"evaluate.py: error: {first_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate.py: interrupted; the same command goes on after the last batch", file=sys.stderr)
        return 130
    if metrics is not None:
        tell(metrics, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
