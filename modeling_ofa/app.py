"""
The page on which people try a checkpoint: a tab a task, in a browser.

`ofa app` serves it. A copy of this file beside the package is the `app.py` of a Space on the Hub (docs/app.md), so it
imports the package by its name.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from modeling_ofa.attention_maps import attention_maps
from modeling_ofa.cli.commands import COMMANDS
from modeling_ofa.cli.errors import CommandError
from modeling_ofa.cli.examples import read_examples
from modeling_ofa.cli.pictures import read_picture
from modeling_ofa.cli.predictor import EMBEDDED, Answerer, default_checkpoint, known_tasks, refusals
from modeling_ofa.cli.request import check_region, split_list, takes_answers
from modeling_ofa.cli.run import box_labels, plain_lines, present
from modeling_ofa.drawing import draw_boxes, draw_heat, enlarged
from modeling_ofa.tasks_ofa import TASKS, Task, get_task


SHOWN_WIDTH = 640  # of pictures with something drawn on them, in pixels
BARS = 10
MOST_ANSWERS = 1000  # in a list of the user's own
MOST_WAITING = 100
KEPT = 3600  # seconds that uploads and answers are kept
# One model answers everybody, so one question at a time is asked of it, whichever tab it comes from.
IN_TURN: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
LAYERS, HEADS, TOKENS = "mean of all layers", "mean of all heads", "mean of the whole answer"
SERVED: dict[str, Any] = {
    # fonts that are there: the page asks nothing of other hosts
    "theme": gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
    "css": "th { white-space: normal !important; }",  # long headers of examples
    "max_file_size": "20mb",
    "footer_links": ["api", "gradio"],
    "run_history": False,
    "ssr_mode": False,
}

_EMBEDDED = (
    "It comes with the package, and knows composed scenes of drawings of everyday things, as the examples show, and "
    "nothing else: **of photographs it says nothing useful.** A low probability means that it guesses."
)
_ATTENTION = (
    "Cross-attention of the decoder: how much each patch of the picture weighs, among what the encoder made of patches"
    " and instruction, while the answer is written. It shows where the model read, not why it answered so. Yellow is"
    " the most of one map, so two maps cannot be compared by colour."
)


class Desk:
    """
    Where one task is asked.

    Args:
        answerer ([`Answerer`]): The checkpoint, with scores.
        task (`str`): The name of the task.
    """

    def __init__(self, answerer: Answerer, task: str):
        self.answerer = answerer
        self.task = get_task(task)

    def ask(
        self,
        image: Mapping[str, Any] | None = None,
        text: str = "",
        text_pair: str = "",
        objects: str = "",
        answers: str = "",
    ) -> tuple[str, Image.Image | None, dict[str, float], dict[str, Any] | None]:
        """
        Answers one question.

        Args:
            image (`Mapping[str, Any]`, *optional*): The picture's file: its `path`, and its `orig_name` for messages.
            text, text_pair (`str`): The texts that the task takes.
            objects, answers (`str`): Names of what is seen, and answers to choose from, between commas.

        Returns:
            The answer, the picture with its boxes drawn, probabilities by answer or box, and the row of data that
            [`Desk.look`] takes, `None` if there is no answer to look at.

        Raises:
            gr.Error: if something is missing, or the model cannot take it; shown on the page.
        """
        task = self.task
        seen, choices = split_list(objects or ""), list(dict.fromkeys(split_list(answers or "")))
        row: dict[str, Any] = {"task": task.name}
        if task.takes_image:
            if image is None or image.get("path") is None:
                raise _mistake("there is no picture: upload one, or choose an example")
            row["image"] = _read_upload(image)
        for name, value, needed in (
            ("text", text, task.takes_text),
            ("text_pair", text_pair, task.needs_pair),
        ):
            if (value or "").strip():
                row[name] = self._checked(value, name)
            elif needed:
                raise _mistake(f"“{_label(task, name)}” is empty; write something there")
        if seen:
            row["objects"] = seen
        if len(choices) > MOST_ANSWERS:
            raise _mistake(f"{len(choices):,} answers to choose from are too many; {MOST_ANSWERS:,} are allowed")
        try:
            if task.answer == "label" and not choices and self.answerer.processor.closed_list(task) is None:
                raise CommandError("this task chooses from a list that you give, such as: cat, dog, neither")
            self.answerer.check(row)
            asked = self.answerer.choosing(choices) if choices else self.answerer
            answer = asked.answer(row, top_k=BARS)
        except CommandError as error:
            raise _mistake(str(error)) from error
        return self._shown(row, answer)

    def look(
        self, asked: dict[str, Any] | None, layer: int, head: int, token: int
    ) -> tuple[Image.Image, str, dict[str, Any]]:
        """
        Draws the attention over a picture that an answer was read with.

        Args:
            asked (`dict[str, Any]`, *optional*): What [`Desk.ask`] gave.
            layer, head, token (`int`): Which ones, from 1; 0 is the mean of all.

        Returns:
            The picture, what it shows in words, and an update for the choice of tokens.

        Raises:
            gr.Error: if nothing was answered yet, or the device runs out of memory.
        """
        if asked is None:
            raise _mistake("there is no answer yet whose attention could be shown; ask first")
        try:
            with refusals(self.answerer.device):
                maps = attention_maps(self.answerer.model, self.answerer.processor, asked)
        except CommandError as error:
            raise _mistake(str(error)) from error
        heat = maps.mean(*(chosen - 1 if chosen else None for chosen in (layer, head, token)))
        picture, _ = enlarged(asked["image"], [], SHOWN_WIDTH)
        where = (
            f"decoder layer {layer}" if layer else f"mean of {maps.weights.shape[0]} decoder layers",
            f"head {head}" if head else f"mean of {maps.weights.shape[1]} heads",
            f"token “{html.escape(maps.tokens[token - 1])}”" if token else "mean of all tokens of the answer",
        )
        rows, columns = heat.shape
        told = (
            f"{', '.join(where)}: {heat.sum():.0%} of the attention goes to the {rows} × {columns} patches of the "
            "picture, the rest to the instruction."
        )
        choices = [TOKENS, *(f"{place}. {one}" for place, one in enumerate(maps.tokens, start=1))]
        return draw_heat(picture, heat.numpy()), told, gr.update(choices=choices)

    def _checked(self, text: str, name: str) -> str:
        """Gives a text, if the model can read all of it."""
        most, words = self.task.max_words, len(text.split())
        if most is not None and words > most:
            raise _mistake(f"“{_label(self.task, name)}” has {words:,} words, but {most} are read; shorten it")
        if self.task.takes_region:
            try:
                check_region(text)
            except CommandError as error:
                raise _mistake(str(error)) from error
        return text

    def _shown(
        self, row: dict[str, Any], answer: dict[str, Any]
    ) -> tuple[str, Image.Image | None, dict[str, float], dict[str, Any] | None]:
        """Gives an answer as [`Desk.ask`] does."""
        if self.task.answer not in ("box", "boxes"):
            text = answer["label"] if "label" in answer else answer["text"]
            probable = dict(answer.get("ranking", [(text, answer["score"])]))
            return text, None, probable, {**row, "target": text} if text else None
        labels = box_labels(answer, row.get("text"))
        picture, boxes = enlarged(row["image"], answer["boxes"], SHOWN_WIDTH)
        told = "\n".join(plain_lines(present(answer, with_scores=False))) or "no box"
        bars = labels if len(set(labels)) == len(labels) else [f"{i}. {label}" for i, label in enumerate(labels, 1)]
        scores = dict(zip(bars, answer["scores"], strict=True))
        found = {"boxes": answer["boxes"], "labels": labels} if boxes else None
        return told, draw_boxes(picture, boxes, labels), scores, found and {**row, **found}


def build_page(answerer: Answerer, tasks: Sequence[str]) -> gr.Blocks:
    """
    Builds the page.

    Args:
        answerer ([`Answerer`]): The checkpoint, with scores.
        tasks (`Sequence[str]`): The names of the tasks, a tab each.
    """
    with gr.Blocks(title="OFA", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(_introduction(answerer))
        for name in tasks:
            with gr.Tab(tab_title(name), id=name):
                _add_desk(Desk(answerer, name), read_examples([name]))
    return page.queue(max_size=MOST_WAITING)


def shown_tasks(checkpoint: str, processor: Any) -> list[str]:
    """
    Gives the tasks that the page shows of a checkpoint: those that its card names, or, where it names none, all that
    its vocabulary has words for.
    """
    return [name for name in known_tasks(checkpoint) or TASKS if _can_show(get_task(name), processor)]


def serve(
    checkpoint: str,
    tasks: Sequence[str] = (),
    device: str | None = None,
    dtype: str = "auto",
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
) -> None:
    """
    Serves the page until it is interrupted.

    Args:
        checkpoint (`str`): Folder of a checkpoint, or its id on the Hub.
        tasks (`Sequence[str]`, *optional*): The names of the tasks to show, without which the checkpoint decides.
        device, dtype: Those of [`Answerer`].
        host (`str`, *optional*): The address to serve at; by default gradio's, which is this machine alone.
        port (`int`, *optional*): The port; by default the first free one from 7860.
        share (`bool`): Whether to open a tunnel through which others can ask.

    Raises:
        CommandError: if the checkpoint cannot be loaded, a task cannot be shown, or the port is taken.
    """
    answerer = Answerer(checkpoint, device, dtype, with_scores=True)
    for name in tasks:
        if not _can_show(get_task(name), answerer.processor):
            raise CommandError(f"the page cannot show {name!r}: what it is about, or answers with, is not seen there")
    tasks = list(dict.fromkeys(tasks)) or shown_tasks(checkpoint, answerer.processor)
    if not tasks:
        raise CommandError(f"none of the tasks of {checkpoint} can be shown on a page; --tasks names others")
    page = build_page(answerer, tasks)
    try:
        page.launch(server_name=host, server_port=port, share=share, **SERVED)
    except OSError as error:
        raise CommandError(f"the page cannot be served: {error}") from error


def _can_show(task: Task, processor: Any) -> bool:
    """Whether the page can take what a task is about and show its answers, in the words of a vocabulary."""
    needs_bins = task.takes_region or task.answer in ("box", "boxes")
    has_bins = "<bin_0>" in processor.tokenizer.get_vocab()
    return not task.takes_audio and task.answer != "codes" and (has_bins or not needs_bins)


def _introduction(answerer: Answerer) -> str:
    """Gives what stands above the tabs; the model is loaded for it."""
    config, model = answerer.model.config, answerer.model
    is_embedded = os.path.realpath(answerer.checkpoint) == os.path.realpath(EMBEDDED)
    name = "This checkpoint" if is_embedded else html.escape(os.path.basename(answerer.checkpoint.rstrip("/")))
    size = answerer.processor.image_processor.size
    return (
        f"# OFA\nOne model that reads an instruction and a picture, and writes. {name} has "
        f"{model.num_parameters() / 1e6:.1f} million parameters, {config.encoder_layers} + {config.decoder_layers} "
        f"layers, and sees pictures at {size['width']} × {size['height']} pixels. {_EMBEDDED if is_embedded else ''}"
    )


def tab_title(task: str) -> str:
    """Gives what a tab is called; short names are abbreviations."""
    return task.upper() if len(task) <= 4 else task.replace("_", " ").capitalize()


def _label(task: Task, name: str) -> str:
    """Gives what the field of a text is called."""
    meaning = {"text": task.text_is, "text_pair": task.text_pair_is}[name] or "the text"
    return meaning[:1].upper() + meaning[1:]


def _mistake(message: str) -> gr.Error:
    """Gives an error that the page shows, and that is none of the server's."""
    return gr.Error(message, duration=30, print_exception=False)


