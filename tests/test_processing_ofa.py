"""The processor: official ids, boxes and targets of every task, batches of any make-up, answers, and refusals."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoProcessor, pipeline
from transformers.generation import GenerateEncoderDecoderOutput
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from modeling_ofa import (
    OFAConfig,
    OFAForConditionalGeneration,
    OFAImageProcessorPil,
    OFAProcessor,
    OFATokenizer,
)
from modeling_ofa.tasks_ofa import TASKS, clean_question, clean_text


GOLDEN = Path(__file__).parent / "golden"
TASK_OF_FILE = {"data_caption": "caption", "data_vqa_gen": "vqa", "data_refcoco": "visual_grounding"}


def read(name: str):
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@cache
def load_tokenizer(path: Path) -> OFATokenizer:
    return OFATokenizer.from_pretrained(path)


@cache
def small_tokenizer() -> OFATokenizer:
    """A tokenizer of a few hundred words, without codes."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([task.instruction for task in TASKS.values()] * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return OFATokenizer(model["vocab"], [tuple(pair) for pair in model["merges"]], num_codes=0)


@pytest.fixture
def official(vocab_dir):
    """The processor of the official English checkpoints."""
    return OFAProcessor(OFAImageProcessorPil(), load_tokenizer(vocab_dir))


@pytest.fixture
def chinese(vocab_cn_file):
    """The processor of the official Chinese checkpoints."""
    return OFAProcessor(OFAImageProcessorPil(), load_tokenizer(vocab_cn_file))


@pytest.fixture
def small():
    """A processor with a small vocabulary and small pictures, whose boxes count in 64 pixels."""
    return OFAProcessor(OFAImageProcessorPil(size=32), small_tokenizer(), max_image_size=64)


@pytest.fixture
def image():
    """A picture, 40 wide and 20 high."""
    return Image.fromarray(np.arange(20 * 40 * 3, dtype=np.uint32).astype(np.uint8).reshape(20, 40, 3))


def recorded_rows(name: str):
    """Every recorded row of a data set: the variant, the columns of the file, the encoded texts and the item."""
    data = read(name)
    for variant in data["variants"]:
        for columns, row in zip(data["tsv_rows"], variant["items"], strict=True):
            yield variant, columns, row["encode_calls"], row["item"]


# The official data sets.


@pytest.mark.parametrize("name", TASK_OF_FILE)
def test_a_task_reads_what_the_official_code_reads(official, name):
    task = TASK_OF_FILE[name]
    compared = 0
    for variant, columns, texts, item in recorded_rows(name):
        if variant["kwargs"].get("add_object"):
            continue  # detected objects come with the whole table of tasks
        golden = item["patch_image"]
        options = {"size": {"height": golden["shape"][1], "width": golden["shape"][2]}}
        if variant["kwargs"].get("imagenet_default_mean_and_std"):
            options.update(image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD)
        text = columns[2] if TASKS[task].takes_text else None
        inputs = official(task=task, images=columns[1], text=text, return_tensors="pt", **options)
        assert inputs["input_ids"].tolist() == [[0, *texts[0]["ids"], 2]]
        if variant["kwargs"].get("prompt_type", "none") == "none":
            assert inputs["input_ids"].tolist() == [item["source"]["v"]]
        assert inputs["attention_mask"].tolist() == [[1] * inputs["input_ids"].shape[1]]
        assert inputs["patch_masks"].tolist() == [True] and inputs["patch_masks"].dtype == torch.bool
        values = inputs["pixel_values"][0][:, golden["grid_y"]][:, :, golden["grid_x"]]
        torch.testing.assert_close(values, torch.tensor(golden["grid"]), rtol=0, atol=2e-6)
        compared += 1
    assert compared >= 9


def test_visual_grounding_reads_pictures_of_512_pixels_and_the_others_of_480(official, image):
    assert official(task="visual_grounding", images=image, text="x")["pixel_values"][0].shape == (3, 512, 512)
    assert official(task="caption", images=image)["pixel_values"][0].shape == (3, 480, 480)


