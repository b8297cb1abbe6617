"""Converter of mmpretrain: its `.pth` checkpoints become folders that `from_pretrained` loads."""

import os
import shutil
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conversion_utils import (
    Malicious,
    image_position_idx,
    mmpretrain_renames,
    mmpretrain_state,
    official_args,
    official_shapes,
    official_state,
    write_legacy,
    write_official,
)
from safetensors.torch import load_file
from test_golden import read

from convert import __main__ as command
from convert import common, fairseq, mmpretrain
from modeling_ofa import OFAConfig, OFAForConditionalGeneration, OFAProcessor


META = {"mmpretrain_version": "1.0.0rc7", "dataset_meta": {}}
PUBLISHED = {
    "ofa-base_3rdparty_coco-caption_20230418-de18914e.pth": "finetuned_caption",
    "ofa-base_3rdparty_refcoco_20230418-2797d3ab.pth": "finetuned_refcoco",
    "ofa-base_3rdparty_coco-vqa_20230418-f38539a5.pth": "finetuned_vqa",
    "ofa-base_3rdparty_pretrain_20230418-dccfc07f.pth": "zeroshot_vqa",
}


@pytest.fixture(autouse=True)
def nothing_stays_on_disk(tmp_path):
    """Converted models are large, and pytest keeps the folders of three runs."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="module")
def mini_state() -> dict[str, torch.Tensor]:
    return mmpretrain_state("mini", exact=False)


@pytest.fixture(scope="module")
def mini_checkpoint(tmp_path_factory, mini_state) -> Path:
    path = tmp_path_factory.mktemp("mmpretrain") / "ofa-mini_3rdparty_coco-caption.pth"
    torch.save({"state_dict": OrderedDict(mini_state), "meta": META}, path)
    return path


def test_every_recorded_name_becomes_ours():
    for official, theirs in mmpretrain_renames().items():
        assert mmpretrain.rename(theirs) == f"model.{fairseq.rename(official)}"


def test_a_published_checkpoint_fits_base_without_a_missing_or_unexpected_key():
    state = mmpretrain_state(device="meta")
    assert len(state) == 965
    state = {mmpretrain.rename(key): value for key, value in state.items()}
    config = fairseq.infer_config(state)
    assert config.to_dict() == OFAConfig.from_size("base").to_dict()
    with torch.device("meta"):
        model = OFAForConditionalGeneration(config)
    common.check_shapes(model, fairseq.to_native(state, config))


@pytest.mark.parametrize("style", ["published", "bare", "training"])
def test_each_way_of_saving_gives_the_folder_of_the_official_checkpoint(style, tmp_path, mini_state, monkeypatch):
    checkpoint: object = mini_state
    if style != "bare":
        checkpoint = {"state_dict": OrderedDict(mini_state), "meta": META}
    with monkeypatch.context() as patch:
        if style == "training":
            checkpoint = {**checkpoint, **logs_of_training(patch)}
        torch.save(checkpoint, tmp_path / "ofa.pth")
    assert "mmengine" not in sys.modules
    write_official(tmp_path / "official.pt", official_state("mini", exact=False), official_args("mini"))
    ours = mmpretrain.convert(tmp_path / "ofa.pth", tmp_path / "ours")
    theirs = fairseq.convert(tmp_path / "official.pt", tmp_path / "theirs")
    ours_weights, theirs_weights = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    assert ours_weights.keys() == theirs_weights.keys()
    assert all(torch.equal(ours_weights[key], theirs_weights[key]) for key in ours_weights)
    _, info = OFAForConditionalGeneration.from_pretrained(ours, output_loading_info=True)
    assert not any(info.values()), info


def logs_of_training(patch: pytest.MonkeyPatch) -> dict[str, object]:
    """What mmengine's runner saves beside the weights, with the classes and methods that it names."""

    class HistoryBuffer:
        def __init__(self):
            self._log_history = np.array([0.5])
            self.statistics_methods = {"min": HistoryBuffer.min, "mean": HistoryBuffer.mean}

        def min(self):
            return 0

        def mean(self):
            return 0

    class ConfigDict(dict):
        def __reduce_ex__(self, protocol):
            return ConfigDict, (dict(self),), None, None, None

    for name, kind in (("mmengine.logging.history_buffer", HistoryBuffer), ("mmengine.config.config", ConfigDict)):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            patch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        kind.__module__, kind.__qualname__ = name, kind.__name__
        setattr(sys.modules[name], kind.__name__, kind)
    for method in (HistoryBuffer.min, HistoryBuffer.mean):
        method.__module__ = HistoryBuffer.__module__
        method.__qualname__ = f"HistoryBuffer.{method.__name__}"
    scalars = OrderedDict({"train/loss": HistoryBuffer()})
    return {
        "message_hub": {"log_scalars": scalars, "runtime_info": OrderedDict(cfg=ConfigDict(a=1)), "resumed_keys": {}},
        "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
        "param_schedulers": [{"last_step": 7}],
    }


