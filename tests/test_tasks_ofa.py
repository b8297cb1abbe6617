"""The table of tasks against the official prompts and data sets: ids of sources, decoder inputs, targets and masks."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from modeling_ofa import (
    DEFAULT_CHECKPOINT,
    OFAForConditionalGeneration,
    OFAImageProcessorPil,
    OFAProcessor,
    OFATokenizer,
    Task,
    register_task,
)
from modeling_ofa.answers_ofa import AnswerFormat, constraint_masks
from modeling_ofa.constraints_ofa import TrieConstraint
from modeling_ofa.tasks import TASKS, get_task
from modeling_ofa.tasks_ofa import clean_print, drop_punctuation


GOLDEN = Path(__file__).parent / "golden"
NAMES = (
    "caption vqa visual_grounding grounded_caption visual_entailment image_text_matching image_classification "
    "object_detection image_generation image_infilling text_infilling summarization cola mnli mrpc qnli qqp rte sst2 "
    "ocr speech_recognition"
).split()


def read(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@cache
def load_tokenizer(path: Path) -> OFATokenizer:
    return OFATokenizer.from_pretrained(path)


@pytest.fixture
def official(vocab_dir):
    """The processor of the official English checkpoints, which leaves boxes beyond the picture as they are."""
    return OFAProcessor(OFAImageProcessorPil(), load_tokenizer(vocab_dir), clip_boxes=False)


@pytest.fixture
def chinese(vocab_cn_file):
    return OFAProcessor(OFAImageProcessorPil(), load_tokenizer(vocab_cn_file))


def best_answer(column: str) -> str:
    scores = {pair.split("|!+")[1]: float(pair.split("|!+")[0]) for pair in column.split("&&")}
    return max(scores, key=scores.__getitem__)


# What the columns of the official files are called here, and the words of the official data sets for the labels.
COLUMNS = {
    "caption": ("caption", (None, "images", "target")),
    "vqa_gen": ("vqa", (None, "images", "text", "target", "objects")),
    "refcoco": ("visual_grounding", (None, "images", "text", "target")),
    "snli_ve": ("visual_entailment", (None, "images", "text", "text_pair", "target")),
    "image_classify": ("image_classification", ("images", "target")),
    "ocr": ("ocr", (None, "images", "target")),
    "image_gen": ("image_generation", (None, "text", "target")),
    "image_gen2col": ("image_generation", (None, "text")),
    "image_gen4col": ("image_generation", (None, None, "text", "target")),
    "summary": ("summarization", ("text", "target")),
    "glue_cola": ("cola", ("text", "target")),
    "glue_mnli": ("mnli", ("text", "text_pair", "target")),
    "glue_mrpc": ("mrpc", ("text", "text_pair", "target")),
    "glue_qnli": ("qnli", ("text", "text_pair", "target")),
    "glue_sst2": ("sst2", ("text", "target")),
}
NUMBERED = {
    "mnli": {"0": "maybe", "1": "yes", "2": "no"},
    "sst2": {"0": "negative", "1": "positive"},
    **dict.fromkeys(("cola", "mrpc", "qnli"), {"0": "no", "1": "yes"}),
}


def row_of(name: str, columns: list[str], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What the processor is asked, for a row of an official file."""
    task, names = COLUMNS[name]
    row: dict[str, Any] = {key: value for key, value in zip(names, columns, strict=False) if key}
    if task == "vqa":
        row.update(target=best_answer(row["target"]), objects=row["objects"].split("&&"))
        if not kwargs.get("add_object"):
            del row["objects"]
    elif task == "visual_grounding":
        row["target"] = [float(side) for side in row["target"].split(",")]
    elif task == "visual_entailment" and not kwargs["add_caption"]:
        del row["text_pair"]
    elif name == "image_gen2col":
        row["target"] = [0] * 1024
    elif task in NUMBERED:
        row["target"] = NUMBERED[task].get(row["target"], row["target"])
    if "images" in row:
        row["size"] = kwargs["patch_image_size"]
        is_imagenet = kwargs.get("imagenet_default_mean_and_std")
        row["image_mean"] = list(IMAGENET_DEFAULT_MEAN) if is_imagenet else [0.5] * 3
        row["image_std"] = list(IMAGENET_DEFAULT_STD) if is_imagenet else [0.5] * 3
    return row


