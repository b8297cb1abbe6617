"""Converter of ModelScope: the folders of its `ofa_*` models become folders that `from_pretrained` loads."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conversion_utils import Malicious, legacy_state, write_modelscope
from safetensors.torch import load_file
from test_golden import read

from convert import __main__ as command
from convert import huggingface, modelscope
from modeling_ofa import OFAForConditionalGeneration, OFAProcessor


# The tests of ModelScope's own trainer hold this one.
OCR = {
    "language": "zh",
    "beam_search": {"beam_size": 5, "max_len_b": 64, "min_len": 1, "no_repeat_ngram_size": 0},
    "seed": 7,
    "max_src_length": 128,
    "gen_type": "generation",
    "patch_image_size": 480,
    "is_document": False,
    "max_image_size": 480,
    "imagenet_default_mean_and_std": False,
}
CAPTION = {"beam_search": {"beam_size": 5, "max_len_b": 16, "min_len": 1, "no_repeat_ngram_size": 3}}


@pytest.fixture(autouse=True)
def nothing_stays_on_disk(tmp_path):
    """Converted models are large, and pytest keeps the folders of three runs."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="module")
def mini_state() -> dict[str, torch.Tensor]:
    return legacy_state("mini", exact=False)


def add_vocabulary(folder: Path, *files: Path) -> Path:
    for file in files:
        shutil.copy(file, folder / ("vocab.txt" if file.name == "vocab_cn.txt" else file.name))
    return folder


def assert_converts(folder: Path, out: Path, state: dict[str, torch.Tensor]) -> OFAForConditionalGeneration:
    """The folder converts to a model without a missing or unexpected key, that holds the state dict's numbers."""
    model, info = OFAForConditionalGeneration.from_pretrained(
        modelscope.convert(folder, out), output_loading_info=True
    )
    assert not any(info.values()), info
    loaded = model.state_dict()
    for key, tensor in state.items():
        if not key.endswith(("rp_bucket", "image_position_idx", "output_projection.weight")):
            assert torch.equal(loaded[f"model.{key}"], tensor), key
    return model


# The model


@pytest.mark.parametrize("layout", ["plain", "with meta", "of the trainer"])
def test_a_folder_becomes_a_model_with_the_same_numbers(layout, tmp_path, mini_state):
    content: dict = dict(mini_state)
    if layout == "of the trainer":  # which saves the task model around OFA's
        content = {f"model.{key}": value for key, value in content.items()}
    if layout == "with meta":
        content = {"state_dict": content, "meta": {"epoch": 1}}
    folder = write_modelscope(tmp_path / "folder", CAPTION, state=content)
    assert_converts(folder, tmp_path / "out", mini_state)
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "generation_config.json", "model.safetensors"]


def test_it_is_the_model_of_the_hub_folder(tmp_path):
    folder = write_modelscope(tmp_path / "folder", CAPTION)
    ours = modelscope.convert(folder, tmp_path / "ours")
    hub = huggingface.convert(folder, tmp_path / "hub")
    weights, expected = load_file(ours / "model.safetensors"), load_file(hub / "model.safetensors")
    assert weights.keys() == expected.keys() and all(torch.equal(weights[key], expected[key]) for key in weights)


def test_a_converted_folder_gives_the_official_outputs(tmp_path):
    folder = write_modelscope(tmp_path / "folder", CAPTION, state=legacy_state("mini"))
    model = OFAForConditionalGeneration.from_pretrained(modelscope.convert(folder, tmp_path / "out")).eval()
    for name in ("mini_text", "mini_img256", "mini_code"):
        recorded, inputs = read(name)
        with torch.no_grad():
            logits = model(**inputs).logits
        log_probs = logits.log_softmax(-1).gather(-1, recorded["target"].long().unsqueeze(-1)).squeeze(-1)
        # measured: 2e-6 at most
        torch.testing.assert_close(log_probs, recorded["logprob_target"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (False, True, False, 224)),
        ({"disable_entangle": True}, (False, True, False, 224)),
        ({"entangle_position_embedding": True}, (True, False, False, 224)),
        ({"entangle_position_embedding": True, "disable_entangle": True}, (True, True, False, 224)),
        ({"interpolate_position": True, "orig_patch_image_size": 256}, (False, True, True, 256)),
    ],
)
def test_positions_enter_the_model_as_in_the_code_of_modelscope(fields, expected, mini_state):
    config = modelscope.infer_config(mini_state, fields)
    found = config.entangle_position_embedding, config.disable_entangle
    assert (*found, config.interpolate_position, config.orig_patch_image_size) == expected


