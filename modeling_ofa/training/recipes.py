"""Recipes: one YAML file for all settings of a training run, any of which the command line may override."""

import argparse
import dataclasses
import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


class _Loader(yaml.SafeLoader):
    """PyYAML, but 1e-4 is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class _Parser(HfArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(message)  # instead of the usage of two hundred options


def parse_recipe(
    kinds: Sequence[Any], arguments: Sequence[str] | None = None, description: str | None = None
) -> tuple[Any, ...]:
    """
    Reads the settings of a run: `--config FILE.yaml`, and whatever else is said on the command line.

    A recipe is a mapping of names of fields to values. The command line takes the same names and wins:
    `--learning_rate 1e-4`, or `--model_config.dropout 0.2` for one entry of a mapping. Fields of type `str` that get a
    mapping or a list hold it as JSON. A key without a value is as if it were not there. Several `--config` add up, the
    later ones win.

    If a field is called `total_batch_size`, `gradient_accumulation_steps` follows from it, so that as many rows make a
    step whatever the number of processes is.

    Args:
        kinds (`Sequence[type]`): Data classes, one of them [`TrainingArguments`] or a subclass.
        arguments (`Sequence[str]`, *optional*): In place of the command line.
        description (`str`, *optional*): What `--help` says first.

    Returns:
        `tuple`: An instance of each of `kinds`.

    Raises:
        ValueError: A key is unknown (the message names near ones), a value does not fit, or `total_batch_size` cannot
            be reached, or a polynomial schedule has no step behind its warm-up.
        OSError: There is no such file.
    """
    parser = _Parser(
        kinds, description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", action="append", metavar="FILE", help="a recipe; see recipes/")
    fields = [field.name for kind in kinds for field in dataclasses.fields(kind) if field.init]
    files, words = _split_off_files(arguments)
    values: dict[str, Any] = {}
    for file in files:
        read = read_yaml(file)
        refuse_unknown(read, fields, f"{file}: ")
        values |= read
    words = _override_entries(values, words)
    refuse_unknown(values, fields)
    if words and not words[0].startswith("-"):
        raise ValueError(f"{words[0]!r} belongs to no option.")
    lists = {action.dest for action in parser._actions if action.nargs == "+"}
    words = [word for name, value in values.items() for word in _as_words(name, value, name in lists)] + words

    known, unknown = parser.parse_known_args(words)
    refuse_unknown([word[2:].split("=")[0] for word in unknown if word.startswith("--")], fields)
    if unknown:
        raise ValueError(f"{unknown[0]!r} belongs to no option.")
    if total := getattr(known, "total_batch_size", None):
        processes = int(os.environ.get("WORLD_SIZE", 1))
        steps = _accumulation(total, known.per_device_train_batch_size, processes)
        words.append(f"--gradient_accumulation_steps={steps}")
    parsed = parser.parse_args_into_dataclasses(words, look_for_args_file=False)[: len(kinds)]
    for one in parsed:
        if not isinstance(one, TrainingArguments):
            continue
        if one.n_gpu > 1:
            raise ValueError(f"One process drives {one.n_gpu} devices: start one a device with `accelerate launch`.")
        # The polynomial schedule of transformers would divide by zero after the first step.
        if one.lr_scheduler_type == "polynomial" and 0 < one.max_steps == one.get_warmup_steps(one.max_steps):
            raise ValueError(
                f"All steps are warm-up with max_steps {one.max_steps} and warmup_steps {one.warmup_steps}: give more "
                "steps, or --warmup_steps 0."
            )
    return parsed


def read_yaml(file: str | os.PathLike) -> dict[str, Any]:
    """
    Reads a recipe.

    Raises:
        ValueError: The file is no YAML mapping of names to values.
        OSError: There is no such file.
    """
    try:
        values = yaml.load(Path(file).read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        # On one line, which is all that scripts print of an error.
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{file} must be a mapping, a line `name: value` for each setting.")
    return values


def last_checkpoint(folder: str | os.PathLike) -> str | None:
    """
    Gives the newest checkpoint of a run that is whole, for `trainer.train(resume_from_checkpoint=…)`, or `None`.
    Trainer writes its state last, so what a kill interrupted has none, or half of one.

    Args:
        folder (`str` or `os.PathLike`): The run's `output_dir`.
    """
    found = Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    numbered = {int(path.name.split("-")[-1]): path for path in found if path.name.split("-")[-1].isdecimal()}
    for _, path in sorted(numbered.items(), reverse=True):
        try:
            TrainerState.load_from_json(str(path / "trainer_state.json"))
        except (OSError, ValueError, TypeError):
            continue
        return str(path)
    return None


def is_over(folder: str | os.PathLike, max_steps: int) -> bool:
    """
    Tells whether a run has taken all its steps and ended with `trainer.save_state()`. `Trainer` would take one more.

    Args:
        folder (`str` or `os.PathLike`): The run's `output_dir`.
        max_steps (`int`): How many steps it was to take.
    """
    try:
        state = TrainerState.load_from_json(str(Path(folder) / "trainer_state.json"))
    except (OSError, ValueError, TypeError):
        return False
    return state.global_step >= max_steps > 0


def _split_off_files(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    known, rest = parser.parse_known_args(arguments)
    return known.config, rest


def refuse_unknown(names: Iterable[str], fields: Sequence[str], where: str = "") -> None:
    """
    Refuses names of settings that there are not.

    Args:
        names (`Iterable[str]`): The names.
        fields (`Sequence[str]`): The settings that there are.
        where (`str`, *optional*): What the message begins with.

    Raises:
        ValueError: A name is unknown; the message has the nearest ones that are known.
    """
    for name in names:
        plain = name.replace("-", "_").split(".")[0]
        if plain not in fields and plain.removeprefix("no_") not in fields:
            near = difflib.get_close_matches(plain, fields)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; --help lists the settings."
            raise ValueError(f"{where}there is no setting {name!r}{hint}")


def _override_entries(values: dict[str, Any], words: Sequence[str]) -> list[str]:
    """Takes `--name.entry value` into the mappings of the recipe, and gives the other words back."""
    left, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        option, mark, text = word.partition("=")
        name, _, entry = option.removeprefix("--").partition(".")
        if not (option.startswith("--") and entry):
            left.append(word)
            continue
        if not mark and not rest:
            raise ValueError(f"{option} needs a value.")
        name, entry = name.replace("-", "_"), entry.replace("-", "_")
        current = values.get(name) or {}
        if not isinstance(current, Mapping):
            raise ValueError(f"{option}: {name!r} is no mapping in this recipe, but {current!r}.")
        values[name] = {**current, entry: yaml.load(text if mark else rest.pop(0), _Loader)}
    return left


def _as_words(name: str, value: Any, is_list: bool) -> list[str]:
    """Writes an entry of a recipe as words of a command line, which gives it its type."""
    if value is None:
        return []
    if is_list and isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict | list | bool) else value}"]


def _accumulation(total: int, per_device: int, processes: int) -> int:
    """How many batches of all processes make a step of `total` rows."""
    if total % (per_device * processes):
        raise ValueError(
            f"{total} rows a step (total_batch_size) are no multiple of {processes} processes with {per_device} rows "
            "at a time (per_device_train_batch_size)."
        )
    return total // (per_device * processes)


__all__ = ["is_over", "last_checkpoint", "parse_recipe", "read_yaml", "refuse_unknown"]