def variants() -> list:
    return [
        pytest.param(name, index, id=f"{name}-{variant['variant']}")
        for name in COLUMNS
        for index, variant in enumerate(read(f"data_{name}")["variants"])
    ]


@pytest.mark.parametrize("name, index", variants())
def test_sources_decoder_inputs_and_targets_are_the_official_ones(official, name, index):
    if name == "ocr":
        pytest.importorskip("opencc", reason="one target is Chinese, which opencc simplifies")
    data = read(f"data_{name}")
    variant = data["variants"][index]
    kwargs, task = variant["kwargs"], TASKS[COLUMNS[name][0]]
    if name == "caption" and variant["variant"] != "train480":
        # Only training shortens its targets; elsewhere they are all references, in one line.
        task = replace(
            task,
            max_target_words=None,
            clean_target=lambda text: "&&".join(drop_punctuation(one) for one in " ".join(text.split()).split("&&")),
        )
    for columns, recorded in zip(data["tsv_rows"], variant["items"], strict=True):
        item = recorded["item"]
        inputs = official(
            task=task,
            truncation=True,
            prompt_type=kwargs.get("prompt_type", "none"),
            **row_of(name, columns, kwargs),
        )
        assert inputs["input_ids"] == [item["source"]["v"]]
        target = [-100 if token == 1 else token for token in item["target"]["v"]]
        assert inputs["labels"] == [target]
        # Without a prompt the model shifts the labels itself.
        shifted = [0, *target[:-1]]
        if variant["variant"] != "noise0.2":  # of the decoder inputs alone: tests/test_noise.py
            assert inputs.get("decoder_input_ids", [shifted]) == [item["prev_output_tokens"]["v"]]
        if "code_mask" in item:
            assert inputs["code_masks"] == item["code_mask"]["v"]
        # Random augmentation and places are in tests/test_transforms.py and tests/test_layouts_ofa.py.
        if "patch_image" in item and name != "ocr" and variant["variant"] != "train480_aug":
            golden = item["patch_image"]
            values = torch.as_tensor(inputs["pixel_values"][0])[:, golden["grid_y"]][:, :, golden["grid_x"]]
            torch.testing.assert_close(values, torch.tensor(golden["grid"]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["vqa_gen", "snli_ve", "image_classify", "glue_cola", "glue_mnli", "glue_sst2"])
def test_constraint_masks_are_the_official_ones_wherever_there_is_a_target(official, name):
    data = read(f"data_{name}")
    task = TASKS[COLUMNS[name][0]]
    for variant in data["variants"]:
        if not variant["trie_answers"]:
            continue
        trie = AnswerFormat(official.tokenizer).trie(variant["trie_answers"], task)
        prompt = variant["kwargs"].get("prompt_type", "none")
        for columns, recorded in zip(data["tsv_rows"], variant["items"], strict=True):
            row = row_of(name, columns, variant["kwargs"])
            labels = torch.tensor(official(task=task, truncation=True, prompt_type=prompt, **row)["labels"])
            masks = constraint_masks(labels, TrieConstraint(trie), vocab_size=59457)
            assert masks.shape == (*labels.shape, 59457)
            for label, mask, allowed in zip(labels[0], masks[0], recorded["item"]["constraint_mask"], strict=True):
                assert mask.all() if label < 0 else mask.nonzero().flatten().tolist() == allowed


def test_a_batch_pads_as_the_official_one(official):
    data = read("data_vqa_gen")
    variant = data["variants"][0]
    rows = [row_of("vqa_gen", columns, variant["kwargs"]) for columns in data["tsv_rows"]]
    asked = {key: [row[key] for row in rows] for key in ("images", "text", "objects", "target")}
    inputs = official(task="vqa", prompt_type="official", return_tensors="pt", size=480, **asked)
    batch = variant["batch"]
    assert inputs["input_ids"].tolist() == batch["net_input"]["src_tokens"]["v"]
    assert inputs["decoder_input_ids"].tolist() == batch["net_input"]["prev_output_tokens"]["v"]
    assert inputs["labels"].masked_fill(inputs["labels"] == -100, 1).tolist() == batch["target"]["v"]
    assert torch.equal(inputs["decoder_attention_mask"], inputs["decoder_input_ids"].ne(1).long())


def test_pretraining_rows_are_the_official_ones(official):
    """Each recorded pair comes from one row; how pictures and masks are drawn is in tests/test_transforms.py."""
    data = read("data_unify")
    compared = 0
    for columns, recorded in zip(data["tsv_rows"], data["items"], strict=True):
        first, second = recorded["pair"]
        source = [pair["source"]["v"] for pair in recorded["pair"]]
        caption, question, kind = columns[2], columns[3], columns[7]
        blank = torch.zeros(3, 384, 384, dtype=torch.uint8)
        if kind == "visual_grounding":
            bins = first["target"]["v"][:4]
            assert source[0] == official(task="visual_grounding", images=blank, text=caption)["input_ids"][0]
            codec = official._codec((384, 384), (384, 384))
            region = codec.decode(bins)
            inputs = official(task="grounded_caption", images=blank, text=region, target=caption, size=384)
            assert inputs["input_ids"] == [source[1]] and inputs["labels"] == [second["target"]["v"]]
        elif kind == "caption":
            inputs = official(task="caption", images=blank, target=caption)
            assert inputs["input_ids"] == [source[0]]
            matched = second["target"]["v"] == [4420, 2]
            text = recorded["encode_calls"][2 if matched else 3]["text"].split('"')[1]
            inputs = official(task="image_text_matching", images=blank, text=text, target="yes" if matched else "no")
            assert inputs["input_ids"] == [source[1]] and inputs["labels"] == [second["target"]["v"]]
        else:
            without_mark = replace(TASKS["vqa"], question_mark=False)
            answer = best_answer(columns[4])
            inputs = official(task=without_mark, images=blank, text=question, target=answer)
            assert inputs["input_ids"] == [source[0]] and inputs["labels"] == [first["target"]["v"]]
            matched = second["target"]["v"] == [4420, 2]
            asked = recorded["encode_calls"][2 if matched else 3]["text"].split('"')[3].strip()
            inputs = official(
                task="image_text_matching",
                images=blank,
                text=question,
                text_pair=asked,
                target="yes" if matched else "no",
            )
            assert inputs["input_ids"] == [source[1]] and inputs["labels"] == [second["target"]["v"]]
        compared += 1
    assert compared == 8


def test_masked_text_detection_and_picture_rows_of_pretraining_are_the_official_ones(official):
    data = read("data_unify")
    batch = data["batch_v2"]
    texts, image, detection = batch["id"][:2], batch["id"][2], batch["id"][3]
    assert (texts, image, detection) == (["t1", "t1"], "i1", "d1")
    extra = next(item["extra"] for item in data["items"] if item["extra"])
    full = official.tokenizer.decode(extra[0]["target"]["v"][:-1])
    for masked in extra[:2]:
        ids = masked["source"]["v"]
        text = official.tokenizer.decode(ids[8:-3])
        inputs = official(task="text_infilling", text=text, target=full)
        assert inputs["input_ids"] == [ids] and inputs["labels"] == [masked["target"]["v"]]
    codes = data["image_rows"][0][2]
    inputs = official(task="image_infilling", images=data["image_rows"][0][1], target=codes, return_tensors="pt")
    assert inputs["input_ids"].tolist() == [extra[2]["source"]["v"]]
    assert inputs["labels"].tolist() == [extra[2]["target"]["v"]] and inputs["code_masks"].tolist() == [True]
    golden = extra[2]["patch_image"]
    assert inputs["pixel_values"].shape[1:] == (3, 256, 256) and golden["shape"] == [3, 256, 256]
    values = inputs["pixel_values"][0][:, golden["grid_y"]][:, :, golden["grid_x"]]
    torch.testing.assert_close(values, torch.tensor(golden["grid"]), rtol=0, atol=2e-6)
    found = extra[3]["target"]["v"]
    codec = official._codec((256, 256), (256, 256))
    boxes = [
        {"box": box, "label": official.tokenizer.decode(found[label]).strip()}
        for box, _, label in codec.parse(found[:-1])
    ]
    blank = torch.zeros(3, 256, 256, dtype=torch.uint8)
    inputs = official(task="object_detection", images=blank, target=[boxes], size=256)
    assert inputs["input_ids"] == [extra[3]["source"]["v"]] and inputs["labels"] == [found]


PROMPTS = {
    "caption": "caption",
    "refcoco": "visual_grounding",
    "snli_ve": "visual_entailment",
    "image_gen": "image_generation",
    "gigaword": "summarization",
    "ocr": "ocr",
    "image_classify": "image_classification",
    **{name: name for name in ("cola", "sst2", "mrpc", "qqp", "qnli", "rte", "mnli")},
    "pretrain_caption": "caption",
    "pretrain_grounding": "visual_grounding",
    "pretrain_image": "image_infilling",
    "pretrain_detection": "object_detection",
}


def test_every_official_prompt_is_a_row_of_the_table():
    filled = {"{question}": "{text}", "{hypothesis}": "{text}", "{sentence}": "{text_pair}"}
    for prompt in read("prompts"):
        name = prompt["task"].removesuffix("_cn")
        if name not in PROMPTS:
            assert name in ("vqa_gen", "pretrain_qa", "pretrain_text")  # compared by their rows, above
            continue
        row, template = TASKS[PROMPTS[name]], prompt["template"]
        instruction = row.instruction_zh if prompt["task"].endswith("_cn") else row.instruction
        for official_name, ours in filled.items():
            template = template.replace(official_name, ours)
        if "{}" in template:
            template = template.replace("{}", "{text}", 1).replace("{}", "{text_pair}", 1)
        assert instruction == template


def test_the_table_has_the_tasks_of_the_paper_and_no_prompt_twice_in_the_package():
    assert list(TASKS) == NAMES and all(TASKS[name].name == name for name in NAMES)
    package = Path(__file__).parent.parent
    lines = [
        (path.name, line)
        for folder in ("modeling_ofa", "scripts", "convert")
        for path in (package / folder).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if path.name != "tasks_ofa.py" and ">>>" not in line
    ]
    prompts = {
        prompt.strip()
        for row in TASKS.values()
        for prompt in (row.instruction, row.instruction_zh, row.pair_instruction)
        if prompt and prompt.strip() != "{text}"
    }
    parts = {part.strip(' "') for prompt in prompts for part in re.split(r"\{\w+\}", prompt)}
    parts = {part for part in parts if len(part.split()) > 3 or not part.isascii()}
    assert len(parts) > 15
    assert not [(name, line) for name, line in lines for part in parts if part in line]


def test_chinese_summaries_are_the_official_ones(chinese):
    data = read("data_summary_cn")
    for columns, recorded in zip(data["tsv_rows"], data["variants"][0]["items"], strict=True):
        inputs = chinese(task="summarization", text=columns[0], target=columns[1])
        assert inputs["input_ids"] == [recorded["item"]["source"]["v"]]
        assert inputs["labels"] == [recorded["item"]["target"]["v"]]


def test_a_region_is_bins_for_chinese_word_pieces_too(chinese):
    blank = torch.zeros(3, 64, 64, dtype=torch.uint8)
    ids = chinese(task="grounded_caption", images=blank, text="0,0,64,64", size=512)["input_ids"][0]
    start = chinese.tokenizer.bin_start_id
    assert ids[-5:] == [start, start, start + 999, start + 999, 2]


def test_a_task_of_your_own_runs_by_name_and_by_row(official):
    row = Task(
        "count_objects",
        " how many {text} are there?",
        text_is="the kind of object",
        answer="label",
        answers=("none", "one", "many"),
        labels={"0": "none", "1": "one"},
    )
    blank = torch.zeros(3, 64, 64, dtype=torch.uint8)
    try:
        assert register_task(row) is row is register_task(row) is get_task("count_objects")
        with pytest.raises(ValueError, match="There is a task 'count_objects' already"):
            register_task(replace(row, answers=()))
        by_name = official(task="count_objects", images=blank, text="Cups", target="1")
    finally:
        del TASKS["count_objects"]
    by_row = official(task=row, images=blank, text="cups", target="one")
    assert by_name["input_ids"] == by_row["input_ids"] and by_name["labels"] == by_row["labels"]
    assert official.tokenizer.decode(by_row["input_ids"][0]) == "<s> how many cups are there?</s>"
    [processor] = official.generation_kwargs(row)["logits_processor"]
    assert isinstance(processor.rows[0].constraint, TrieConstraint)
    with pytest.raises(ValueError, match="Task 'count_objects' is answered by one of 'none', 'one', 'many', '0', '1'"):
        official(task=row, images=blank, text="cups", target="two")


def test_an_unknown_task_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="Unknown task 'captions'. The tasks are: 'caption', 'vqa'"):
        get_task("captions")