def test_defaults_of_the_fields_beyond_the_hub_layout_are_accepted(tmp_path, mini_state):
    fields = {"share_attn_bias": False, "use_image_feature": True, "use_ofasys": False, "vit_type": "vit_base"}
    fields |= {"vit_drop_path_rate": 0.0, "use_gamma_feature": False, "gamma": 1.0, "exclude_mlp": True}
    fields |= {"temperature_init_value": None, "remove_decoder_type_embedding": False, "mlp_dim": 512}
    fields |= {"interpolate_position": False, "orig_patch_image_size": 224, "disable_entangle": False, "dropout": 0.25}
    folder = write_modelscope(tmp_path / "folder", CAPTION, fields)
    assert assert_converts(folder, tmp_path / "out", mini_state).config.dropout == 0.25


# The processor


def test_an_english_folder_gives_its_processor(tmp_path, vocab_dir, caplog):
    settings = {"patch_image_size": 384, "max_image_size": 480, "imagenet_default_mean_and_std": True}
    settings |= {"beam_search": {**CAPTION["beam_search"], "beam_size": 3}, "prompt_type": "src", "language": "en"}
    folder = write_modelscope(tmp_path / "folder", settings)
    add_vocabulary(folder, vocab_dir / "vocab.json", vocab_dir / "merges.txt")
    processor = OFAProcessor.from_pretrained(modelscope.convert(folder, tmp_path / "out"))
    assert processor.image_processor.size == {"height": 384, "width": 384}
    assert list(processor.image_processor.image_mean) == [0.485, 0.456, 0.406]
    assert (processor.max_image_size, processor.num_beams, processor.decoder_prompt) == (480, 3, "src")
    assert len(processor.tokenizer) == 59457 and not processor.tokenizer.is_chinese
    assert not caplog.records


@pytest.mark.parametrize("language", ["zh", "cn"])
def test_a_chinese_folder_gives_its_processor(language, tmp_path, vocab_cn_file, caplog):
    folder = write_modelscope(tmp_path / "folder", {**OCR, "language": language}, task="ocr-recognition")
    add_vocabulary(folder, vocab_cn_file)
    processor = OFAProcessor.from_pretrained(modelscope.convert(folder, tmp_path / "out"))
    assert processor.tokenizer.is_chinese
    assert (processor.max_image_size, processor.num_beams, processor.decoder_prompt) == (480, 5, "none")
    assert not caplog.records


def test_a_vocabulary_elsewhere_is_taken(tmp_path, vocab_dir):
    folder = write_modelscope(tmp_path / "folder", CAPTION)
    out = modelscope.convert(folder, tmp_path / "out", vocab=vocab_dir, dtype="bfloat16")
    assert len(OFAProcessor.from_pretrained(out).tokenizer) == 59457
    assert OFAForConditionalGeneration.from_pretrained(out).dtype == torch.bfloat16


def test_a_vocabulary_of_the_other_language_is_refused(tmp_path, vocab_dir):
    folder = write_modelscope(tmp_path / "folder", OCR, task="ocr-recognition")
    with pytest.raises(ValueError, match="the language is 'zh', which needs vocab.txt, but .* holds the other kind"):
        modelscope.convert(folder, tmp_path / "out", vocab=vocab_dir)
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_without_vocabulary_gives_the_model_alone_and_says_so(tmp_path, caplog):
    modelscope.convert(write_modelscope(tmp_path / "folder"), tmp_path / "out")
    assert "the model alone is written; --vocab FOLDER" in caplog.text