def _add_desk(desk: Desk, examples: Sequence[dict[str, Any]]) -> None:
    """Adds what one tab holds."""
    task = desk.task
    summaries = [command.summary for command in COMMANDS if command.task == task.name]
    own_list = desk.answerer.processor.closed_list(task)
    if own_list is not None and not (summaries and task.answers):  # which they name
        listed = ", ".join(own_list) if len(own_list) <= BARS else f"{len(own_list):,} answers"
        summaries.append(f"Chooses from: {listed}.")
    gr.Markdown(" ".join(summaries))
    with gr.Row():
        with gr.Column():
            fields, button = _add_fields(task), gr.Button("Ask", variant="primary")
        with gr.Column():
            answer = gr.Textbox(label="Answer", interactive=False, lines=1, max_lines=20)
            drawn = _add_drawing("Boxes", visible=task.answer in ("box", "boxes"))
            sure = gr.Label(label="Confidence", num_top_classes=BARS, show_heading=False)
            asked = gr.State(None, time_to_live=KEPT)
            # A picture that is laid out anew does not lie under the patches as it is.
            looked_at = _add_attention(desk, asked) if task.takes_image and task.image_layout is None else []
    if examples:
        rows = [[_example_value(row.get(name)) for name in fields] for row in examples]
        gr.Examples(rows, list(fields.values()), cache_examples=False, api_visibility="private")
    gr.on(
        [button.click, *(field.submit for field in fields.values() if isinstance(field, gr.Textbox))],
        lambda: ["", None, None, None, None, "", gr.update(choices=[TOKENS], value=TOKENS)][: 4 + len(looked_at)],
        outputs=[answer, drawn, sure, asked, *looked_at],  # of the question before
        api_visibility="private",
        queue=False,
    ).then(
        desk.ask,
        inputs_kwargs=fields,
        outputs=[answer, drawn, sure, asked],
        preprocess=False,  # which would fail without a word on a file that is no picture
        api_name=task.name,
        **IN_TURN,
    )