def test_printed_text_is_cleaned_as_the_official_code_does():
    assert clean_print("HELLO\u3000Ｗｏｒｌｄ") == "hello world"


def test_a_checkpoint_brings_its_closed_list_along(official, tmp_path):
    official.answers = {"vqa": ["red", "dark blue"]}
    try:
        official.save_pretrained(tmp_path)
    finally:
        official.answers = None
    loaded = OFAProcessor.from_pretrained(tmp_path)
    assert loaded.closed_list("vqa") == ["red", "dark blue"] and loaded.closed_list("caption") is None
    [processor] = loaded.generation_kwargs("vqa")["logits_processor"]
    assert (
        processor.rows[0].constraint.trie.answers
        == loaded.tokenizer([" red", " dark blue"], add_special_tokens=False)["input_ids"]
    )
    [processor] = loaded.generation_kwargs("vqa", answers=["green"])["logits_processor"]
    assert len(processor.rows[0].constraint.trie.answers) == 1
    assert "logits_processor" not in loaded.generation_kwargs("vqa", constrained=False)
    with pytest.raises(ValueError, match="One list of answers for several tasks"):
        loaded.generation_kwargs(["vqa", "caption"], answers=["green"])
    [processor] = loaded.generation_kwargs(["vqa", "caption"], answers={"vqa": ["green"]})["logits_processor"]
    assert [row.constraint is None for row in processor.rows] == [False, True]