@pytest.mark.parametrize(
    ("task", "settings", "num_beams"),
    [
        ("image-captioning", {"beam_search": {"beam_size": 7}}, 7),
        ("image-captioning", {}, None),
        ("visual-entailment", {"beam_search": {"beam_size": 7}, "gen_type": "traverse"}, None),
        ("text-to-image-synthesis", {"beam_search": {"beam_size": 2}}, None),
    ],
)
def test_beams_are_kept_where_there_is_a_beam_search(task, settings, num_beams, tmp_path, vocab_dir, mini_state):
    told = modelscope.read_settings(write_modelscope(tmp_path / "folder", settings, task=task))
    config = modelscope.infer_config(mini_state, {})
    assert modelscope.make_processor(vocab_dir, config, told).num_beams == num_beams


GROUNDING = {"beam_search": {"beam_size": 5, "max_len_b": 4, "min_len": 4, "no_repeat_ngram_size": 0}}


@pytest.mark.parametrize(
    ("task", "settings", "expected"),
    [
        ("image-captioning", {}, []),
        ("image-captioning", {"prompt": " what does the image describe?"}, []),
        ("image-captioning", {"prompt": " describe it"}, ["the prompt is ' describe it'"]),
        ("image-captioning", {"language": "zh"}, ["the prompt is ' what does the image describe?'"]),
        ("image-captioning", {"language": "zh", "prompt": "图片描述了什么内容?"}, []),
        ("image-captioning", {"beam_search": {"max_len_b": 30}}, ["max_new_tokens=31; our"]),
        ("ocr-recognition", OCR, []),
        ("ocr-recognition", {**OCR, "is_document": True}, ["ocr_resize"]),
        ("ocr-recognition", {**OCR, "language": "en"}, ["the prompt is '图片上的文字是什么?'"]),
        ("visual-grounding", {**GROUNDING, "patch_image_size": 512}, []),
        ("visual-grounding", GROUNDING, ["boxes count in 512 pixels, but pictures become 480; give size=480"]),
        ("visual-entailment", {"gen_type": "traverse"}, []),
        ("visual-entailment", {"gen_type": "traverse", "answer2label": "a.json"}, ["one of the names in a.json"]),
        ("visual-question-answering", {"gen_type": "traverse", "prompt": "unread"}, []),
        ("text-summarization", {"gen_type": "traverse"}, ["Summarize the article"]),
        ("text-summarization", {"gen_type": "traverse", "prompt": ' what is the summary of article " {} "?'}, []),
        ("sudoku", {}, ["the prompt is ' solve the sudoku .'"]),
        ("text-classification", {"answer2label": None}, []),
        (None, {}, []),
    ],
)
def test_what_the_processor_cannot_hold_is_told(task, settings, expected, tmp_path):
    advice = modelscope.remarks(modelscope.read_settings(write_modelscope(tmp_path / "folder", settings, task=task)))
    assert len(advice) == len(expected)
    assert all(text in remark for text, remark in zip(expected, advice, strict=True))


def test_advice_reaches_the_user(tmp_path, vocab_dir, caplog):
    folder = write_modelscope(tmp_path / "folder", {**CAPTION, "answer2label": "answers.json"})
    modelscope.convert(folder, tmp_path / "out", vocab=vocab_dir)
    assert (
        "configuration.json: it answers with one of the names in answers.json; give them as answers=." in caplog.text
    )


# Bad input