def _add_drawing(label: str, visible: bool = True) -> gr.Image:
    """Adds a place for a picture that the page draws."""
    buttons: list[Any] = ["download", "fullscreen"]
    return gr.Image(label=label, interactive=False, format="png", height=420, buttons=buttons, visible=visible)


def _add_fields(task: Task) -> dict[str, Any]:
    """Adds what a task takes: components by the names of the arguments of [`Desk.ask`]."""
    fields: dict[str, Any] = {}
    if task.takes_image:
        fields["image"] = gr.Image(label="Picture", sources=["upload", "clipboard"], height=320, buttons=[])
    lines = 1 if task.takes_image else 3  # what stands alone is longer
    if task.takes_text:
        hint = "or click on two corners" if task.takes_region else None
        fields["text"] = gr.Textbox(label=_label(task, "text"), lines=lines, placeholder=hint)
    if task.takes_pair:
        fields["text_pair"] = gr.Textbox("", label=_label(task, "text_pair"), lines=lines)
    if task.takes_objects:
        fields["objects"] = gr.Textbox("", label="Objects seen, between commas (for models that are used to them)")
    if takes_answers(task):
        hint = "cat, dog, neither"
        fields["answers"] = gr.Textbox("", label="Answers to choose from, between commas", placeholder=hint)
    if task.takes_region:
        fields["image"].select(_corner, fields["text"], fields["text"], api_visibility="private", queue=False)
    return fields