@pytest.mark.parametrize(
    "answers, message",
    [
        ([], "no answer to choose from"),
        ({"vqa": []}, "no answer to choose from"),
        ("red", "not the text 'red'"),
        (["red", " "], "Answer 1 of the closed list is ' '"),
        (["red", None], "Answer 1 of the closed list is None"),
    ],
)
def test_a_closed_list_holds_texts(official, answers, message):
    with pytest.raises(ValueError, match=message):
        official.generation_kwargs("vqa", answers=answers)


def test_a_closed_list_may_be_any_container(official):
    expected = AnswerFormat(official.tokenizer).trie(["red", "blue"], get_task("vqa")).answers
    for answers in (np.array(["red", "blue"]), ("red", "blue"), iter(["red", "blue"]), {"red": 0, "blue": 1}.keys()):
        [processor] = official.generation_kwargs("vqa", answers=answers)["logits_processor"]
        assert processor.rows[0].constraint.trie.answers == expected
    with pytest.raises(ValueError, match="'visual_grounding' answers with no text; leave answers= out"):
        official.generation_kwargs("visual_grounding", answers=["red"])


def test_rows_of_one_name_may_differ(official):
    short = replace(TASKS["caption"], generation={**TASKS["caption"].generation, "max_new_tokens": 5})
    [processor] = official.generation_kwargs(["caption", short, "caption"])["logits_processor"]
    assert [row.max_new_tokens for row in processor.rows] == [17, 5, 17]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"answer": "labels"}, "The answer of task 'mine' is one of text, label, box, boxes, codes, not 'labels'"),
        ({"decoder_prompt": "source"}, "The decoder_prompt of task 'mine' is one of none, src, prev_output"),
        ({"instruction": " what is {texts}?"}, "take {text}, {text_pair} and {region}, not {'{texts}'}"),
        ({"instruction": " what is in {region}?"}, "{region} in an instruction of task 'mine' must come last"),
        ({"answers": "yes"}, "a list of texts, not the text 'yes'"),
        ({"answers": ("yes", "no"), "labels": {"1": "true"}}, "stand for answers, but {'true'} are none"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Task(**{"name": "mine", "instruction": " what is {text}?", **fields})


def test_no_task_writes_more_than_the_model_has_positions(official):
    longest = {name: official.generation_kwargs(name)["max_new_tokens"] for name in NAMES}
    assert longest["image_generation"] == 1025 and longest["object_detection"] == 256
    official.tokenizer.model_max_length = 64
    try:
        for name in NAMES:
            options = official.generation_kwargs(name)
            assert options["max_new_tokens"] == min(longest[name], 65)
            assert options.get("min_new_tokens", 0) < options["max_new_tokens"]
    finally:
        official.tokenizer.model_max_length = 1024


@pytest.mark.parametrize("num_beams", [1, 4])
def test_rows_with_decoder_prompts_of_any_length_and_task_are_answered_as_alone(num_beams):
    processor = OFAProcessor.from_pretrained(DEFAULT_CHECKPOINT, decoder_prompt="official", num_beams=num_beams)
    model = OFAForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT).eval()
    blank = torch.zeros(3, 64, 64, dtype=torch.uint8)
    rows = [
        {"task": "mnli", "images": None, "text": "a dog", "text_pair": "a cup and a dog"},
        {"task": "vqa", "images": blank, "text": "what is it", "text_pair": None},
        {"task": "sst2", "images": None, "text": "a red cup", "text_pair": None},
        {"task": "caption", "images": blank, "text": None, "text_pair": None},
    ]

    def answer(asked: dict[str, Any]) -> list[dict[str, Any]]:
        inputs = processor(**asked, return_tensors="pt")
        ids = model.generate(**inputs, **processor.generation_kwargs(asked["task"]))
        return processor.post_process(ids, task=asked["task"], inputs=inputs)

    together = answer({name: [row[name] for row in rows] for name in rows[0]})
    assert together == [answer(row)[0] for row in rows]
    assert together[0]["label"] in ("yes", "maybe", "no") and together[2]["label"] in ("positive", "negative")


