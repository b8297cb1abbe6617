"""Cards of models and data sets: what their files tell, and what their authors add."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from ..modeling_ofa import OFAForSequenceClassification, OFAPreTrainedModel
from ..processing_ofa import OFAProcessor
from ..tasks_ofa import TASKS, Task, get_task
from ..vision_ofa import PATCH_SIZE


_UNTOLD = "Not recorded."
_TASKS = ("caption", "vqa", "visual_grounding")  # that a card shows, of a model for all
# What the Hub calls tasks; it calls the others by what it calls the model.
_ON_HUB = {
    "caption": "image-to-text",
    "vqa": "visual-question-answering",
    "image_classification": "image-classification",
    "object_detection": "object-detection",
    "image_generation": "text-to-image",
    "summarization": "summarization",
    **dict.fromkeys(("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2"), "text-classification"),
}
# What snippets ask.
_TEXTS = {
    "vqa": "what is in the picture?",
    "visual_grounding": "the dog",
    "grounded_caption": "8,8,60,60",
    "image_text_matching": "a dog on a beach",
    "visual_entailment": "there is an animal",
    "image_generation": "a dog on a beach",
}
_TEXT, _PAIR, _ANSWERS = "a dog sleeps on the beach", "there is an animal", ["dog", "cat"]
_KEYS = {"text": "text", "label": "label", "box": "boxes", "boxes": "boxes", "codes": "codes"}

CITATION = """\
@inproceedings{wang2022ofa,
  author    = {Wang, Peng and Yang, An and Men, Rui and Lin, Junyang and Bai, Shuai and Li, Zhikang and
               Ma, Jianxin and Zhou, Chang and Zhou, Jingren and Yang, Hongxia},
  title     = {{OFA}: Unifying Architectures, Tasks, and Modalities Through a Simple Sequence-to-Sequence
               Learning Framework},
  booktitle = {International Conference on Machine Learning},
  year      = {2022},
  eprint    = {2202.03052},
  archivePrefix = {arXiv}
}"""


@dataclass(frozen=True)
class Measured:
    """
    A score of a model.

    Args:
        task (`str`): The task.
        metric (`str`): The metric's name.
        value (`float`): The score.
        examples (`int`): The number of examples that it is about.
        is_headline (`bool`): Whether models are compared by it.
        data (`str`, *optional*): The data, if it is not what the card calls `eval_data`.
        chance (`float`, *optional*): The score of a guess that does not look.
    """

    task: str
    metric: str
    value: float
    examples: int
    is_headline: bool = False
    data: str | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Card:
    """
    What a card says of a model besides what its configuration tells. What is `None` or empty is looked for in the
    model's folder ([`Card.completed`]); what is not there either, the card says was not recorded.

    Args:
        title (`str`, *optional*): The headline; the repository's name by default.
        summary (`str`): What the model is, in front of all else.
        license (`str`, *optional*): The Hub's name of the licence: `"apache-2.0"`.
        language (`Sequence[str]`): Codes of the languages: `["en"]`.
        base_model (`str`, *optional*): The model on the Hub that this one was made from.
        datasets (`Sequence[str]`): The data sets on the Hub that it was trained on.
        eval_data (`str`, *optional*): What the scores were measured on: a data set on the Hub, or a name.
        tasks (`Sequence[str]`): The tasks that it is for, which the usage shows.
        results (`Sequence[Measured]`): Scores.
        usage, training, evaluation, limits, environment (`str`):
            The texts of these sections, in Markdown. Scores stand in front of `evaluation`.
    """

    title: str | None = None
    summary: str = ""
    license: str | None = None
    language: Sequence[str] = ()
    base_model: str | None = None
    datasets: Sequence[str] = ()
    eval_data: str | None = None
    tasks: Sequence[str] = ()
    results: Sequence[Measured] = ()
    usage: str = ""
    training: str = ""
    evaluation: str = ""
    limits: str = ""
    environment: str = ""

    def completed(self, folder: Path, base_model: str | None = None) -> "Card":
        """
        Adds what a folder tells: of scripts/finetune.py what it trained (`recipe.json`), of `Trainer` how long
        (`trainer_state.json`), of scripts/evaluate.py the scores (`metrics.json`, here or in `evaluation/`).

        Args:
            folder (`Path`): The folder of the model.
            base_model (`str`, *optional*): The model that it was made from, if that is known.
        """
        recipe, state = _read(folder / "recipe.json"), _read(folder / "trainer_state.json")
        places = [place for place in (folder / "evaluation", folder) if (place / "metrics.json").is_file()]
        results = self.results or (_results(_read(places[0] / "metrics.json")) if places else ())
        data = [{**_mapping(recipe, "data"), **_mapping(recipe, name)} for name in ("train_data", "eval_data")]
        start = recipe.get("model_name_or_path") or ""
        is_on_hub = bool(start) and not Path(start).exists() and not Path(start).is_absolute()
        named = dict.fromkeys([one.task for one in results] + [one.get("task") for one in data])
        return replace(
            self,
            base_model=self.base_model or base_model or (start if is_on_hub else None),
            eval_data=self.eval_data or _name_of(data[1]) or None,
            tasks=self.tasks or [name for name in named if name in TASKS],
            results=results,
            training=self.training or _training(recipe, state, _name_of(data[0])),
            evaluation=self.evaluation or (_evaluation(_read(places[0] / "manifest.json")) if places else ""),
            environment=self.environment or _environment(state),
        )

    def of_model(self, repo_id: str, model: OFAPreTrainedModel, processor: OFAProcessor) -> str:
        """
        Gives the card of a model.

        Args:
            repo_id (`str`): The repository.
            model ([`OFAPreTrainedModel`]): The model.
            processor ([`OFAProcessor`]): Its processor.
        """
        config, parameters = model.config, model.num_parameters()
        is_classifier = isinstance(model, OFAForSequenceClassification)
        about = (
            f"An OFA of {parameters / 1e6:,.1f} million parameters: {config.encoder_layers} encoder and "
            f"{config.decoder_layers} decoder layers of width {config.d_model}, for pictures of at most "
            f"{config.image_bucket_size * PATCH_SIZE} pixels a side and {config.max_position_embeddings:,} tokens."
        )
        auto = "AutoModelForSequenceClassification" if is_classifier else "AutoModelForImageTextToText"
        pipeline = None if is_classifier else "image-text-to-text"
        return self._text(repo_id, about, "transformers", pipeline, self._usage(repo_id, auto, processor))

    def of_adapter(self, repo_id: str, processor: OFAProcessor | None) -> str:
        """
        Gives the card of an adapter of `base_model`.

        Args:
            repo_id (`str`): The repository.
            processor ([`OFAProcessor`], *optional*): The adapter's, if it has one.
        """
        about = f"An adapter of `peft` for [{self.base_model}](/{self.base_model})."
        usage = self._usage(repo_id, "AutoModelForImageTextToText", processor)
        return self._text(repo_id, about, "peft", "image-text-to-text", usage)

    def _text(self, repo_id: str, about: str, library: str, pipeline: str | None, usage: str) -> str:
        name = repo_id.split("/")[-1]
        shown = [
            EvalResult(
                task_type=_ON_HUB.get(one.task, "image-text-to-text"),
                task_name=one.task,
                dataset_type=re.sub(r"[^\w./]+", "-", data.lower()),  # the Hub wants a word
                dataset_name=data,
                dataset_config=one.task,  # else results of two tasks of one type become those of the first
                metric_type=one.metric,
                metric_value=round(one.value, 4),
            )
            for one in self.results
            if (data := one.data or self.eval_data) is not None  # the Hub takes no results without
        ]
        facts = ModelCardData(
            library_name=library,
            pipeline_tag=pipeline,
            license=self.license,
            language=list(self.language) or None,
            base_model=self.base_model,
            datasets=list(self.datasets) or None,
            metrics=sorted({one.metric for one in self.results}) or None,
            tags=["ofa", "arxiv:2202.03052", *sorted({*self.tasks, *(one.task for one in self.results)})],
            eval_results=shown or None,
            model_name=name if shown else None,
        )
        sections = {
            "Use": self.usage or usage,
            "Training": "\n".join([*self._data(), self.training]).strip() or _UNTOLD,
            "Evaluation": "\n\n".join(one for one in (self._table(), self.evaluation) if one)
            or "Nothing was measured, or nothing of it was recorded.",
            "Limits": self.limits or self._limits(),
            "Environment": self.environment or f"Hardware, time, energy and emissions: {_UNTOLD.lower()}",
            "Citation": f"```bibtex\n{CITATION}\n```",
        }
        return _join(facts.to_yaml(), self.title or name, f"{self.summary}\n\n{about}".strip(), sections)

    def _data(self) -> list[str]:
        lines = [] if self.base_model is None else [f"- Made from [{self.base_model}](/{self.base_model})."]
        return lines + [f"- Trained on [{name}](/datasets/{name})." for name in self.datasets]

    def _table(self) -> str:
        """The scores; a star marks those by which models are compared."""
        if not self.results:
            return ""
        lines = [["task", "data", "metric", "score", "by chance", "examples"], ["---"] * 6]
        for one in self.results:
            chance = "" if one.chance is None else f"{one.chance:.4f}"
            name = one.metric + "*" * one.is_headline
            data = one.data or self.eval_data or "not named"
            lines.append([one.task, data, name, f"{one.value:.4f}", chance, f"{one.examples:,}"])
        if all(one.chance is None for one in self.results):
            lines = [cells[:4] + cells[5:] for cells in lines]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        has_star = any(one.is_headline for one in self.results)
        return table + ("\n\nA star marks the score by which models are compared." if has_star else "")

    def _limits(self) -> str:
        measured = sorted({one.task for one in self.results})
        told = f"{', '.join(measured)} on the data above, and for nothing else" if measured else "no task"
        return (
            f"- Measured for {told}: try it on data of your own before you rely on it.\n"
            "- It answers whatever it is asked, and its answers may be wrong or made up. Pictures and texts of the "
            "web, which OFA models are first trained on, carry its prejudices; none of that was measured here.\n"
            "- Not for decisions about people, nor where a wrong answer does harm."
        )

    def _usage(self, repo_id: str, auto: str, processor: OFAProcessor | None) -> str:
        tasks = [get_task(name) for name in self.tasks or _TASKS]
        takes_image = any(task.takes_image for task in tasks)
        lines = ["from PIL import Image"] * takes_image
        lines += [
            f"from transformers import {auto}, AutoProcessor",
            "",
            f'processor = AutoProcessor.from_pretrained("{repo_id}", trust_remote_code=True)',
            f'model = {auto}.from_pretrained("{repo_id}", trust_remote_code=True).eval()',
        ]
        lines += ['image = Image.open("picture.png")'] * takes_image
        for task in tasks:
            lines += ["", *_snippet(task, processor, auto == "AutoModelForSequenceClassification")]
        return (
            "```python\n" + "\n".join(lines) + "\n```\n\n"
            "The code of the model is part of this repository. With the package `modeling-ofa` installed, "
            "`import modeling_ofa` takes the place of `trust_remote_code=True`."
        )


def data_card(repo_id: str, folder: Path, files: Mapping[str, Path], card: Card) -> str:
    """
    Gives the card of a data set.

    Args:
        repo_id (`str`): The repository.
        folder (`Path`): The folder.
        files (`Mapping[str, Path]`): The files that go, by their names there.
        card ([`Card`]): What its authors add: `title`, `summary`, `license`, `language`, `tasks`.
    """
    facts = DatasetCardData(license=card.license, language=list(card.language) or None, tags=["ofa"])
    splits = _read(folder / "manifest.json")
    rows = [f"- `{name}`: {split['rows'] - split['bad_rows']:,} rows" for name, split in splits.items()]
    size = sum(file.stat().st_size for file in files.values())
    lines = [*rows, f"- {len(files):,} files, {size / 1e6:,.1f} MB"]
    split = next(iter(splits), "train")
    code = (
        "from modeling_ofa.data import load_examples\n\n"
        f'rows = load_examples("hub", "{repo_id}", split="{split}"{_task_option(card.tasks)})'
    )
    sections = {"Contents": "\n".join(lines), "Use": f"```python\n{code}\n```", "Where it comes from": _UNTOLD}
    return _join(facts.to_yaml(), card.title or repo_id.split("/")[-1], card.summary, sections)


def _task_option(tasks: Sequence[str]) -> str:
    return f', task="{tasks[0]}"' if len(tasks) == 1 else ""


def _snippet(task: Task, processor: OFAProcessor | None, is_classifier: bool) -> list[str]:
    """The lines that ask one task."""
    given = [f'task="{task.name}"'] + ["images=image"] * task.takes_image
    if task.takes_text:
        given.append(f'text="{_TEXTS.get(task.name, _TEXT)}"')
    if task.needs_pair:
        given.append(f'text_pair="{_PAIR}"')
    asked = f'inputs = processor({", ".join(given)}, return_tensors="pt")'
    if is_classifier:
        return [asked, "print(model(**inputs).logits.softmax(-1))"]
    is_open = task.answer == "label" and (processor is None or processor.closed_list(task) is None)
    options = f'"{task.name}"' + (f", answers={json.dumps(_ANSWERS)}" if is_open else "")
    sizes = ", image_sizes=[(image.height, image.width)]" if task.answer in ("box", "boxes") else ""
    return [
        asked,
        f"ids = model.generate(**inputs, **processor.generation_kwargs({options}))",
        f'print(processor.post_process(ids, task="{task.name}"{sizes})[0]["{_KEYS[task.answer]}"])',
    ]


def _join(metadata: str, title: str, summary: str, sections: Mapping[str, str]) -> str:
    head = f"---\n{metadata}\n---\n\n# {title}\n" + (f"\n{summary}\n" if summary else "")
    return head + "".join(f"\n## {name}\n\n{text}\n" for name, text in sections.items())


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file holds, nothing if there is none or if it holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _mapping(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A setting of a recipe that is a mapping written as JSON."""
    try:
        return dict(json.loads(recipe.get(name) or "{}"))
    except (TypeError, ValueError):
        return {}