@pytest.mark.parametrize(
    ("settings", "fields", "message"),
    [
        ({"multimodal_type": "mmspeech"}, {}, r"multimodal_type 'mmspeech', but .* neither speech \(MMSpeech\)"),
        ({"multimodal_type": "text2sql"}, {}, "nor the vocabulary and reader of text2sql"),
        ({"type": "mplug"}, {}, "type 'mplug', but in our model the architecture is OFA's"),
        ({"num_bins": 500}, {}, "the tokenizer has 1,000 places"),
        ({"language": "fr"}, {}, "The language 'fr' of configuration.json is none of en, zh, cn"),
        (
            {"prompt_type": "both"},
            {},
            "The prompt_type 'both' of configuration.json is none of none, src, prev_output",
        ),
        ({"patch_image_size": "large"}, {}, "patch_image_size .* whole number of at least 1, got 'large'"),
        ({"beam_search": {"beam_size": 0}}, {}, "beam_size .* at least 1, got 0"),
        ({"beam_search": [5]}, {}, "must hold names with values"),
        ({"language": ["zh"]}, {}, r"language of configuration.json must be a text, got \['zh'\]"),
        ({}, {"use_ofasys": True, "vit_type": "vit_huge"}, "use_ofasys True, .* not through the ViT of the OFA-Sys"),
        ({}, {"use_image_feature": False}, "there always is an image encoder"),
        ({}, {"share_attn_bias": True}, "each layer has its own table of relative positions"),
        ({}, {"use_gamma_feature": True}, "no learned factors scale the output"),
        ({}, {"exclude_mlp": False}, "there is no contrastive head"),
        ({}, {"temperature_init_value": 0.07}, "there is no contrastive temperature"),
        ({}, {"scale_embedding": True}, "embeddings are not multiplied"),
        ({}, {"dropout": "much"}, "Field 'dropout'"),
    ],
)
def test_what_cannot_be_represented_is_refused_with_the_reason(settings, fields, message, tmp_path):
    folder = write_modelscope(tmp_path / "folder", settings, fields)
    with pytest.raises(ValueError, match=message):
        modelscope.convert(folder, tmp_path / "out")
    assert os.listdir(tmp_path) == ["folder"]


def test_the_embedding_of_rows_and_columns_of_a_sudoku_is_refused(tmp_path):
    folder = write_modelscope(tmp_path / "folder", task="sudoku", seg_embedding=True)
    with pytest.raises(ValueError, match="seg_embedding True, .* rows and columns of a sudoku have no embeddings"):
        modelscope.convert(folder, tmp_path / "out")


def test_weights_of_another_architecture_are_named(tmp_path, mini_state):
    state = {**mini_state, "encoder.layers.0.weight_ffn": torch.ones(64)}
    folder = write_modelscope(tmp_path / "folder", state=state)
    with pytest.raises(ValueError, match=r"unexpected model\.encoder\.layers\.0\.weight_ffn \[64\]"):
        modelscope.convert(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("configuration.json", None, "The folder has no configuration.json"),
        ("configuration.json", "{broken", "configuration.json is not valid JSON"),
        ("configuration.json", '{"framework": "pytorch"}', "is not that of an OFA model: its section 'model'"),
        ("configuration.json", '{"framework": "tensorflow", "model": {}}', "framework 'tensorflow'"),
        ("config.json", None, "The folder has no config.json"),
        ("pytorch_model.bin", None, "None of model.safetensors"),
        ("pytorch_model.bin", "no weights", "pytorch_model.bin .* is not a readable torch checkpoint"),
    ],
)
def test_a_damaged_folder_is_told_what_is_wrong(name, content, message, tmp_path):
    folder = write_modelscope(tmp_path / "folder")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises((OSError, ValueError), match=message):
        modelscope.convert(folder, tmp_path / "out")
    assert os.listdir(tmp_path) == ["folder"]


def test_malicious_weights_run_nothing(tmp_path):
    folder = write_modelscope(tmp_path / "folder")
    torch.save({"a": Malicious(os.system, f"touch {tmp_path / 'executed'}")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="Nothing was executed"):
        modelscope.convert(folder, tmp_path / "out")
    assert os.listdir(tmp_path) == ["folder"]


# The command line


def test_the_command_converts(tmp_path, capsys):
    folder = write_modelscope(tmp_path / "folder", CAPTION)
    assert command.main(["modelscope", str(folder), str(tmp_path / "out"), "--dtype", "float16"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"


def test_the_command_answers_bad_input_with_one_line(tmp_path, capsys):
    assert command.main(["modelscope", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: No such folder") and err.count("\n") == 1
