"""
Pipelines of OFA's own: `pipeline("ofa-vqa", …)` and one for every other task of the table, and one that embeds.

transformers' pipelines make tensors of one input and pad them to batches. Ours keep the inputs as rows of data until a
batch is complete, for rows are what the processor pads, and what [`Predictor`] decodes.
"""

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import PIL.Image
import torch
from torch.utils.data import Dataset, Subset
from transformers import AutoModel, AutoModelForImageTextToText
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline

from .predictor_ofa import Predictor, read_row
from .processing_ofa import OFAProcessor
from .remote_code_ofa import add_code
from .tasks_ofa import TASKS, Task, get_task


# Columns of a picture that `datasets` left undecoded.
_UNDECODED = {"bytes", "path"}


class OFARowPipeline(Pipeline):
    """
    What the pipelines share: rows of data in, one by one or in batches, from a list, a data set or a stream. A
    subclass says what a bare input is (`column_of`) and answers rows (`answer`).
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _pipeline_calls_generate = False  # its options come from the processor, by task

    def __init__(self, model: Any, processor: OFAProcessor, **kwargs: Any):
        kwargs.pop("local_files_only", None)  # which `pipeline()` has used, and passes on
        super().__init__(model, processor=processor, **kwargs)

    def column_of(self, item: Any) -> str:
        """Says which column of a row an input is that comes without one: `"image"` or `"text"`."""
        raise NotImplementedError

    def answer(self, rows: Sequence[Mapping[str, Any]], *args: Any, **kwargs: Any) -> Any:
        """Answers rows: a list, or a tensor, with as many entries."""
        raise NotImplementedError

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """
        Answers inputs.

        Args:
            inputs:
                One input or several, as the class says. What is no list, but has several inputs (a data set, a
                generator, anything to go through), is read as answers are taken from the result.
            **kwargs:
                `batch_size`, `num_workers`, and what the class takes, in place of what `pipeline()` was given.

        Returns:
            For one input its answer, for a list the list of answers, for others something that gives them in turn.
        """
        is_one = isinstance(inputs, str | bytes | Mapping | PIL.Image.Image) or hasattr(inputs, "ndim")
        if isinstance(inputs, list | tuple):
            inputs = list(inputs)
            if not inputs:
                return []
        elif not is_one and isinstance(inputs, Iterable) and not isinstance(inputs, Dataset):
            # The base class knows torch's data sets and generators, but not those of `datasets`.
            several: Any = inputs
            has_places = hasattr(several, "__getitem__") and hasattr(several, "__len__")
            inputs = Subset(several, range(len(several))) if has_places else (item for item in several)
        return super().__call__(inputs, **kwargs)

    def row_of(self, item: Any) -> dict[str, Any]:
        """Gives an input as a row."""
        if isinstance(item, Mapping) and not (item and item.keys() <= _UNDECODED):
            return dict(item)
        return {self.column_of(item): item}

    def preprocess(self, input_: Any, **columns: Any) -> dict[str, Any]:
        """Reads an input. `columns` are those of a row that lacks them."""
        row = self.row_of(input_)
        row |= {name: value for name, value in columns.items() if row.get(name) is None}
        return {"row": read_row(self.processor, row)}  # in batches a list of rows

    def _forward(self, input_tensors: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        rows = input_tensors["row"]
        if isinstance(rows, list):
            return {"answer": self.answer(rows, **kwargs)}
        return {"answer": self.answer([rows], **kwargs)[0]}

    def postprocess(self, model_outputs: Mapping[str, Any]) -> Any:
        """Gives the answer to one input."""
        return model_outputs["answer"]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        Saves model and processor with their code, so that all pipelines of this module work from the folder where the
        package is not installed: `pipeline("ofa-vqa", model=save_directory, trust_remote_code=True)`.

        Args:
            save_directory (`str` or `os.PathLike`): The folder.
            **kwargs: Passed to the model's `save_pretrained`.

        Raises:
            `ValueError`: with `push_to_hub=True`, which is a method of its own.
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("To publish a pipeline with all its files, call pipe.push_to_hub('OWNER/NAME').")
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        add_code(save_directory, custom_pipelines())


class OFAPipeline(OFARowPipeline):
    """
    Answers of a task: `pipeline("ofa-" + NAME)`, the name of a row of `TASKS` with hyphens, such as
    `"ofa-visual-grounding"`. Plain `"ofa"` takes rows that name their task themselves, of any tasks, also your own.

    An input is a picture (a PIL picture, a path, a URL or the bytes of a file), or a text for tasks without a picture,
    or a row: a mapping with those of the columns `image`, `text`, `text_pair` and `objects` that the task takes.
    Others are not read, so rows of data sets may have them. An answer is what [`OFAProcessor.post_process`] gives,
    or, where there is a closed list, [`OFAProcessor.post_process_candidates`].

    Args:
        model ([`OFAForConditionalGeneration`]): The model.
        processor ([`OFAProcessor`]): Its processor.
        task (`str`, *optional*, defaults to `"ofa"`): The name of the pipeline.
        **kwargs:
            `device`, `batch_size`, …, as of [`Pipeline`]; and these, for every call that does not say otherwise:

            - text, text_pair (`str`): what the task asks of every input that comes without.
            - answers (`list[str]`, or a `dict` of these by name of task): the closed list from which the most
              probable answer is taken, exactly, where the list is not the task's own.
            - top_k (`int`, defaults to 1): how many of the best of a closed list to give under `"ranking"`, if more
              than one.
            - with_scores (`bool`, defaults to `True`): whether what is generated has a score. This keeps the scores of
              all words at all steps in memory.
            - generate_kwargs (`dict[str, Any]`): options of `generate`, in place of the task's own.

    Raises:
        `ValueError`: if the model cannot write, or if the task takes none of what was given.
        `TypeError`: if an argument or an input is something else.

    Example:

    ```python
    >>> pipe = pipeline("ofa-vqa", model=modeling_ofa.DEFAULT_CHECKPOINT)
    >>> pipe("dog.jpg", text="what color is the ball?", answers=["red", "green", "blue"], top_k=2)
    {'text': 'red', 'score': 0.87, 'ranking': [('red', 0.87), ('blue', 0.11)]}
    ```
    """

    def __init__(self, model: Any, processor: OFAProcessor, task: str = "ofa", **kwargs: Any):
        if not hasattr(model, "score_candidates"):
            raise ValueError(
                f"{task!r} needs a model that writes answers, OFAForConditionalGeneration, not {type(model).__name__}."
            )
        self.ofa_task: Task | None = None if task == "ofa" else get_task(task.removeprefix("ofa-").replace("-", "_"))
        self._options: dict[str, Any] = {}
        self._predictor: Predictor | None = None
        super().__init__(model, processor, task=task, **kwargs)

    def _sanitize_parameters(
        self,
        text: Any = None,
        text_pair: str | None = None,
        answers: Any = None,
        top_k: int | None = None,
        with_scores: bool | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(
                f"{self.task!r} takes text, text_pair, answers, top_k, with_scores and generate_kwargs, not "
                f"{', '.join(unknown)}. Options of `generate` go into generate_kwargs={{…}}."
            )
        task = self.ofa_task
        if answers is not None and task is not None and (task.answers or task.answer not in ("text", "label")):
            own = f"chooses from {', '.join(task.answers)}" if task.answers else "does not answer in words"
            raise ValueError(f"Task {task.name!r} takes no answers=: it {own}.")
        columns = {"text": text, "text_pair": text_pair}
        # A copy, for the trie of a list is kept as long as the list is the same.
        options = {"answers": copy.deepcopy(answers), "top_k": top_k, "with_scores": with_scores}
        options["generate_kwargs"] = generate_kwargs
        given = [{name: value for name, value in part.items() if value is not None} for part in (columns, options)]
        return given[0], given[1], {}

    def column_of(self, item: Any) -> str:
        """Says that a bare input is the picture of a task that takes one, and the text of others."""
        if self.ofa_task is None:
            raise TypeError(f"'ofa' takes rows that name their task, {{'task': …}}, not {type(item).__name__}.")
        return "image" if self.ofa_task.takes_image else "text"

    def row_of(self, item: Any) -> dict[str, Any]:
        """Gives an input as a row, which names its task."""
        row = super().row_of(item)
        task = self.ofa_task
        if task is not None and get_task(row.setdefault("task", task)) != task:
            raise ValueError(f"{self.task!r} was given a row of task {row['task']!r}; the pipeline 'ofa' takes any.")
        return row

    def answer(
        self,
        rows: Sequence[Mapping[str, Any]],
        answers: Any = None,
        top_k: int = 1,
        with_scores: bool = True,
        generate_kwargs: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Answers rows, which the [`Predictor`] decodes together as far as they are of a kind."""
        options = {"answers": answers, "with_scores": with_scores, "generate_kwargs": generate_kwargs}
        predictor = self._predictor
        if predictor is None or options != self._options:
            predictor = self._predictor = Predictor(self.model, self.processor, **options)
            self._options = options
        if self.ofa_task is not None:
            chooses = predictor.closed_list(self.ofa_task) is not None
            if top_k != 1 and not chooses:
                raise ValueError(f"top_k ranks a closed list, and {self.task!r} has none: give answers=[…].")
            if generate_kwargs and chooses:
                raise ValueError(
                    f"{self.task!r} chooses from a closed list here, and generates nothing: leave generate_kwargs out."
                )
        return predictor(rows, top_k)