def test_answers_of_every_kind_are_plain_objects_with_confidence(official):
    words = official.tokenizer([" a red cup", " cup", " yes"], add_special_tokens=False)["input_ids"]
    bins = [58457 + one for one in (0, 0, 999, 999)]
    rows = [
        ("caption", words[0]),
        ("visual_entailment", words[2]),
        ("visual_grounding", bins),
        ("object_detection", [*bins, *words[1], *bins[:3], *bins, *words[0]]),
        ("grounded_caption", [*words[1], *bins, *words[0]]),
        ("image_infilling", [50265, 50270, 3]),
    ]
    longest = max(len(tokens) for _, tokens in rows)
    ids = [[0, *tokens, 2, *[1] * (longest - len(tokens))] for _, tokens in rows]
    log_probs = torch.full((len(rows), longest + 1), 0.5).log()
    tasks = [task for task, _ in rows]
    answers = official.post_process(
        ids, task=tasks, image_sizes=[(50, 100)] * len(rows), transition_scores=log_probs, size=512
    )
    everything = pytest.approx([0, 0, 100, 50])
    assert answers[0] == {"text": "a red cup", "score": pytest.approx(0.5)}  # the mean of its tokens
    assert answers[1] == {"label": "yes", "score": pytest.approx(0.25)}  # of the word and the end
    assert answers[2] == {"boxes": [everything], "scores": [pytest.approx(0.5)]}
    assert answers[3]["labels"] == ["cup", "a red cup"] and len(answers[3]["scores"]) == 2
    assert answers[3]["boxes"][0] == everything
    assert answers[4]["text"] == "cup a red cup" and answers[4]["boxes"] == [everything]
    assert answers[4]["labels"] == ["a red cup"]
    assert answers[5] == {"codes": [0, 5], "score": pytest.approx(0.5)}