def test_caption_targets_are_the_official_ones_of_training(official):
    rows = [row for row in recorded_rows("data_caption") if row[0]["variant"] == "train480"]
    assert len(rows) == 6
    for _, columns, _, item in rows:
        labels = official(task="caption", images=columns[1], target=columns[2], return_tensors="pt")["labels"]
        assert labels.tolist() == [item["target"]["v"]]


def test_vqa_targets_are_the_official_ones(official):
    rows = [row for row in recorded_rows("data_vqa_gen") if row[0]["variant"] == "none_trie"]
    assert len(rows) == 3
    for _, columns, _, item in rows:
        answer = max(columns[3].split("&&"), key=lambda one: float(one.split("|!+")[0])).split("|!+")[1]
        inputs = official(task="vqa", images=columns[1], text=columns[2], target=answer)
        assert inputs["labels"] == [item["target"]["v"]]


def test_box_targets_are_the_official_ones_cut_off_at_the_picture(official):
    unknown = 3
    for variant, columns, _, item in recorded_rows("data_refcoco"):
        box = [float(side) for side in columns[3].split(",")]
        side = variant["kwargs"]["patch_image_size"]
        inputs = official(task="visual_grounding", images=columns[1], text=columns[2], target=box, size=side)
        [labels], golden = inputs["labels"], item["target"]["v"]
        last = 58457 + round(side / 512 * 999)  # the bin at which the picture ends
        cut = [58457, golden[1], last, last]  # row 3 has a box beyond three sides of its picture
        assert labels == (golden if columns[0] != "3" else [*cut, 2])
        assert (unknown in golden) == (columns[0] == "3")


def test_boxes_come_back_as_the_official_evaluation_has_them(official):
    golden = read("eval_refcoco")
    sizes = [(512 / h, 512 / w) for h, w in zip(golden["h"], golden["w"], strict=True)]
    ids = torch.tensor([[0, *tokens] for tokens in golden["tokens"]])
    answers = official.post_process(ids, task="visual_grounding", image_sizes=sizes, scores=torch.arange(4.0))
    for i, (answer, result) in enumerate(zip(answers, golden["results"], strict=True)):
        assert answer["boxes"] == [pytest.approx(result["box"], rel=1e-6, abs=1e-4)]
        assert answer["scores"] == [float(i)]


def test_instructions_are_the_official_ones(official):
    recorded = {row["task"]: row["template"] for row in read("prompts")}
    assert TASKS["caption"].instruction == recorded["caption"]
    assert TASKS["visual_grounding"].instruction == recorded["refcoco"].replace("{}", "{text}")
    assert TASKS["caption"].instruction_zh == recorded["caption_cn"]
    assert TASKS["visual_grounding"].instruction_zh == recorded["refcoco_cn"].replace("{}", "{text}")
    ids = official(text=[row["template"] for row in read("prompts") if row["template_ids"]], padding=False)[
        "input_ids"
    ]
    assert ids == [[0, *row["template_ids"], 2] for row in read("prompts") if row["template_ids"]]


def test_texts_are_cleaned_as_the_official_data_sets_do():
    for row in read("tokenization_en")["preprocess"]:
        assert clean_text(row["text"]) == row["pre_caption"]
        assert clean_question(row["text"]) == row["pre_question"]


def test_the_chinese_checkpoints_are_asked_in_chinese(chinese, image):
    [columns] = read("data_caption_cn")["tsv_rows"]
    [variant] = read("data_caption_cn")["variants"]
    item = variant["items"][0]["item"]
    inputs = chinese(task="caption", images=columns[1], target=columns[2])
    assert inputs["input_ids"] == [item["source"]["v"]]
    assert inputs["labels"] == [item["target"]["v"]]
    asked = chinese(task="visual_grounding", images=image, text=" 红色的狗 ")["input_ids"]
    assert asked == chinese.tokenizer(['这段文字" 红色的狗 "描述的是哪个区域？'])["input_ids"]
    ids = chinese.tokenizer(["一个 dog 男人骑着马。"])["input_ids"]
    assert chinese.post_process(ids, task="caption") == [{"text": "一个dog男人骑着马。"}]