@pytest.mark.parametrize(
    ("official", "names"),
    [
        ("mini", ["mini_text", "mini_img256", "mini_patchmask", "mini_code"]),
        pytest.param("ofa_base", ["ofa_base_text", "ofa_base_img480", "ofa_base_code"], marks=pytest.mark.slow),
    ],
)
def test_a_converted_checkpoint_gives_the_official_outputs(official, names, tmp_path):
    torch.save({"state_dict": mmpretrain_state(official), "meta": META}, tmp_path / "ofa.pth")
    out = mmpretrain.convert(tmp_path / "ofa.pth", tmp_path / "out")
    model = OFAForConditionalGeneration.from_pretrained(out).eval()
    for name in names:
        recorded, inputs = read(name)
        with torch.no_grad():
            outputs = model(**inputs)
        log_probs = outputs.logits.log_softmax(-1).gather(-1, recorded["target"].long().unsqueeze(-1)).squeeze(-1)
        # measured: 2e-6 at most
        torch.testing.assert_close(log_probs, recorded["logprob_target"], atol=1e-4, rtol=0)
        assert torch.equal(outputs.logits.argmax(-1), recorded["argmax"].long())


def test_the_code_size_is_read_from_the_table_of_code_positions(mini_state):
    state = {mmpretrain.rename(key): value for key, value in mini_state.items()}
    state["model.decoder.image_position_idx"] = image_position_idx(256)
    assert fairseq.infer_config(state).code_image_size == 256


# The processor


@pytest.mark.parametrize(("name", "task"), PUBLISHED.items())
def test_a_published_file_name_tells_the_configuration(name, task):
    assert mmpretrain.guess_task(Path("downloads") / name) == task
    assert mmpretrain.guess_task(f"ofa-base_3rdparty-{task}.pth") == task


def test_other_file_names_tell_nothing():
    assert mmpretrain.guess_task("model.pth") is None


@pytest.mark.parametrize(
    ("task", "side", "num_beams", "decoder_prompt"),
    [
        ("finetuned_caption", 480, None, "none"),
        ("finetuned_refcoco", 512, None, "none"),
        ("finetuned_vqa", 480, None, "prev_output"),
        ("zeroshot_vqa", 480, 20, "none"),
    ],
)
def test_the_processor_follows_the_configuration(
    task, side, num_beams, decoder_prompt, tmp_path, mini_checkpoint, vocab_dir, caplog
):
    out = mmpretrain.convert(mini_checkpoint, tmp_path / "out", vocab_dir, dtype="float16", task=task)
    processor = OFAProcessor.from_pretrained(out)
    assert processor.image_processor.size == {"height": side, "width": side}
    assert list(processor.image_processor.image_mean) == list(processor.image_processor.image_std) == [0.5] * 3
    assert (processor.num_beams, processor.decoder_prompt) == (num_beams, decoder_prompt)
    assert processor.max_image_size == 512 and len(processor.tokenizer) == 59457
    assert OFAForConditionalGeneration.from_pretrained(out).dtype == torch.float16
    assert not caplog.records


def test_a_file_name_that_tells_nothing_is_remarked_upon(tmp_path, mini_state, vocab_dir, caplog):
    torch.save(mini_state, tmp_path / "model.pth")
    mmpretrain.convert(tmp_path / "model.pth", tmp_path / "out", vocab_dir)
    assert "The name model.pth does not tell the configuration" in caplog.text


def test_an_official_checkpoint_brings_its_decoder_prompt(vocab_dir):
    config = OFAConfig.from_size("tiny")
    assert fairseq.load_processor(vocab_dir, config, {"prompt_type": "prev_output"}).decoder_prompt == "prev_output"
    assert fairseq.load_processor(vocab_dir, config, {}).decoder_prompt == "none"