def _read_upload(upload: Mapping[str, Any]) -> Image.Image:
    """Reads a picture that came from a browser as the command line does: whole, upright, and safe to decode."""
    try:
        return read_picture(upload["path"])
    except CommandError as error:
        raise _mistake(str(error).replace(upload["path"], upload.get("orig_name") or "the file")) from error


def _add_attention(desk: Desk, asked: gr.State) -> list[Any]:
    """Adds what shows attention, and gives what is of one answer alone: the map, words on it, the choice of tokens."""
    config = desk.answerer.model.config
    layers, heads = config.decoder_layers, config.decoder_attention_heads
    with gr.Accordion("Attention over the picture", open=False):
        gr.Markdown(_ATTENTION)
        with gr.Row():
            chosen = [
                gr.Dropdown(choices, value=choices[0], label=label, type="index")
                for label, choices in (
                    ("Layer", [LAYERS, *(f"layer {i + 1}" for i in range(layers))]),
                    ("Head", [HEADS, *(f"head {i + 1}" for i in range(heads))]),
                    ("Token", [TOKENS]),
                )
            ]
        button = gr.Button("Show attention")
        heat = _add_drawing("Attention")
        told = gr.Markdown()
    gr.on(
        [button.click, *(one.input for one in chosen)],
        desk.look,
        inputs=[asked, *chosen],
        outputs=[heat, told, chosen[-1]],
        api_name=f"{desk.task.name}_attention",
        **IN_TURN,
    )
    return [heat, told, chosen[-1]]


def _corner(text: str, event: gr.SelectData) -> str:
    """Writes down a corner of a region that was clicked on; the second one completes it."""
    x, y = event.index
    try:
        left, top = map(float, split_list(text))
    except ValueError:  # there is no first one
        return f"{x},{y}"
    return ",".join(f"{side:g}" for side in (min(left, x), min(top, y), max(left, x), max(top, y)))


def _example_value(value: Any) -> Any:
    """Gives a value of an example as its component takes it."""
    return ", ".join(value) if isinstance(value, list) else value


if __name__ == "__main__":  # as a Space; a variable of the Space may name another checkpoint
    serve(os.environ.get("OFA_CHECKPOINT") or default_checkpoint())