class OFAEmbeddingPipeline(OFARowPipeline):
    """
    One vector of length 1 for a picture, a text or both: `pipeline("ofa-embedding")`. It is the mean of the encoder's
    last states of all patches and words; `<s>`, `</s>` and padding do not count.

    OFA was not trained for this: vectors of pictures and of texts lie apart, and are compared after the mean of each
    kind is taken off (docs/embeddings.md).

    An input is a text, a picture (a PIL picture, or the bytes of a file), or a row: a mapping with `image` (also a
    path or a URL), `text` or both.

    Args:
        model ([`OFAModel`] or [`OFAForConditionalGeneration`]): The model.
        processor ([`OFAProcessor`]): Its processor.
        **kwargs:
            `device`, `batch_size`, …, as of [`Pipeline`]; and these, for every call that does not say otherwise:

            - return_tensors (`bool`, defaults to `False`): whether a vector is a `torch.FloatTensor` of shape
              `(d_model,)` and no list.
            - truncation (`bool`, defaults to `False`): whether texts longer than the model reads are cut.

    Raises:
        `ValueError`: if an input has neither picture nor text, or a text is too long.

    Example:

    ```python
    >>> pipe = pipeline("ofa-embedding", model=modeling_ofa.DEFAULT_CHECKPOINT)
    >>> pipe([image, {"image": "dog.jpg"}, "a dog"], batch_size=3, return_tensors=True)
    [tensor([…]), tensor([…]), tensor([…])]
    ```
    """

    def _sanitize_parameters(
        self, return_tensors: bool | None = None, truncation: bool | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        forward = {} if truncation is None else {"truncation": truncation}
        return {}, forward, {} if return_tensors is None else {"return_tensors": return_tensors}

    def column_of(self, item: Any) -> str:
        """Says that a bare string is a text."""
        return "text" if isinstance(item, str) else "image"

    def answer(self, rows: Sequence[Mapping[str, Any]], truncation: bool = False) -> torch.Tensor:
        """Embeds rows: `torch.FloatTensor` of shape `(rows, d_model)`."""
        if self.model.training:
            raise ValueError("Dropout would make vectors random: call `model.eval()` first.")
        pictures = [row.get("image") for row in rows]
        texts = [row.get("text") or "" for row in rows]
        for picture, text in zip(pictures, texts, strict=True):
            if picture is None and not text.strip():
                raise ValueError("There is nothing to embed in a row with neither an image nor a text.")
        has_pictures = any(picture is not None for picture in pictures)
        # OFA reads texts with a space before them; without a text there is none.
        texts = [text and f" {text.strip()}" for text in texts]
        options: dict[str, Any] = {"prompt_type": "none", "truncation": truncation, "return_tensors": "pt"}
        inputs = self.processor(pictures if has_pictures else None, texts, **options)
        encoded = self.model.get_encoder()(**inputs.to(self.model.device, self.model.dtype))
        states, mask = encoded.last_hidden_state.float(), encoded.attention_mask.clone()
        length = inputs["input_ids"].shape[1]
        tokenizer = self.processor.tokenizer
        for ends in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            mask[:, -length:] *= inputs["input_ids"].to(mask.device).ne(ends)
        pooled = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)  # (rows, d_model)
        return torch.nn.functional.normalize(pooled, dim=-1)

    def postprocess(self, model_outputs: Mapping[str, Any], return_tensors: bool = False) -> Any:
        """Gives the vector of one input."""
        vector = model_outputs["answer"].reshape(-1)
        return vector if return_tensors else vector.tolist()


# By name, the class of each pipeline and that of its model.
PIPELINES: dict[str, tuple[type[OFARowPipeline], type]] = {
    "ofa": (OFAPipeline, AutoModelForImageTextToText),
    **{
        "ofa-" + name.replace("_", "-"): (OFAPipeline, AutoModelForImageTextToText)
        for name, task in TASKS.items()
        if not task.takes_audio
    },
    "ofa-embedding": (OFAEmbeddingPipeline, AutoModel),
}


def register_pipelines() -> None:
    """Makes the pipelines known to `transformers.pipeline`."""
    for name, (pipeline_class, model_class) in PIPELINES.items():
        PIPELINE_REGISTRY.register_pipeline(name, pipeline_class=pipeline_class, pt_model=model_class)


def custom_pipelines() -> dict[str, Any]:
    """Gives the pipelines as `config.json` names them to those who load its code."""
    return {
        name: {"impl": f"pipelines_ofa.{pipeline_class.__name__}", "pt": [model_class.__name__]}
        for name, (pipeline_class, model_class) in PIPELINES.items()
    }


__all__ = ["PIPELINES", "OFAEmbeddingPipeline", "OFAPipeline", "custom_pipelines", "register_pipelines"]