# Bad input


def test_an_unknown_task_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="task must be one of zeroshot_vqa, .*, got 'vqa'"):
        mmpretrain.convert(tmp_path / "nowhere.pth", tmp_path / "out", task="vqa")


def test_the_official_layout_is_sent_to_its_own_converter(tmp_path):
    official = official_state("mini", exact=False)
    write_official(tmp_path / "official.pt", official, official_args("mini"))
    with pytest.raises(ValueError, match="laid out like an official checkpoint: python -m convert fairseq"):
        mmpretrain.convert(tmp_path / "official.pt", tmp_path / "out")
    torch.save(official, tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="do not have mmpretrain's names: python -m convert fairseq"):
        mmpretrain.convert(tmp_path / "bare.pt", tmp_path / "out")
    folder = write_legacy(tmp_path / "hub", "mini")
    with pytest.raises(ValueError, match="python -m convert huggingface a folder"):
        mmpretrain.convert(folder / "pytorch_model.bin", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds no state dict but a list"),
        ({"state_dict": [1]}, r"ofa\.pth, state_dict holds no state dict but a list"),
        ({"state_dict": {"a": 1}}, "'a' is not a name with a tensor"),
        ({"state_dict": {}}, "an empty state dict"),
        ({"state_dict": {"backbone.layer1.0.conv1.weight": torch.ones(2)}}, "is not an OFA model"),
    ],
)
def test_a_checkpoint_of_something_else_is_told_apart(content, message, tmp_path):
    torch.save(content, tmp_path / "ofa.pth")
    with pytest.raises(ValueError, match=message):
        mmpretrain.convert(tmp_path / "ofa.pth", tmp_path / "out")
    assert os.listdir(tmp_path) == ["ofa.pth"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "model.encoder.layers.1.ffn_mid_ln.weight",
            None,
            r"missing model\.encoder\.layers\.1\.ffn_layer_norm\.weight",
        ),
        ("model.decoder.novelty.weight", torch.ones(3), r"unexpected model\.decoder\.novelty\.weight \[3\]"),
        ("model.decoder.layers.0.cross_attn_ln.bias", torch.ones(9), r"cross_attn_layer_norm\.bias is \[9\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(key, value, message, tmp_path, mini_state):
    state = {name: tensor for name, tensor in {**mini_state, key: value}.items() if tensor is not None}
    torch.save(state, tmp_path / "ofa.pth")
    with pytest.raises(ValueError, match=message):
        mmpretrain.convert(tmp_path / "ofa.pth", tmp_path / "out")
    assert os.listdir(tmp_path) == ["ofa.pth"]


@pytest.mark.parametrize("place", ["state_dict", "meta", "message_hub", "optimizer"])
@pytest.mark.parametrize("function", [os.system, eval, exec])
def test_a_malicious_pickle_runs_nothing(function, place, tmp_path):
    marker = tmp_path / "executed"
    code = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w').close()"
    torch.save({"state_dict": {}, "meta": META, place: Malicious(function, code)}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="Nothing was executed"):
        mmpretrain.convert(tmp_path / "evil.pth", tmp_path / "out")
    assert os.listdir(tmp_path) == ["evil.pth"]


def test_an_allowed_getattr_looks_nothing_up(tmp_path):
    torch.save({"a": Malicious(getattr, "text", "upper")}, tmp_path / "evil.pth")
    found = common.load_torch_file(tmp_path / "evil.pth")["a"]
    assert isinstance(found, common.Inert) and found.arguments == ("text", "upper")


# The command line


def test_the_command_converts_with_a_task(tmp_path, mini_checkpoint, capsys):
    argv = ["mmpretrain", mini_checkpoint, tmp_path / "out", "--task", "finetuned_vqa", "--dtype", "bfloat16"]
    assert command.main([str(item) for item in argv]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert OFAForConditionalGeneration.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_the_command_answers_bad_input_with_one_line(tmp_path, capsys):
    assert command.main(["mmpretrain", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: No such checkpoint") and err.count("\n") == 1


def test_the_recorded_names_are_those_of_the_official_tensors():
    assert set(mmpretrain_renames()) == {key for key in official_shapes("ofa_base") if not key.endswith(".version")}