# Batches.


def test_a_text_without_task_is_read_as_it_was_typed(official, image):
    inputs = official(images=image, text=" what does the image describe?", return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[0, 99, 473, 5, 2274, 6190, 116, 2]]
    assert official(text="What")["input_ids"] == official.tokenizer(["What"])["input_ids"]


def test_texts_are_padded_on_the_right_to_the_longest(official):
    inputs = official(text=[" no", " light blue"], return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[0, 117, 2, 1], [0, 1109, 2440, 2]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert set(inputs) == {"input_ids", "attention_mask"}


def test_padding_and_truncation_are_the_tokenizers(official):
    inputs = official(text=[" no", " light blue"], padding="max_length", max_length=6)
    assert [len(row) for row in inputs["input_ids"]] == [6, 6]
    assert official(text=[" no", " light blue"], padding=False)["input_ids"] == [[0, 117, 2], [0, 1109, 2440, 2]]
    nested = official(text=" light blue", text_kwargs={"truncation": True, "max_length": 3})
    assert nested["input_ids"] == [[0, 1109, 2]]


def test_rows_with_and_without_picture_share_a_batch(small, image):
    inputs = small(images=[image, None, [image], []], text=["a", "b", "c", "d"], return_tensors="pt")
    assert inputs["patch_masks"].tolist() == [True, False, True, False]
    alone = small(images=image, text="a", return_tensors="pt")["pixel_values"]
    assert inputs["pixel_values"].shape == (4, 3, 32, 32) and inputs["pixel_values"].dtype == torch.float32
    assert torch.equal(inputs["pixel_values"][[0, 2]], alone.expand(2, -1, -1, -1))
    assert not inputs["pixel_values"][[1, 3]].any()


def test_a_batch_without_any_picture_has_no_pixels(small):
    for images in (None, [None, None], [[], []]):
        assert set(small(images=images, text=["a", "b"])) == {"input_ids", "attention_mask"}


def test_pictures_may_come_as_a_stack_of_arrays_or_as_paths(small, image, tmp_path):
    image.save(tmp_path / "a.png")
    one = small(task="caption", images=image, return_tensors="pt")
    stack = small(task="caption", images=np.stack([np.asarray(image)] * 2), return_tensors="pt")
    files = small(task="caption", images=[str(tmp_path / "a.png"), tmp_path / "a.png"], return_tensors="pt")
    for batch in (stack, files):
        for name, values in one.items():
            assert torch.equal(batch[name], torch.cat([values, values]))


def test_pictures_alone_give_no_text(small, image):
    assert set(small(images=image)) == {"pixel_values", "patch_masks"}
    assert set(small(images=image, text="a")) == set(small.model_input_names)


def test_labels_are_padded_with_minus_100(official, image):
    inputs = official(images=[image] * 2, text=["a", "b"], target=[" no", " light blue"], return_tensors="pt")
    assert inputs["labels"].tolist() == [[117, 2, -100], [1109, 2440, 2]]
    ragged = official(text=["a", "b"], target=[" no", " light blue"], padding=False)
    assert ragged["labels"] == [[117, 2], [1109, 2440, 2]]


def test_targets_may_be_boxes_for_each_row_in_any_container(small, image):
    bins = [small.tokenizer.bin_start_id + i for i in (0, 0, 500, 999)]  # 499.5 goes to the even one, as in torch
    texts = ["a", "b"]
    box = [0, 0, 20, 20]
    for target in ([box, box], np.array([box, box]), torch.tensor([box, box]), ([0.0, -3, 20, 50],) * 2):
        inputs = small(task="visual_grounding", images=[image] * 2, text=texts, target=target)
        assert inputs["labels"] == [[*bins, 2]] * 2
    array = np.asarray(image).transpose(2, 0, 1)
    assert small(task="visual_grounding", images=array, text="a", target=box)["labels"] == [[*bins, 2]]


def test_columns_of_data_sets_and_frames_are_lists(small, image):
    rows = {"image": [image] * 2, "text": ["a dog", "a cup"], "box": [[0, 0, 9, 9], [1, 2, 30, 15]]}
    expected = small(
        task="visual_grounding", images=rows["image"], text=rows["text"], target=rows["box"], return_tensors="pt"
    )
    dataset, frame = Dataset.from_dict(rows).cast_column("image", ImageFeature()), pd.DataFrame(rows)
    for columns in (dataset, frame):
        found = small(
            task="visual_grounding",
            images=columns["image"],
            text=columns["text"],
            target=columns["box"],
            return_tensors="pt",
        )
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    first = dataset.select([0])
    alone = small(task="visual_grounding", images=first["image"], text=first["text"], target=first["box"])
    assert alone["labels"] == expected["labels"][:1].tolist()


@pytest.mark.parametrize(
    "box",
    [
        [torch.tensor([1, 2, 30, 15])],
        [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(30.0), torch.tensor(15.0)],
        np.array([1, 2, 30, 15], dtype=np.float32),
        "1, 2,30,15",
    ],
)
def test_a_target_box_may_be_tensors_or_the_text_of_official_data(small, image, box):
    asked = {"task": "visual_grounding", "images": image, "text": "a dog"}
    assert small(**asked, target=box)["labels"] == small(**asked, target=[1, 2, 30, 15])["labels"]


def test_labelled_boxes_may_be_tensors(small, image):
    asked = {"task": "object_detection", "images": image}
    expected = small(**asked, target=[{"box": [1, 2, 30, 15], "label": "dog"}])["labels"]
    for boxes in (torch.tensor([[1, 2, 30, 15]]), [torch.tensor([1, 2, 30, 15])], np.array([[1, 2, 30, 15]])):
        assert small(**asked, target={"boxes": boxes, "labels": ["dog"]})["labels"] == expected


def test_image_codes_are_whole_numbers(official):
    with pytest.raises(ValueError, match=r"whole numbers, not \[1.5, 2\]"):
        official(task="image_generation", text="a dog", target=[1.5, 2])


@pytest.mark.parametrize("padding", [False, "do_not_pad"])
def test_targets_and_prompts_are_padded_if_texts_are(small, padding):
    asked = {"task": "mnli", "text": ["a", "a dog"], "text_pair": ["b", "c"], "target": ["yes", "maybe"]}
    batch = small(**asked, prompt_type="src", padding=padding)
    for i in range(2):
        alone = small(**{name: one if name == "task" else one[i] for name, one in asked.items()}, prompt_type="src")
        assert all(batch[name][i] == alone[name][0] for name in ("input_ids", "labels", "decoder_input_ids"))


@pytest.mark.parametrize("options", [{}, {"size": 48}, {"size": {"height": 32, "width": 48}}])
def test_a_box_survives_its_way_to_bins_and_back_at_any_size(small, image, options):
    box = [3.0, 5.0, 31.5, 19.0]
    inputs = small(task="visual_grounding", images=image, text="a", target=box, **options)
    [answer] = small.post_process(inputs["labels"], task="visual_grounding", image_sizes=[(20, 40)], **options)
    assert answer["boxes"] == [pytest.approx(box, abs=40 * 64 / 32 / 999)]


def test_truncation_of_a_task_keeps_the_instruction_whole(official, image):
    text = "dog " * 2000
    inputs = official(task="visual_grounding", images=image, text=text, truncation=True)
    phrase = " ".join(["dog"] * 80)
    assert inputs["input_ids"] == official(text=f' which region does the text " {phrase} " describe?')["input_ids"]


# Answers.


def test_texts_come_back_without_special_tokens_and_outer_spaces(official):
    ids = official.tokenizer([" a dog", " a"], padding=True, return_tensors="pt")["input_ids"]
    assert official.post_process(ids, task="caption") == [{"text": "a dog"}, {"text": "a"}]
    scored = official.post_process(ids.tolist(), task="vqa", scores=[-0.5, -1.0])
    assert scored == [{"text": "a dog", "score": -0.5}, {"text": "a", "score": -1.0}]
    assert official.post_process_image_text_to_text(ids) == ["a dog", "a"]
    assert official.batch_decode(ids, skip_special_tokens=True) == [" a dog", " a"]
    assert official.decode(ids[1], skip_special_tokens=True) == " a"


def test_boxes_of_a_mixed_batch_come_back_by_the_size_that_its_pictures_had(small, image):
    tasks, box = ["visual_grounding", "object_detection"], [4, 5, 30, 15]
    labelled = {"boxes": [box], "labels": ["dog"]}
    batch = small(task=tasks, images=[image] * 2, text=["a dog", None], target=[box, labelled], return_tensors="pt")
    assert batch["pixel_values"].shape[-1] == 64  # as grounding wants, though detection alone has 32
    ids = batch["labels"].masked_fill(batch["labels"] < 0, 1)
    for inputs in (None, batch):
        for answer in small.post_process(ids, task=tasks, image_sizes=[(20, 40)] * 2, inputs=inputs):
            assert answer["boxes"] == [pytest.approx(box, abs=0.1)]


def test_a_row_without_picture_has_no_say_in_the_size_of_pictures(official, image):
    batch = official(task=["image_infilling", "mnli"], images=[image, None], text=[None, "a"], text_pair=[None, "b"])
    assert batch["pixel_values"][0].shape == (3, 256, 256)


@pytest.mark.parametrize("sizes", [torch.tensor([[20, 40]]), np.array([[20, 40]]), [torch.Size([20, 40])]])
def test_boxes_are_plain_numbers_whatever_the_sizes_came_in(small, sizes):
    ids = [[0, *small.tokenizer("<bin_0><bin_0><bin_999><bin_999>")["input_ids"][1:]]]
    [answer] = small.post_process(ids, task="visual_grounding", image_sizes=sizes)
    assert answer == {"boxes": [pytest.approx([0, 0, 40, 20])], "scores": [None]}
    assert all(type(side) is float for side in answer["boxes"][0])


def test_what_generate_returns_as_an_object_is_taken_too(small):
    ids = torch.tensor(small.tokenizer([" a dog"])["input_ids"])
    output = GenerateEncoderDecoderOutput(sequences=ids)
    assert small.post_process(output, task="caption") == small.post_process(ids, task="caption") == [{"text": "a dog"}]


def test_an_answer_that_is_no_box_has_no_boxes(small):
    first = small.tokenizer.bin_start_id
    rows = [
        [0, 2],
        [0, first, first, first, 2],
        [0, first, 7, first, first, 2],
        [0, first + 1000] * 4,
        [0, 3, 3, 3, 3],
    ]
    answers = small.post_process(rows, task="visual_grounding", image_sizes=[(20, 40)] * 5)
    assert answers == [{"boxes": [], "scores": []}] * 5


def test_several_beams_of_a_picture_share_its_size(small):
    first = small.tokenizer.bin_start_id
    rows = [[0, first, first, first + 999, first + 999, 2]] * 4
    answers = small.post_process(rows, task="visual_grounding", image_sizes=[(20, 40), (10, 30)])
    assert [answer["boxes"][0] for answer in answers] == [pytest.approx([0, 0, 40, 20])] * 2 + [
        pytest.approx([0, 0, 30, 10])
    ] * 2
    assert answers[0]["scores"] == [None]


def test_each_task_is_decoded_as_the_official_evaluation_does(small):
    caption = small.generation_kwargs("caption")
    assert (caption["num_beams"], caption["max_new_tokens"], caption["no_repeat_ngram_size"]) == (5, 17, 3)
    assert small.generation_kwargs("vqa")["length_penalty"] == 0.0
    grounding = small.generation_kwargs("visual_grounding")
    assert (grounding["min_new_tokens"], grounding["max_new_tokens"]) == (4, 5)
    grounding["num_beams"] = 1
    assert small.generation_kwargs("visual_grounding")["num_beams"] == 5


def test_a_checkpoint_may_decode_greedily_and_says_so_in_its_folder(small, tmp_path):
    OFAProcessor(small.image_processor, small.tokenizer, num_beams=1).save_pretrained(tmp_path)
    options = OFAProcessor.from_pretrained(tmp_path).generation_kwargs("caption")
    assert options["num_beams"] == 1 and options["max_new_tokens"] == 17
    assert not {"early_stopping", "length_penalty"} & options.keys()


# Saving, loading and use.


def test_a_saved_processor_comes_back(small, image, tmp_path):
    small.save_pretrained(tmp_path)
    OFAConfig().save_pretrained(tmp_path)
    for cls in (OFAProcessor, AutoProcessor):
        again = cls.from_pretrained(tmp_path)
        assert type(again) is OFAProcessor and again.max_image_size == 64
        asked = {"task": "visual_grounding", "images": image, "text": "the dog", "return_tensors": "pt"}
        for name, values in small(**asked).items():
            assert torch.equal(again(**asked)[name], values)


@pytest.mark.parametrize("cls", [OFAProcessor, AutoProcessor])
def test_an_ofa_sys_folder_without_picture_settings_gets_the_default_ones(vocab_dir, image, tmp_path, cls):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(vocab_dir / name)
    (tmp_path / "config.json").write_text('{"model_type": "ofa"}')
    processor = cls.from_pretrained(tmp_path)
    inputs = processor(images=image, text=" what does the image describe?", return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[0, 99, 473, 5, 2274, 6190, 116, 2]]
    assert inputs["pixel_values"].shape == (1, 3, 480, 480)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such folder: .*nowhere"):
        OFAProcessor.from_pretrained(str(tmp_path / "nowhere"))


def test_the_processor_loads_from_the_code_that_is_saved_beside_it(small, image, tmp_path):
    """As from the Hub, on a machine that does not have this package."""
    small = OFAProcessor(OFAImageProcessorPil(size=32), small_tokenizer())
    classes = [type(small), type(small.tokenizer), type(small.image_processor)]
    try:
        for cls, auto in zip(classes, ["AutoProcessor", "AutoTokenizer", "AutoImageProcessor"], strict=True):
            cls.register_for_auto_class(auto)
        small.save_pretrained(tmp_path / "saved")
    finally:
        for cls in classes:
            cls._auto_class = None
    image.save(tmp_path / "a.png")
    code = (
        "import sys; from transformers import AutoProcessor\n"
        "processor = AutoProcessor.from_pretrained('saved', trust_remote_code=True)\n"
        "inputs = processor(task='caption', images='a.png', return_tensors='pt')\n"
        "assert 'modeling_ofa' not in sys.modules\n"
        "print(inputs['input_ids'].tolist(), inputs['pixel_values'].sum().item())\n"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    ids, total = result.stdout.strip().rsplit(" ", 1)
    here = small(task="caption", images=image, return_tensors="pt")
    assert json.loads(ids) == here["input_ids"].tolist()
    assert float(total) == pytest.approx(here["pixel_values"].sum().item(), rel=1e-4)


def test_the_image_text_to_text_pipeline_works(small, image):
    config = OFAConfig(
        vocab_size=len(small.tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        resnet_depths=[1, 1, 1],
        resnet_embedding_size=4,
    )
    torch.manual_seed(0)
    model = OFAForConditionalGeneration(config).eval()
    pipe = pipeline("image-text-to-text", model=model, processor=small)
    texts = [" what does the image describe?", " what?"]
    results = pipe(images=[image, image], text=texts, max_new_tokens=4, return_full_text=False)
    assert [result["input_text"] for result in results] == texts
    inputs = small(images=image, text=texts[0], return_tensors="pt")
    expected = small.post_process(model.generate(**inputs, max_new_tokens=4), task="caption")
    assert results[0]["generated_text"] == expected[0]["text"]


# Refusals.


def test_an_unknown_task_is_refused_with_the_known_ones(small, image):
    for call in (
        lambda: small(task="colour", images=image),
        lambda: small.post_process([[0]], task="colour"),
        lambda: small.generation_kwargs("colour"),
    ):
        with pytest.raises(ValueError, match=r"Unknown task 'colour'.*'caption', 'vqa', 'visual_grounding'"):
            call()


@pytest.mark.parametrize(
    "asked, message",
    [
        ({}, "Nothing to process"),
        ({"task": "caption"}, "Task 'caption' is about a picture: give images="),
        ({"task": "vqa", "images": 1}, "Task 'vqa' needs text=: the question"),
        ({"task": "visual_grounding", "images": 1}, "needs text=: the phrase"),
        ({"task": "caption", "images": 1, "text": "a dog"}, "'caption' takes no text"),
        ({"images": 2, "text": "a"}, "2 images but 1 texts"),
        ({"images": 1, "text": ["a", "b"]}, "1 images but 2 texts"),
        ({"images": [], "text": []}, "images is empty"),
        ({"text": []}, "text must be"),
        ({"text": [3]}, "text must be"),
        ({"text": ["a", "b"], "target": ["c"]}, "1 targets for 2 rows"),
        ({"text": "a", "target": [[1, 2, 3, 4]]}, "A target is a text here"),
        ({"text": 5}, "text must be a string or a list of strings, but here it is 5"),
        ({"task": "vqa", "images": 1, "text": " "}, "Task 'vqa' needs text=: the question"),
        ({"task": "mnli", "text": b"a dog", "text_pair": "a cat"}, "takes the premise as text=, not b'a dog'"),
        ({"task": "mnli", "text": "a dog", "text_pair": ""}, "needs text_pair=: the hypothesis"),
        ({"task": "mnli", "text": ["a", "b"], "text_pair": ["c", float("nan")]}, r"'mnli' \(row 1\) needs text_pair="),
        ({"task": [], "images": 1}, "list of tasks is empty"),
        ({"task": 3, "images": 1}, "Unknown task 3"),
        ({"task": "mnli", "text": "a", "text_pair": "b", "target": 0}, "not 0. Numbers .* give their names"),
        ({"text": ["a", "b"], "target": ["c", None]}, "Target 1: A target is a text here, not None"),
        ({"task": "object_detection", "images": 1, "target": {"boxes": [[1, 2, 3, 4]], "labels": [7]}}, "text, not 7"),
    ],
)
def test_what_does_not_fit_together_is_refused(small, image, asked, message):
    if isinstance(asked.get("images"), int):
        asked = {**asked, "images": [image] * asked["images"]}
    with pytest.raises(ValueError, match=message):
        small(**asked)


def test_two_pictures_in_a_row_are_refused(small, image):
    with pytest.raises(ValueError, match="one picture a text, but row 1 of images has 2"):
        small(images=[[image], [image, image]], text=["a", "b"])


@pytest.mark.parametrize("task", [None, "vqa"])
def test_a_text_beyond_the_models_positions_is_refused_with_its_length(official, image, task):
    text = [" a dog", " dog" * 1100]
    length = 1102 if task is None else 1103  # <s> and </s>, and the question mark
    with pytest.raises(ValueError, match=rf"Text 1 is {length:,} tokens long, but the model has 1,024 positions"):
        official(task=task, images=[image] * 2, text=text)
    assert official(images=image, text=text[1], truncation=True, return_tensors="pt")["input_ids"].shape == (1, 1024)
    assert official(images=image, text=" dog" * 1022, return_tensors="pt")["input_ids"].shape == (1, 1024)


def test_a_target_beyond_the_models_positions_is_refused(official):
    with pytest.raises(ValueError, match="Target 0 is 1,101 tokens long"):
        official(text="a", target=" dog" * 1100)


@pytest.mark.parametrize(
    "box, message",
    [
        ([1, 2, 3], "1 targets|3 targets|four numbers"),
        ([[1, 2, 3]], "four numbers"),
        (["1", "2", "3", "4"], "four numbers"),
        ([[1, 2, float("nan"), 4]], "four numbers"),
        ([30, 5, 10, 10], "not a region of its picture of 40 × 20 pixels"),
        ([50, 5, 60, 10], "not a region of its picture"),
        (["the dog"], "four numbers"),
    ],
)
def test_a_target_that_is_no_box_of_its_picture_is_refused(small, image, box, message):
    with pytest.raises(ValueError, match=message):
        small(task="visual_grounding", images=image, text="a", target=box)


def test_a_target_box_needs_its_picture(small, image):
    with pytest.raises(ValueError, match="needs its picture"):
        small(task="visual_grounding", images=[image, None], text=["a", "b"], target=[[0, 0, 9, 9]] * 2)


def test_boxes_need_a_vocabulary_with_bins(image):
    tokenizer = OFATokenizer(num_codes=0, num_bins=0)
    processor = OFAProcessor(OFAImageProcessorPil(size=32), tokenizer)
    with pytest.raises(ValueError, match="no <bin_i> tokens"):
        processor.post_process([[0, 1]], task="visual_grounding", image_sizes=[(20, 40)])


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, r"give image_sizes=\[\(height, width\)"),
        ({"image_sizes": [(20, 40)] * 2}, "2 image_sizes do not match 3 rows"),
        ({"image_sizes": [(20, 40)], "scores": [1.0]}, "1 scores for 3 rows"),
        ({"image_sizes": [(20, 40), None, (20, 40)]}, r"give image_sizes=\[\(height, width\)"),
        ({"image_sizes": (20, 40, 3)}, r"holds \(height, width\) of each picture in pixels, not 20"),
        ({"image_sizes": [(0, 40)]}, r"holds \(height, width\) of each picture in pixels, not \(0, 40\)"),
        ({"image_sizes": [(20, 40)], "transition_scores": torch.zeros(2, 1)}, "2 transition_scores for 3 rows"),
        ({"image_sizes": [(20, 40)], "transition_scores": torch.full((3, 1), 7.5)}, "some are above 0.*normalize_log"),
    ],
)
def test_sizes_and_scores_must_match_the_rows(small, options, message):
    with pytest.raises(ValueError, match=message):
        small.post_process([[0, 2]] * 3, task="visual_grounding", **options)


@pytest.mark.parametrize("ids", [[0, 5, 2], ["a dog"], "a dog"])
def test_answers_are_read_from_rows_of_ids_alone(small, ids):
    with pytest.raises(ValueError, match="ids are rows of token ids"):
        small.post_process(ids, task="caption")


def test_candidates_must_match_their_scores(small):
    with pytest.raises(ValueError, match="2 answers for the scores of 3"):
        small.post_process_candidates(torch.zeros(1, 3), ["yes", "no"], task="vqa")


def test_closed_lists_of_a_processor_are_by_task(small):
    with pytest.raises(ValueError, match="closed lists by name of task, such as"):
        OFAProcessor(small.image_processor, small.tokenizer, answers=["yes", "no"])


def test_a_bad_picture_is_named(small, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.png is not a picture"):
        small(task="caption", images=[tmp_path / "bad.png"])