def _name_of(data: Mapping[str, Any]) -> str:
    """The name of data, which is its id on the Hub or that of its file, without the folders of this machine."""
    path = data.get("path") or ""
    path = path[0] if isinstance(path, list) else path
    return path if data.get("format") == "hub" and not Path(path).exists() else Path(path).name


def _results(metrics: Mapping[str, Any]) -> list[Measured]:
    """The scores that `modeling_ofa.evaluation` has written."""
    return [
        Measured(task, name, float(value), found["scored"], name == found["headline"])
        for task, found in metrics.items()
        if isinstance(found, dict) and "headline" in found
        for name, value in (found["scores"] or {}).items()
        if isinstance(value, int | float)
    ]


def _evaluation(manifest: Mapping[str, Any]) -> str:
    names = ("version", "dtype", "strategy", "decoder_prompt")
    told = "".join(f", {name.replace('_', ' ')} {manifest[name]}" for name in names if manifest.get(name))
    return f"Measured by `scripts/evaluate.py` of modeling_ofa{told}."


def _training(recipe: Mapping[str, Any], state: Mapping[str, Any], data: str) -> str:
    lines = [f"- Fine-tuned with `scripts/finetune.py` of modeling_ofa on `{data}`."] if data else []
    for name, words in (("peft", "`peft`"), ("reward", "Self-critical training, reward"), ("freeze", "Frozen")):
        if recipe.get(name):
            value = recipe[name]
            lines.append(f"- {words}: {', '.join(value) if isinstance(value, list) else value}")
    if state:
        losses = [entry["loss"] for entry in state.get("log_history", []) if "loss" in entry]
        words = f"{losses[0]:.3f}" if losses else ""
        if len(losses) > 1:
            words += f" at first, {losses[-1]:.3f} at the end"
        lines.append(
            f"- {state['global_step']:,} steps, {state['epoch']:.2f} epochs" + (f"; loss {words}" if words else "")
        )
    return "\n".join(lines)


def _environment(state: Mapping[str, Any]) -> str:
    times = [entry["train_runtime"] for entry in state.get("log_history", []) if "train_runtime" in entry]
    if not times:
        return ""
    return f"Training took {times[-1] / 3600:.2f} hours. The hardware, energy and emissions were not recorded."


__all__ = ["CITATION", "Card", "Measured", "data_card"]
