"""Pipelines: transformers' own and ours, from objects, folders and the Hub. Models are random and tiny."""

import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import test_hub
import torch
import transformers
from packaging.version import Version
from PIL import Image as PILImage
from tiny import tiny_model
from tokenizers.pre_tokenizers import ByteLevel
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

import modeling_ofa
from modeling_ofa import (
    OFAForConditionalGeneration,
    OFAImageProcessorPil,
    OFAModel,
    OFAProcessor,
    OFATokenizer,
    Task,
    cli,
)
from modeling_ofa.evaluation import Predictor
from modeling_ofa.pipelines_ofa import PIPELINES
from modeling_ofa.tasks_ofa import TASKS


hub = test_hub.hub  # the fixture
DOCS = Path(__file__).parents[1] / "docs"
DESCRIBE = " what does the image describe?"
ASK = " how many things can you see in it?"
OWN = {name: TASKS[name[4:].replace("-", "_")] for name in PIPELINES if name not in ("ofa", "ofa-embedding")}
CLOSE = {"abs": 1e-5, "rel": 1e-4}  # sums in another order, for a batch is no single row


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint that can do every task, whose beams are no default."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = OFATokenizer(vocabulary, [], num_codes=32, num_bins=32, model_max_length=128)
    images = OFAImageProcessorPil(size={"height": 64, "width": 64})
    folder = tmp_path_factory.mktemp("checkpoint")
    OFAProcessor(images, tokenizer, max_image_size=64, num_beams=2).save_pretrained(folder)
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=128, image_bucket_size=16)
    model.generation_config.update(max_new_tokens=8, forced_eos_token_id=2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def processor(folder) -> OFAProcessor:
    return OFAProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder) -> OFAForConditionalGeneration:
    return OFAForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def pictures() -> list[PILImage.Image]:
    rng = np.random.default_rng(0)
    sizes = ((40, 60), (64, 64), (90, 50))
    return [PILImage.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture
def pipe(model, processor) -> Any:
    return lambda name, **kwargs: pipeline(name, model=model, processor=processor, device="cpu", **kwargs)


def png(picture: PILImage.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()


def assert_same(found: Any, expected: Any) -> None:
    """Equal texts, labels and codes; scores and boxes but for sums in another order."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == (pytest.approx(expected, **CLOSE) if isinstance(expected, float) else expected)


# --- our own: every task -------------------------------------------------------------------------------------------


def rows_for(task: Task, pictures: list[PILImage.Image]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{}, {}]
    for i, row in enumerate(rows):
        if task.takes_image:
            row["image"] = pictures[i]
        if task.takes_text:
            row["text"] = [5, 5, 30, 30 + i] if task.takes_region else ("a red cup", "a longer text, isn't it")[i]
        if task.needs_pair:
            row["text_pair"] = "a cup"
    return rows


@pytest.mark.parametrize("name", OWN)
def test_the_pipeline_of_a_task_answers_as_the_predictor_does(name, pipe, model, processor, pictures):
    task = OWN[name]
    options: dict[str, Any] = {}
    if name == "ofa-image-classification":
        options["answers"] = ["cat", "big dog"]
    elif task.answer != "label":  # short, and without chance
        options["generate_kwargs"] = {"do_sample": False, "min_new_tokens": 4, "max_new_tokens": 9}
    rows = rows_for(task, pictures)
    expected = Predictor(model, processor, with_scores=True, **options)([{**row, "task": task} for row in rows])
    found = pipe(name, **options)(rows, batch_size=2)
    assert found == expected
    assert all("score" in one or len(one["scores"]) == len(one["boxes"]) for one in found)


def test_there_is_a_pipeline_for_every_task_that_can_be_asked():
    assert {task.name for task in OWN.values()} == {task.name for task in TASKS.values() if not task.takes_audio}
    assert set(PIPELINES) <= set(PIPELINE_REGISTRY.get_supported_tasks())


# --- our own: inputs -----------------------------------------------------------------------------------------------


def test_a_picture_may_come_in_any_form(pipe, pictures, tmp_path):
    ask = pipe("ofa-caption")
    path = tmp_path / "picture.png"
    pictures[0].save(path)
    expected = ask(pictures[0])
    assert expected["text"] and 0 < expected["score"] <= 1
    undecoded = {"bytes": png(pictures[0]), "path": None}
    row = {"image": str(path), "target": "what others want", "id": 7}
    for picture in (path, str(path), png(pictures[0]), undecoded, {"image": undecoded}, row):
        assert ask(picture) == expected


def test_several_inputs_may_come_in_any_container_and_batch(pipe, pictures):
    ask = pipe("ofa-vqa")
    questions = ["what is it?", "how many things are there?", "is it red?"]
    rows = [{"image": picture, "text": text} for picture, text in zip(pictures, questions, strict=True)]
    expected = [ask(row) for row in rows]
    assert len({str(one) for one in expected}) > 1
    encoded = [{"image": {"bytes": png(row["image"]), "path": None}, "text": row["text"]} for row in rows]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    data = datasets.Dataset.from_list(encoded, features=features)
    containers = (rows, tuple(rows), iter(rows), (row for row in rows), data, data.to_iterable_dataset())
    for container in containers:
        assert_same(list(ask(container, batch_size=2)), expected)
    assert_same(list(ask(data, num_workers=1)), expected)
    assert ask([]) == []
    captions = pipe("ofa-caption", batch_size=2)
    expected = captions(pictures)
    assert_same(list(captions(KeyDataset(data, "image"))), expected)
    assert_same(list(captions(data["image"])), expected)


def test_a_stream_is_read_as_answers_are_taken(pipe, pictures):
    taken = []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield {"image": pictures[i % 3]}

    stream = pipe("ofa-caption", generate_kwargs={"max_new_tokens": 2})(endless(), batch_size=2)
    assert len(list(itertools.islice(stream, 3))) == 3
    assert len(taken) <= 6


def test_one_question_may_be_asked_of_all_pictures(pipe, pictures):
    ask = pipe("ofa-visual-entailment")
    rows = [{"image": one, "text": "it is red", "text_pair": "a thing"} for one in pictures]
    assert ask(pictures, text="it is red", text_pair="a thing", batch_size=3) == ask(rows, batch_size=3)
    rows[0]["text"], rows[1]["text"], rows[1]["text_pair"] = "it is blue", None, None
    mixed = ask(rows, text="it is green", text_pair="two things")
    assert mixed[0] == ask(pictures[0], text="it is blue", text_pair="a thing")
    assert mixed[1] == ask(pictures[1], text="it is green", text_pair="two things")


def test_rows_of_many_tasks_share_a_pipeline(pipe, model, processor, pictures):
    count = Task("count", " how many {text} are there?", answer="label", answers=("none", "one", "many"))
    rows = [
        {"task": "caption", "image": pictures[0]},
        {"task": "vqa", "image": pictures[1], "text": "what is it?"},
        {"task": "sst2", "text": "a lovely film"},
        {"task": count, "image": pictures[2], "text": "cups"},
    ]
    found = pipe("ofa")(rows, batch_size=4, answers={"vqa": ["red", "blue"]}, top_k=2)
    expected = Predictor(model, processor, {"vqa": ["red", "blue"]}, with_scores=True)(rows, top_k=2)
    assert found == expected and [len(one.get("ranking", ())) for one in found] == [0, 2, 2, 2]


# --- our own: options ----------------------------------------------------------------------------------------------


def test_closed_answers_are_ranked_by_their_exact_probabilities(pipe, model, processor, pictures):
    answers = ["red", "green", "dark blue"]
    ask = pipe("ofa-vqa", answers=answers, top_k=3)
    [answer] = ask([{"image": pictures[0], "text": "what colour is it?"}])
    inputs = processor(task="vqa", images=pictures[0], text="what colour is it?", return_tensors="pt")
    [scores] = model.score_candidates(inputs, processor.answer_trie(answers)).exp().tolist()
    expected = sorted(zip(answers, scores, strict=True), key=lambda pair: -pair[1])
    assert_same(answer, {"text": expected[0][0], "score": expected[0][1], "ranking": expected})
    assert "ranking" not in ask(pictures[0], text="what?", top_k=1)
    assert ask(pictures[0], text="what?", answers=["no", "yes"])["text"] in ("no", "yes")
    answers[:] = ["one"]  # a list that has changed is another list
    assert ask(pictures[0], text="what?", answers=answers, top_k=1) == {"text": "one", "score": 1.0}


def test_options_of_generate_take_the_place_of_the_tasks(pipe, model, processor, pictures):
    ask = pipe("ofa-caption", generate_kwargs={"max_new_tokens": 4})
    inputs = processor(task="caption", images=pictures[0], return_tensors="pt")
    options = processor.generation_kwargs("caption", max_new_tokens=4)
    assert (options["max_new_tokens"], options["num_beams"]) == (4, 2)
    expected = processor.post_process(model.generate(**inputs, **options), "caption")
    assert ask(pictures[0], with_scores=False) == expected[0]
    greedy = {"num_beams": 1, "max_new_tokens": 6}
    options = processor.generation_kwargs("caption", **greedy)
    assert "early_stopping" not in options  # of which transformers warns without beams
    expected = processor.post_process(model.generate(**inputs, **options), "caption")
    assert ask(pictures[0], with_scores=False, generate_kwargs=greedy) == expected[0]
    tasks = ["caption", "ocr"]
    mixed = processor.generation_kwargs(tasks, **greedy)
    assert mixed["num_beams"] == 1 and mixed["max_new_tokens"] == 6


@pytest.mark.parametrize(
    "name, inputs, options, message",
    [
        ("ofa-caption", "picture", {"max_new_tokens": 3}, "not max_new_tokens. Options of `generate` go into"),
        ("ofa-caption", "picture", {"top_k": 2}, "top_k ranks a closed list, .* give answers="),
        ("ofa-caption", "picture", {"generate_kwargs": {"num_return_sequences": 2}}, "call `model.generate` itself"),
        ("ofa-caption", {"task": "vqa", "text": "why?"}, {}, "a row of task 'vqa'; the pipeline 'ofa' takes any"),
        ("ofa-caption", {"text": None}, {}, "no image, but task 'caption' is about one"),
        ("ofa-caption", {}, {}, "no image, but task 'caption' is about one"),
        ("ofa-caption", "nowhere.png", {}, "No such picture: nowhere.png"),
        ("ofa-caption", [{"role": "user", "content": "hello"}], {}, "not Chat"),
        ("ofa-vqa", "picture", {}, "'vqa' needs text=: the question"),
        ("ofa-vqa", "picture", {"answers": ["a"], "generate_kwargs": {"num_beams": 2}}, "generates nothing"),
        ("ofa-vqa", "picture", {"text": "what?", "answers": "yes"}, "a list of texts, not the text 'yes'"),
        ("ofa-sst2", "a film", {"answers": ["good", "bad"]}, "takes no answers=: it chooses from positive, negative"),
        ("ofa-visual-grounding", "picture", {"answers": ["a"]}, "takes no answers=: it does not answer in words"),
        ("ofa-image-classification", "picture", {}, "closed list: give answers="),
        ("ofa", "picture", {}, "rows that name their task"),
        ("ofa", {"text": "a film"}, {}, "names no task"),
    ],
)
def test_what_cannot_be_asked_is_refused(name, inputs, options, message, pipe, pictures):
    inputs = pictures[0] if inputs == "picture" else inputs
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        pipe(name)(inputs, **options)


def test_a_model_that_cannot_write_is_refused(model, processor):
    with pytest.raises(ValueError, match="OFAForConditionalGeneration, not OFAModel"):
        pipeline("ofa-vqa", model=model.model, processor=processor)


def test_a_pipeline_loads_in_the_precision_that_it_is_told(folder, pictures):
    ask = pipeline("ofa-caption", model=str(folder), dtype=torch.bfloat16, device="cpu", local_files_only=True)
    assert ask.model.dtype == ask.dtype == torch.bfloat16
    assert isinstance(ask(pictures[0])["text"], str)


# --- transformers' own ---------------------------------------------------------------------------------------------


def new_texts(found: Any) -> list[str]:
    """The answers of image-text-to-text, which nests them by the form of its inputs."""
    if isinstance(found, dict):
        return [found["generated_text"]]
    return [text for one in found for text in new_texts(one)]


@pytest.mark.parametrize("prompt", ["none", "prev_output"])
def test_image_text_to_text_takes_all_that_it_takes_of_others(prompt, folder, pictures, tmp_path):
    processor = OFAProcessor.from_pretrained(folder)
    processor.decoder_prompt = prompt
    model = OFAForConditionalGeneration.from_pretrained(folder).eval()
    ask = pipeline("image-text-to-text", model=model, processor=processor, device="cpu", return_full_text=False)
    texts = [DESCRIBE, ASK, " what?"]
    expected = []
    for picture, text in zip(pictures, texts, strict=True):
        inputs = processor(images=picture, text=text, return_tensors="pt")
        ids = model.generate(**inputs)
        start = inputs["decoder_input_ids"].shape[1] if prompt != "none" else 0
        expected += processor.post_process_image_text_to_text(ids[:, start:])
    pictures[0].save(tmp_path / "picture.png")
    rows = [{"images": picture, "text": text} for picture, text in zip(pictures, texts, strict=True)]

    def stripped(found: Any) -> list[str]:
        return [text.strip() for text in new_texts(found)]

    assert stripped(ask(pictures[0], text=texts[0])) == expected[:1]
    assert stripped(ask(images=str(tmp_path / "picture.png"), text=texts[0])) == expected[:1]
    assert stripped(ask(pictures, text=texts)) == expected
    assert stripped(ask((row for row in rows), batch_size=2)) == expected
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    assert stripped(ask(stream, batch_size=3)) == expected


def test_image_text_to_text_reads_text_alone_and_takes_options_of_generate(folder, pictures):
    ask = pipeline("image-text-to-text", model=str(folder), device="cpu")
    texts = [" what is red?", " a longer question than the other one?"]
    one_by_one = [new_texts(ask(text=text, return_full_text=False)) for text in texts]
    assert [new_texts(one) for one in ask(text=texts, return_full_text=False, batch_size=2)] == one_by_one
    inputs = ask.processor(images=pictures[0], text=DESCRIBE, return_tensors="pt")
    options = {"num_beams": 3, "num_return_sequences": 2}
    expected = ask.model.generate(**inputs, **options, max_new_tokens=5)
    found = ask(pictures[0], text=DESCRIBE, generate_kwargs=options, max_new_tokens=5, return_tensors=True)
    count = 2 if Version(transformers.__version__) >= Version("5.23") else len(found)  # 5.17 gives the first alone
    assert [one["generated_token_ids"].tolist() for one in found] == expected.tolist()[:count] != []


def test_transformers_pipelines_run_on_the_embedded_checkpoint(pictures):
    ask = pipeline("image-text-to-text", model=modeling_ofa.DEFAULT_CHECKPOINT, device="cpu")
    [answer] = ask(pictures[0], text=DESCRIBE, return_full_text=False, max_new_tokens=3)
    assert isinstance(answer["generated_text"], str)
    describe = pipeline("ofa-caption", model=modeling_ofa.DEFAULT_CHECKPOINT, device="cpu")
    assert isinstance(describe(pictures[0], generate_kwargs={"max_new_tokens": 3})["text"], str)


def test_feature_extraction_gives_the_states_of_texts(folder, model, processor):
    extract = pipeline("feature-extraction", model=str(folder), device="cpu")
    assert isinstance(extract.model, OFAModel)
    inputs = processor.tokenizer([" a red cup"], return_tensors="pt")
    with torch.no_grad():
        expected = model.model(**inputs).last_hidden_state
    found = extract(" a red cup", return_tensors=True)
    torch.testing.assert_close(found, expected)
    assert np.shape(extract([" a", " a red cup"], batch_size=2)[1]) == tuple(expected.shape)


# --- conversations -------------------------------------------------------------------------------------------------


def said(text: str, picture: Any = None) -> list[dict[str, Any]]:
    parts = [] if picture is None else [{"type": "image", "image": picture}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def test_one_message_of_the_user_is_an_instruction(folder, pictures):
    ask = pipeline("image-text-to-text", model=str(folder), device="cpu")
    assert ask.processor.chat_template is None  # so that nobody is told to chat
    messages = said(DESCRIBE.strip(), pictures[0])
    assert ask.processor.apply_chat_template(messages) == DESCRIBE
    expected = new_texts(ask(pictures[0], text=DESCRIBE, return_full_text=False))
    assert new_texts(ask(text=messages, return_full_text=False)) == expected
    [answer] = ask(text=messages)
    assert answer["generated_text"] == [*messages, {"role": "assistant", "content": expected[0]}]
    parts = [{"type": "text", "text": DESCRIBE}, {"type": "image", "base64": png(pictures[0])}]
    url = [{"role": "user", "content": parts}]
    assert new_texts(ask(text=url, return_full_text=False)) == expected
    alone = new_texts(ask(text=ASK, return_full_text=False))
    chats = [messages, [{"role": "user", "content": ASK}], said(ASK)]
    assert new_texts(ask(text=chats, return_full_text=False)) == [*expected, *alone, *alone]
    inputs = ask.processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["patch_masks"].tolist() == [True, False, False]


@pytest.mark.parametrize(
    "conversation, message",
    [
        ([*said("what?"), {"role": "assistant", "content": "a"}, *said("why?")], "not user, assistant, user"),
        ([{"role": "system", "content": "be brief"}, *said("what?")], "no dialogue: .* not system, user"),
        ([{"role": "user", "content": []}], "not nothing"),
        (
            [{"role": "user", "content": [{"type": "image", "url": "a"}]}],
            "one text and at most one picture, not image",
        ),
        ([{"role": "user", "content": [{"type": "audio"}]}], "not audio"),
    ],
)
def test_dialogue_is_refused(conversation, message, processor):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(conversation)


def test_a_template_of_ones_own_may_allow_dialogue(processor):
    template = "{% for message in messages %} {{ message['role'] }}: {{ message['content'] }}{% endfor %}"
    messages = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "a cup"}]
    assert processor.apply_chat_template(messages, template) == " user: what? assistant: a cup"
    own = OFAProcessor(processor.image_processor, processor.tokenizer, chat_template=template)
    assert own.apply_chat_template(messages) == " user: what? assistant: a cup"


# --- embeddings ----------------------------------------------------------------------------------------------------


def test_an_embedding_is_the_mean_of_patches_and_words(pipe, model, processor, pictures):
    embed = pipe("ofa-embedding", return_tensors=True)
    for row in ({"image": pictures[0]}, {"text": "a red cup"}, {"image": pictures[0], "text": "a red cup"}):
        text = f" {row['text']}" if "text" in row else ""
        inputs = processor(images=row.get("image"), text=text, return_tensors="pt")
        with torch.no_grad():
            [states] = model.get_encoder()(**inputs).last_hidden_state
        words = inputs["input_ids"].shape[1]
        states = torch.cat([states[:-words], states[-words + 1 : -1]])  # without <s> and </s>
        expected = states.mean(0) / states.mean(0).norm()
        torch.testing.assert_close(embed(row), expected)


def test_embeddings_do_not_depend_on_what_else_the_batch_holds(folder, pipe, pictures):
    embed = pipe("ofa-embedding")
    inputs = [pictures[0], "a", {"image": pictures[1], "text": "a much longer text than the others"}, "two cups"]
    one_by_one = torch.tensor([embed(one) for one in inputs])
    torch.testing.assert_close(torch.tensor(embed(inputs, batch_size=4)), one_by_one)
    torch.testing.assert_close(one_by_one.norm(dim=1), torch.ones(4))
    of_base = pipeline("ofa-embedding", model=str(folder), device="cpu", dtype=torch.bfloat16)
    assert isinstance(of_base.model, OFAModel)
    close = torch.tensor(of_base(inputs, batch_size=2))
    assert (close * one_by_one).sum(1).min() > 0.99


def test_what_is_alike_has_embeddings_that_are_alike(pipe, pictures):
    rng = np.random.default_rng(1)
    noisy = [np.clip(np.asarray(one) + rng.normal(0, 8, np.shape(one)), 0, 255) for one in pictures]
    embed = pipe("ofa-embedding", return_tensors=True, batch_size=3)
    originals, copies = (
        torch.stack(embed(pictures)),
        torch.stack(embed([PILImage.fromarray(one.astype(np.uint8)) for one in noisy])),
    )
    assert (copies @ originals.T).argmax(1).tolist() == [0, 1, 2]


def test_what_has_no_embedding_is_refused(pipe, model):
    embed = pipe("ofa-embedding")
    for nothing in ("", " ", {"text": None}):
        with pytest.raises(ValueError, match="nothing to embed"):
            embed(nothing)
    with pytest.raises(ValueError, match="truncation=True"):
        embed("cup " * 100)
    assert len(embed("cup " * 100, truncation=True)) == model.config.d_model
    model.train()
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        embed("a cup")
    model.eval()


# --- saving --------------------------------------------------------------------------------------------------------


def test_a_saved_pipeline_loads_where_the_package_is_without_trust(pipe, pictures, tmp_path):
    ask = pipe("ofa-caption")
    ask.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config["custom_pipelines"]) == set(PIPELINES)
    assert config["custom_pipelines"]["ofa-vqa"]["impl"] == "pipelines_ofa.OFAPipeline"
    again = pipeline("ofa-caption", model=str(tmp_path), device="cpu")
    assert type(again) is type(ask) and type(again.model) is OFAForConditionalGeneration
    assert again.processor.num_beams == 2
    assert again(pictures[0]) == ask(pictures[0])
    again.model.save_pretrained(tmp_path / "model")
    assert "custom_pipelines" not in json.loads((tmp_path / "model" / "config.json").read_text())
    with pytest.raises(ValueError, match="pipe.push_to_hub"):
        ask.save_pretrained(tmp_path, push_to_hub=True)


# What runs on a machine of somebody who has transformers and a picture, but not this package.
ELSEWHERE = """
import json, sys
sys.modules["modeling_ofa"] = None  # importing it is an error

from transformers import pipeline
from transformers.cli.download import download

found = {}
download("tester/pushed", trust_remote_code=True)
for where in ("tester/pushed", "tester/piped", "again"):
    load = dict(model=where, trust_remote_code=True, device="cpu")
    ask = pipeline("ofa-caption", **load)
    film = type(ask)(ask.model, ask.processor, task="ofa-sst2", device="cpu")  # the same model
    other = pipeline("image-text-to-text", **load)
    found[where] = {
        "caption": ask(["a.png", "b.png"], batch_size=2),
        "vqa": pipeline("ofa-vqa", **load)("a.png", text="what is it?", answers=["red", "blue"], top_k=2),
        "film": film("a film", top_k=2),
        "embedding": pipeline("ofa-embedding", **load)([{"image": "a.png"}, "a cup"], batch_size=2),
        "image-text-to-text": other("a.png", text=" what is it?", return_full_text=False),
    }
    if where == "tester/piped":
        ask.save_pretrained("again")
for task, options in (("ofa-caption", {}), (None, {"trust_remote_code": True})):
    try:
        pipeline(task, model="tester/pushed", **options)
    except (RuntimeError, ValueError) as error:
        found[str(task)] = str(error)
assert not any(name == "modeling_ofa" and module for name, module in sys.modules.items())
with open("found.json", "w") as file:
    json.dump(found, file)
"""


def test_pipelines_work_without_the_package(hub, folder, pipe, pictures, tmp_path, capsys):
    assert cli.main(["push", str(folder), "tester/pushed"]) == 0
    pipe("ofa-embedding").push_to_hub("tester/piped")
    assert "pipelines_ofa.py" in hub.repo("tester/piped").files
    assert pipeline("ofa-sst2", model="tester/pushed", device="cpu")("a film")["label"]  # here nobody has to trust it
    for name, picture in zip("ab", pictures, strict=False):
        picture.save(tmp_path / f"{name}.png")
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    asked = {
        "caption": pipe("ofa-caption")(pictures[:2], batch_size=2),
        "vqa": pipe("ofa-vqa")(pictures[0], text="what is it?", answers=["red", "blue"], top_k=2),
        "film": pipe("ofa-sst2")("a film", top_k=2),
        "embedding": pipe("ofa-embedding")([pictures[0], "a cup"], batch_size=2),
        "image-text-to-text": pipe("image-text-to-text")(pictures[0], text=" what is it?", return_full_text=False),
    }
    expected = json.loads(json.dumps(asked))
    for where in ("tester/pushed", "tester/piped", "again"):
        assert found[where] == expected
    assert "trust_remote_code=True" in found["ofa-caption"] and "ofa-vqa" in found["None"]


# --- documentation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["pipelines.md", "embeddings.md"])
def test_the_snippets_of_the_page_run(page, pictures, tmp_path, monkeypatch, capsys):
    for name, picture in zip(("dog", "cat", "street"), pictures, strict=True):
        picture.save(tmp_path / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text(encoding="utf-8")
    scope: dict[str, Any] = {}
    for snippet in re.findall("```python\n(.*?)```", text, flags=re.DOTALL):
        exec(snippet, scope)


def test_every_pipeline_is_documented():
    page = (DOCS / "pipelines.md").read_text(encoding="utf-8")
    for name in PIPELINES:
        assert f"`{name}`" in page
