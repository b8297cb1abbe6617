"""Converters: official `.pt` checkpoints and `OFA-Sys/*` folders become folders that `from_pretrained` loads."""

import json
import os
import shutil
import subprocess
import sys
import types
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conversion_utils import (
    image_position_idx,
    legacy_config,
    legacy_renames,
    legacy_sizes,
    legacy_state,
    official_args,
    official_names,
    official_num_params,
    official_state,
    write_legacy,
    write_official,
)
from safetensors.torch import load_file, save_file

from convert import __main__ as command
from convert import common, fairseq, huggingface
from modeling_ofa import OFAConfig, OFAForConditionalGeneration, OFAForSequenceClassification, OFAProcessor


# Every kind of tensor that a checkpoint may hold occurs in one of these; the others differ from them in depth or in
# switches only, and are converted in full by the slow tests.
CONVERTED = [
    "mini",
    "mini_adapter",
    "mini_clshead",
    "mini_code256",
    "mini_freeze_resnet",
    "mini_noflags",
    "mini_prefix",
]
CONVERTED += ["mini_resnet18", "mini_scale_resids", "mini_vit", "mini_entangle_on", "mini_interp_o224_i384"]

LARGER = ["medium", "base", "large", "huge"]

# Our field: official argument.
SAME_NAME = {
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "d_model": "encoder_embed_dim",
    "encoder_ffn_dim": "encoder_ffn_embed_dim",
    "decoder_ffn_dim": "decoder_ffn_embed_dim",
    "encoder_attention_heads": "encoder_attention_heads",
    "decoder_attention_heads": "decoder_attention_heads",
    "max_position_embeddings": "max_source_positions",
    "classifier_dropout": "pooler_dropout",
    "activation_function": "activation_fn",
}
SAME_NAME |= {
    name: name
    for name in (
        "activation_dropout add_type_embedding attention_dropout attn_scale_factor code_image_size "
        "code_layernorm_embedding decoder_drop_path_rate decoder_layerdrop decoder_normalize_before disable_entangle "
        "dropout encoder_drop_path_rate encoder_layerdrop encoder_normalize_before entangle_position_embedding "
        "image_bucket_size layernorm_embedding orig_patch_image_size patch_layernorm_embedding pooler_classifier "
        "resnet_drop_path_rate resnet_type scale_attn scale_fc scale_heads scale_resids token_bucket_size vocab_size"
    ).split()
}
# What the official code takes from its arguments only: nothing in a state dict shows them.
UNSEEN = {field for field, _ in fairseq.FROM_ARGS.values()} - {"code_image_size"}


def empty_model(config: OFAConfig, kind: type = OFAForConditionalGeneration):
    """A model without data."""
    with torch.device("meta"):
        return kind(config)


def assert_loads(folder: Path, state: dict[str, torch.Tensor], kind: type = OFAForConditionalGeneration):
    """The folder loads without a missing or unexpected key, and holds the state dict's numbers."""
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    loaded = model.state_dict()
    native = fairseq.to_native(state, model.config)
    assert native
    for key, tensor in native.items():
        assert torch.equal(loaded[key], tensor.to(loaded[key].dtype)), key
    return model


def left_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture(autouse=True)
def nothing_stays_on_disk(tmp_path):
    """Converted models are large, and pytest keeps the folders of three runs."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="module")
def mini_state() -> dict[str, torch.Tensor]:
    return official_state("mini", exact=False)


@pytest.fixture(scope="module")
def mini_checkpoint(tmp_path_factory, mini_state) -> Path:
    return write_official(tmp_path_factory.mktemp("official") / "mini.pt", mini_state, official_args("mini"))


# Names, shapes, configuration


@pytest.mark.parametrize("name", official_names())
def test_every_recorded_checkpoint_fits_the_model_without_a_missing_or_unexpected_key(name):
    state = official_state(name, device="meta")
    config = fairseq.infer_config(state, official_args(name))
    tensors = fairseq.to_native(state, config)
    model = empty_model(config, common.model_class_for(tensors))
    common.check_shapes(model, tensors)
    constants = sum(buffer.numel() for key, buffer in model.named_buffers() if key in tensors)
    if name.endswith("clshead"):
        assert isinstance(model, OFAForSequenceClassification)
    # what the official code counts as parameters: everything stored but the batch norms' statistics
    assert sum(tensor.numel() for tensor in tensors.values()) - constants == official_num_params(name)


@pytest.mark.parametrize("name", official_names())
def test_the_inferred_configuration_is_the_one_trained_with(name):
    args = official_args(name)
    config = fairseq.infer_config(official_state(name, device="meta"), args)
    wrong = {ours: (getattr(config, ours), args[theirs]) for ours, theirs in SAME_NAME.items()}
    wrong = {key: pair for key, pair in wrong.items() if pair[0] != pair[1]}
    assert not wrong
    assert config.adapter_dim == (args["adapter_dim"] if args.get("adapter") else None)
    assert config.encoder_prompt_length == (args["encoder_prompt_length"] if args["encoder_prompt"] else None)
    assert config.decoder_prompt_length == (args["decoder_prompt_length"] if args["decoder_prompt"] else None)
    assert config.freeze_resnet == bool(args.get("freeze_resnet"))
    assert config.interpolate_position == bool(args.get("interpolate_position"))
    assert config.tie_word_embeddings


@pytest.mark.parametrize("name", official_names())
def test_a_bare_state_dict_tells_all_but_what_no_shape_shows(name):
    state = official_state(name, device="meta")
    told, bare = fairseq.infer_config(state, official_args(name)), fairseq.infer_config(state)
    differing = {key for key, value in told.to_dict().items() if bare.to_dict()[key] != value}
    # resnet34 and resnet50 are the same network
    assert differing <= UNSEEN | ({"resnet_type"} if "resnet34" in name else set())
    assert {bare.to_dict()[key] == OFAConfig().to_dict()[key] for key in differing - {"resnet_type"}} <= {True}


@pytest.mark.parametrize("size", ["tiny", "medium", "base", "large", "huge"])
def test_the_published_sizes_are_those_of_from_size(size):
    config = fairseq.infer_config(official_state(f"ofa_{size}", device="meta"))
    assert config.to_dict() == OFAConfig.from_size(size).to_dict()


@pytest.mark.parametrize("size", legacy_sizes())
def test_names_become_those_of_the_hub_layout(size):
    renames = legacy_renames(size)
    assert {key: fairseq.rename(key) for key in renames} == renames
    assert {fairseq.rename(key) for key in renames.values()} == set(renames.values())


def test_a_prompt_that_is_projected_is_recognised():
    state = official_state("mini", device="meta")
    for part in ("encoder", "decoder"):
        prompt = f"{part}.{part}_prompt_encoder."
        state[f"{prompt}embedding.weight"] = torch.empty(7, 64, device="meta")
        state[f"{prompt}trans.0.weight"] = torch.empty(96, 64, device="meta")
        state[f"{prompt}trans.0.bias"] = torch.empty(96, device="meta")
        state[f"{prompt}trans.2.weight"] = torch.empty(2 * 2 * 64, 96, device="meta")
        state[f"{prompt}trans.2.bias"] = torch.empty(2 * 2 * 64, device="meta")
    config = fairseq.infer_config(state)
    assert (config.encoder_prompt_length, config.encoder_prompt_projection_dim) == (7, 96)
    assert (config.decoder_prompt_length, config.decoder_prompt_projection_dim) == (7, 96)
    common.check_shapes(empty_model(config), fairseq.to_native(state, config))


def test_prefixes_that_wrappers_add_are_taken_away(mini_state):
    wrapped = {f"module.{key}": value for key, value in mini_state.items()}
    assert fairseq.infer_config(wrapped).to_dict() == fairseq.infer_config(mini_state).to_dict()
    assert fairseq.to_native(wrapped).keys() == fairseq.to_native(mini_state).keys()


@pytest.mark.parametrize(
    ("code_image_size", "entries"), [(128, 770), (128, 769), (256, 770), (256, 1)], ids=["new", "1025", "256", "only"]
)
def test_the_table_of_code_positions_tells_the_code_image_size_whatever_its_length(code_image_size, entries):
    state = official_state("mini", device="meta")
    state["decoder.image_position_idx"] = image_position_idx(code_image_size, entries)
    assert fairseq.infer_config(state).code_image_size == code_image_size
    # the official code makes the table anew from the argument
    assert fairseq.infer_config(state, {"code_image_size": 64}).code_image_size == 64
    assert fairseq.infer_config(state, {"dropout": 0.3}).code_image_size == code_image_size


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"no_scale_embedding": False}, "no_scale_embedding"),
        ({"sync_bn": True}, "sync_bn True"),
        ({"activation_fn": "swish"}, "activation_fn 'swish'"),
        ({"dropout": "a lot"}, "dropout 'a lot'; a number"),
        ({"pooler_activation_fn": "relu"}, "pooler_activation_fn 'relu'"),
    ],
)
def test_a_setting_that_the_model_has_not_is_refused_by_name(args, message):
    with pytest.raises(ValueError, match=message):
        fairseq.infer_config(official_state("mini_clshead", device="meta"), args)


@pytest.mark.parametrize("content", [{"args": [1, 2]}, {"args": None, "cfg": "x"}])
def test_training_arguments_of_another_kind_are_refused(content):
    with pytest.raises(ValueError, match="training arguments are a (list|str), not names with values"):
        fairseq.training_args(content)


# Whole conversions


@pytest.mark.parametrize("name", CONVERTED)
def test_a_checkpoint_becomes_a_folder_that_holds_the_same_numbers(name, tmp_path):
    state = official_state(name, exact=False)
    checkpoint = write_official(tmp_path / "official.pt", state, official_args(name))
    out = fairseq.convert(checkpoint, tmp_path / "out")
    kind = OFAForSequenceClassification if name.endswith("clshead") else OFAForConditionalGeneration
    model = assert_loads(out, state, kind)
    assert model.config.architectures == [kind.__name__]
    assert left_in(tmp_path) == ["official.pt", "out"]
    expected = ["config.json", "generation_config.json", "model.safetensors"]
    assert left_in(out) == (expected if model.can_generate() else [expected[0], expected[2]])
    recomputed = ("token_rp_bucket", "image_rp_bucket", "image_position_idx", "version", "output_projection.weight")
    stored = load_file(out / "model.safetensors")
    assert not [key for key in stored if key.endswith(recomputed)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in official_names() if name not in CONVERTED])
def test_every_other_recorded_checkpoint_converts_too(name, tmp_path):
    state = official_state(name, exact=False)
    checkpoint = write_official(tmp_path / "official.pt", state, official_args(name))
    assert_loads(fairseq.convert(checkpoint, tmp_path / "out"), state)


@pytest.mark.parametrize("style", ["args", "cfg"])
def test_training_arguments_are_found_in_args_and_in_cfg(style, tmp_path, mini_state):
    args = {**official_args("mini"), "dropout": 0.25, "entangle_position_embedding": True}
    checkpoint = write_official(tmp_path / "official.pt", mini_state, args, style)
    state, found = fairseq.read_checkpoint(checkpoint)
    assert found["patch_image_size"] == args["patch_image_size"]
    config = fairseq.infer_config(state, found)
    assert (config.dropout, config.entangle_position_embedding) == (0.25, True)


def test_a_checkpoint_without_arguments_is_converted_and_the_assumptions_are_told(tmp_path, mini_state, caplog):
    checkpoint = write_official(tmp_path / "bare.pt", mini_state, None, "bare")
    model = assert_loads(fairseq.convert(checkpoint, tmp_path / "out"), mini_state)
    assert "no training arguments" in caplog.text
    assert model.config.disable_entangle


def test_an_older_checkpoint_with_1025_code_positions_is_converted(tmp_path, mini_state):
    state = {**mini_state, "decoder.image_position_idx": image_position_idx(128, 769)}
    assert state["decoder.image_position_idx"].shape == (1025,)
    checkpoint = write_official(tmp_path / "official.pt", state, official_args("mini"))
    assert assert_loads(fairseq.convert(checkpoint, tmp_path / "out"), state).config.code_image_size == 128


def test_a_file_of_the_oldest_torch_format_is_read(tmp_path, mini_state):
    torch.save(
        {"args": Namespace(**official_args("mini")), "model": mini_state},
        tmp_path / "old.pt",
        _use_new_zipfile_serialization=False,
    )
    state, args = fairseq.read_checkpoint(tmp_path / "old.pt")
    assert args == official_args("mini")
    assert state.keys() == mini_state.keys()


def test_half_precision_is_kept_and_can_be_asked_for(tmp_path, mini_state, mini_checkpoint):
    half = {key: value.half() if value.is_floating_point() else value for key, value in mini_state.items()}
    checkpoint = write_official(tmp_path / "half.pt", half, official_args("mini"))
    kept = assert_loads(fairseq.convert(checkpoint, tmp_path / "kept"), half)
    assert kept.dtype == torch.float16
    assert fairseq.convert(checkpoint, tmp_path / "wide", dtype="float32").is_dir()
    assert OFAForConditionalGeneration.from_pretrained(tmp_path / "wide").dtype == torch.float32
    asked = assert_loads(fairseq.convert(mini_checkpoint, tmp_path / "asked", dtype="bfloat16"), mini_state)
    assert asked.dtype == torch.bfloat16
    counters = [value for key, value in asked.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counters and {counter.dtype for counter in counters} == {torch.int64}


def test_a_value_too_large_for_half_precision_is_named(tmp_path, mini_state):
    state = {**mini_state, "encoder.pos_ln.weight": torch.full((64,), 1e6)}
    checkpoint = write_official(tmp_path / "official.pt", state, official_args("mini"))
    with pytest.raises(ValueError, match=r"model\.encoder\.pos_ln\.weight holds a value of 1e\+06.*bfloat16"):
        fairseq.convert(checkpoint, tmp_path / "out", dtype="float16")
    assert left_in(tmp_path) == ["official.pt"]


def test_a_dtype_that_is_not_offered_is_refused(tmp_path, mini_checkpoint):
    with pytest.raises(ValueError, match="float32, float16, bfloat16, got 'int8'"):
        fairseq.convert(mini_checkpoint, tmp_path / "out", dtype="int8")


def test_an_output_projection_of_its_own_becomes_an_untied_head(tmp_path, mini_state):
    state = {**mini_state, "decoder.output_projection.weight": mini_state["encoder.embed_tokens.weight"] + 1}
    checkpoint = write_official(tmp_path / "official.pt", state, official_args("mini"))
    model = assert_loads(fairseq.convert(checkpoint, tmp_path / "out"), state)
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.get_output_embeddings().weight, state["decoder.output_projection.weight"])
    for part in (model.model.encoder, model.model.decoder):
        assert torch.equal(part.embed_tokens.weight, state["encoder.embed_tokens.weight"])


def test_embeddings_that_decoder_and_encoder_do_not_share_stay_apart(tmp_path, mini_state):
    own = mini_state["encoder.embed_tokens.weight"] + 1
    state = {**mini_state, "decoder.embed_tokens.weight": own}
    del state["decoder.output_projection.weight"]  # fairseq then projects with the decoder's embedding
    checkpoint = write_official(tmp_path / "official.pt", state, official_args("mini"))
    model = assert_loads(fairseq.convert(checkpoint, tmp_path / "out"), state)
    assert torch.equal(model.model.decoder.embed_tokens.weight, own)
    assert torch.equal(model.lm_head.weight, own)
    assert torch.equal(model.get_input_embeddings().weight, state["encoder.embed_tokens.weight"])


def test_averaged_weights_are_taken_when_asked_for(tmp_path, mini_state):
    averaged = {key: value + 1 if value.is_floating_point() else value for key, value in mini_state.items()}
    checkpoint = {"args": Namespace(**official_args("mini")), "model": mini_state, "extra_state": {"ema": averaged}}
    torch.save(checkpoint, tmp_path / "ema.pt")
    assert_loads(fairseq.convert(tmp_path / "ema.pt", tmp_path / "plain"), mini_state)
    assert_loads(fairseq.convert(tmp_path / "ema.pt", tmp_path / "averaged", ema=True), averaged)


def test_asking_for_averaged_weights_that_are_not_there_is_an_error(tmp_path, mini_checkpoint):
    with pytest.raises(ValueError, match="no averaged weights"):
        fairseq.convert(mini_checkpoint, tmp_path / "out", ema=True)


def test_of_several_classification_heads_one_is_chosen(tmp_path):
    state = official_state("mini_clshead", exact=False)
    for part in ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias"):
        state[f"classification_heads.other.{part}"] = state[f"classification_heads.head.{part}"] * 2
    checkpoint = write_official(tmp_path / "official.pt", state, official_args("mini_clshead"))
    with pytest.raises(ValueError, match=r"several classification heads \(head, other\)"):
        fairseq.convert(checkpoint, tmp_path / "out")
    with pytest.raises(ValueError, match="no classification head 'third'"):
        fairseq.convert(checkpoint, tmp_path / "out", head="third")
    fairseq.convert(checkpoint, tmp_path / "out", head="other")
    model = OFAForSequenceClassification.from_pretrained(tmp_path / "out")
    dense = model.state_dict()["classification_head.dense.weight"]
    assert torch.equal(dense, state["classification_heads.other.dense.weight"])


def test_the_number_of_labels_is_that_of_the_head_chosen():
    state = official_state("mini_clshead", device="meta")
    state["classification_heads.other.dense.weight"] = torch.empty(64, 64, device="meta")
    state["classification_heads.other.dense.bias"] = torch.empty(64, device="meta")
    state["classification_heads.other.out_proj.weight"] = torch.empty(5, 64, device="meta")
    state["classification_heads.other.out_proj.bias"] = torch.empty(5, device="meta")
    for head, labels in (("head", 3), ("other", 5)):
        config = fairseq.infer_config(state, head=head)
        assert config.num_labels == labels
        tensors = fairseq.to_native(state, config, head)
        common.check_shapes(empty_model(config, OFAForSequenceClassification), tensors)


def test_with_a_vocabulary_the_processor_is_written_as_the_checkpoint_was_trained(
    tmp_path, mini_state, vocab_dir, caplog
):
    args = {**official_args("mini"), "patch_image_size": 384, "imagenet_default_mean_and_std": True}
    args |= {"code_dict_size": 8192, "num_bins": 1000, "max_image_size": 480}
    checkpoint = write_official(tmp_path / "official.pt", mini_state, args)
    out = fairseq.convert(checkpoint, tmp_path / "out", vocab=vocab_dir)
    processor = OFAProcessor.from_pretrained(out)
    assert len(processor.tokenizer) == 59457
    assert processor.image_processor.size == {"height": 384, "width": 384}
    assert list(processor.image_processor.image_mean) == [0.485, 0.456, 0.406]
    assert processor.max_image_size == 480
    assert "vocabulary" not in caplog.text


def test_without_a_vocabulary_the_model_alone_is_written_and_that_is_told(tmp_path, mini_checkpoint, caplog):
    out = fairseq.convert(mini_checkpoint, tmp_path / "out")
    assert "the model alone is written; --vocab FOLDER" in caplog.text
    assert left_in(out) == ["config.json", "generation_config.json", "model.safetensors"]


def test_a_vocabulary_of_another_model_is_refused(tmp_path, mini_state, vocab_dir):
    state = dict(mini_state)
    for key in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        state[key] = mini_state[key][:1000].clone()
    checkpoint = write_official(tmp_path / "official.pt", state, official_args("mini"))
    with pytest.raises(ValueError, match="59,457 tokens, but the model only 1,000"):
        fairseq.convert(checkpoint, tmp_path / "out", vocab=vocab_dir)
    with pytest.raises(FileNotFoundError, match="No such folder with the tokenizer's files"):
        fairseq.convert(checkpoint, tmp_path / "out", vocab=tmp_path / "nowhere")
    assert left_in(tmp_path) == ["official.pt"]


# Files as omegaconf writes them, and files that would run something


def make_module(monkeypatch, name: str, **contents) -> types.ModuleType:
    """Puts a module into `sys.modules` for as long as a test wants to pickle what it defines."""
    module = types.ModuleType(name)
    for key, value in contents.items():
        setattr(module, key, value)
        if isinstance(value, type):
            value.__module__, value.__qualname__ = name, key
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_omegaconf_containers_are_read_without_omegaconf(tmp_path, monkeypatch, mini_state):
    class DictConfig:
        def __init__(self, content):
            self._metadata, self._parent = {"ref_type": AnyNode}, self
            self._content = {
                key: DictConfig(item) if isinstance(item, dict) else AnyNode(item) for key, item in content
            }

    class AnyNode:
        def __init__(self, value):
            self._val, self._parent = value, self

    class Choice:
        def __init__(self, value):
            self.value = value

        def __reduce__(self):
            return Choice, (self.value,)

    with monkeypatch.context() as patch:
        make_module(patch, "omegaconf")
        make_module(patch, "omegaconf.dictconfig", DictConfig=DictConfig)
        make_module(patch, "omegaconf.nodes", AnyNode=AnyNode)
        make_module(patch, "fairseq")
        make_module(patch, "fairseq.dataclass")
        make_module(patch, "fairseq.dataclass.constants", Choice=Choice)
        args = {**official_args("mini"), "dropout": 0.125, "activation_fn": Choice("gelu")}
        model = DictConfig(args.items())
        cfg = DictConfig({"common": 1}.items())
        cfg._content["model"] = model
        torch.save({"args": None, "cfg": cfg, "model": mini_state}, tmp_path / "official.pt")
    assert "omegaconf.nodes" not in sys.modules
    state, found = fairseq.read_checkpoint(tmp_path / "official.pt")
    assert found == {**official_args("mini"), "dropout": 0.125}
    assert fairseq.infer_config(state, found).dropout == 0.125


class Malicious:
    """Pickles to a call of a function, as an attacker would write it."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(marker: Path) -> dict[str, object]:
    """Objects whose unpickling by `pickle.load` writes `marker`."""
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Malicious(os.system, f"touch {marker}"),
        "eval": Malicious(eval, code),
        "exec": Malicious(exec, code),
        "subprocess": Malicious(subprocess.getoutput, f"touch {marker}"),
        "getattr": Malicious(getattr, Malicious(__import__, "os"), "system"),
        "numpy": Malicious(__import__("numpy").save, str(marker) + ".npy", 1),
    }


@pytest.mark.parametrize("place", ["args", "model", "extra_state", "bare"])
@pytest.mark.parametrize("kind", ["os.system", "eval", "exec", "subprocess", "getattr", "numpy"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_a_malicious_pickle_runs_nothing(kind, place, zipped, tmp_path):
    marker = tmp_path / "executed"
    evil = attacks(marker)[kind]
    content: object = {"args": None, "model": {"encoder.x": torch.ones(1)}, "extra_state": {}, place: evil}
    torch.save(evil if place == "bare" else content, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError) as error:
        fairseq.convert(tmp_path / "evil.pt", tmp_path / "out")
    assert "evil.pt" in str(error.value)
    if kind != "numpy":  # a stand-in is called instead of numpy's function, and what comes of it is no model
        assert "Nothing was executed" in str(error.value)
    assert left_in(tmp_path) == ["evil.pt"]


def test_the_attacks_of_these_tests_do_run_where_pickles_are_trusted(tmp_path):
    marker = tmp_path / "executed"
    torch.save(attacks(marker)["eval"], tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert marker.exists()


def test_the_error_names_what_was_refused(tmp_path):
    torch.save({"model": {}, "args": Malicious(eval, "1")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="its pickle asks for eval, which is not among the harmless types"):
        fairseq.convert(tmp_path / "evil.pt", tmp_path / "out")


def test_reading_leaves_no_name_allowed_for_others(mini_checkpoint):
    before = set(torch.serialization.get_safe_globals())
    fairseq.read_checkpoint(mini_checkpoint)
    assert set(torch.serialization.get_safe_globals()) == before


def test_arguments_that_contain_themselves_are_refused(tmp_path, mini_state):
    args = Namespace(dropout=0.1)
    args.me = args
    torch.save({"args": args, "model": mini_state}, tmp_path / "official.pt")
    with pytest.raises(ValueError, match="contain themselves"):
        fairseq.convert(tmp_path / "official.pt", tmp_path / "out")


# Bad input


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such checkpoint.*nowhere.pt"):
        fairseq.convert(tmp_path / "nowhere.pt", tmp_path / "out")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(IsADirectoryError, match="A checkpoint file is expected"):
        fairseq.convert(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("kept", [0.0, 0.00001, 0.3, 0.9, 0.9999])
def test_a_truncated_checkpoint_is_told_apart(kept, zipped, tmp_path, mini_state):
    whole = tmp_path / "whole.pt"
    small = {key: value for key, value in mini_state.items() if value.numel() < 10**6}
    torch.save({"args": None, "model": small}, whole, _use_new_zipfile_serialization=zipped)
    content = whole.read_bytes()
    broken = tmp_path / "broken.pt"
    broken.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"broken\.pt \([\d,]+ bytes\) is not a readable torch checkpoint"):
        fairseq.convert(broken, tmp_path / "out")
    assert left_in(tmp_path) == ["broken.pt", "whole.pt"]


@pytest.mark.parametrize(
    "content", [b"<html>404</html>", b"\x00" * 100, bytes(range(256)), b"PK\x03\x04 and no zip", b"hello", b""]
)
def test_a_file_that_is_no_checkpoint_is_told_apart(content, tmp_path):
    path = tmp_path / "page.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"page\.pt .* is not a readable torch checkpoint") as caught:
        fairseq.convert(path, tmp_path / "out")
    assert content[:2] == b"PK" or "its pickle breaks off or is none" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a checkpoint"),
        ({"model": [1]}, "holds no state dict but a list"),
        ({"model": {"a": 1}}, "'a' is not a name with a tensor"),
        ({"epoch": 3, "note": "x"}, "'epoch', 'note' are not a name with a tensor"),
        ({}, "an empty state dict"),
        ({"bert.embeddings.word_embeddings.weight": torch.ones(2, 2)}, "It looks like a BERT model"),
        ({"visual.conv1.weight": torch.ones(2, 2)}, "It looks like a CLIP model"),
        ({"quantize.embed.weight": torch.ones(2, 2)}, "VQGAN"),
        ({"layer1.0.conv1.weight": torch.ones(2, 2)}, "an image classifier"),
        ({"encoder.layers.0.fc1.weight": torch.ones(2, 2)}, r"another encoder-decoder .*\(BART\?\)"),
        ({"something.weight": torch.ones(2, 2)}, r"something else with 1 tensors \(something.weight"),
    ],
)
def test_a_checkpoint_of_something_else_is_told_what_it_looks_like(content, message, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=message):
        fairseq.convert(tmp_path / "other.pt", tmp_path / "out")


def test_an_encoder_without_its_decoder_is_no_model(tmp_path, mini_state):
    half = {key: value for key, value in mini_state.items() if key.startswith("encoder.")}
    checkpoint = write_official(tmp_path / "official.pt", half, official_args("mini"))
    with pytest.raises(ValueError, match="it lacks the decoder .*It looks like a part of an OFA model"):
        fairseq.convert(checkpoint, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder.pos_ln.weight": torch.ones(63)},
            r"encoder\.pos_ln\.weight is \[63\], but .* asks for \[64\]",
        ),
        ({"encoder.pos_ln.weight": None}, r"missing model\.encoder\.pos_ln\.weight \[64\]"),
        ({"encoder.novelty.weight": torch.ones(5)}, r"unexpected model\.encoder\.novelty\.weight \[5\]"),
        ({"decoder.layers.1.fc1.weight": torch.ones(9, 64)}, r"decoder\.layers\.1\.fc1\.weight is \[9, 64\]"),
        ({"encoder.embed_tokens.weight": torch.ones(59457)}, r"encoder\.embed_tokens\.weight is \[59457\]"),
        ({"decoder.layers.0.fc1.weight": None}, r"fc1\.weight"),
        ({"encoder.embed_positions.weight": None}, r"embed_positions\.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named_with_their_shapes(change, message, tmp_path, mini_state):
    state = {key: value for key, value in {**mini_state, **change}.items() if value is not None}
    checkpoint = write_official(tmp_path / "official.pt", state, official_args("mini"))
    with pytest.raises(ValueError, match=message):
        fairseq.convert(checkpoint, tmp_path / "out")
    assert left_in(tmp_path) == ["official.pt"]


# Writing


def test_what_is_already_there_is_left_alone(tmp_path, mini_checkpoint):
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    file.write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        fairseq.convert(mini_checkpoint, full)
    with pytest.raises(FileExistsError, match="a file or a link"):
        fairseq.convert(mini_checkpoint, file)
    with pytest.raises(NotADirectoryError, match="parent must be a folder"):
        fairseq.convert(mini_checkpoint, file / "out")
    assert (full / "mine.txt").read_text() == file.read_text() == "mine"
    assert left_in(tmp_path) == ["file", "full"] and left_in(full) == ["mine.txt"]


def test_an_empty_folder_is_filled_and_missing_parents_are_made(tmp_path, mini_checkpoint):
    (tmp_path / "empty").mkdir()
    assert (fairseq.convert(mini_checkpoint, tmp_path / "empty") / "config.json").is_file()
    assert (fairseq.convert(mini_checkpoint, tmp_path / "a" / "b" / "c") / "config.json").is_file()
    assert left_in(tmp_path) == ["a", "empty"]


@pytest.mark.parametrize("step", ["save_file", "verify"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()])
def test_an_interruption_leaves_nothing(step, failure, tmp_path, mini_checkpoint, monkeypatch):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(common, step, fail)
    with pytest.raises(type(failure)):
        fairseq.convert(mini_checkpoint, tmp_path / "a" / "out")
    assert left_in(tmp_path) == []


def test_a_result_that_does_not_load_as_written_is_not_kept(tmp_path, mini_checkpoint, monkeypatch):
    def save_something_else(tensors, path, metadata):
        changed = {key: value + 1 if "pos_ln" in key else value for key, value in tensors.items()}
        save_file(changed, path, metadata=metadata)

    monkeypatch.setattr(common, "save_file", save_something_else)
    with pytest.raises(ValueError, match=r"pos_ln\.weight is not what was read"):
        fairseq.convert(mini_checkpoint, tmp_path / "out")
    assert left_in(tmp_path) == []


def test_too_little_room_is_told_before_writing(tmp_path, mini_checkpoint, monkeypatch):
    monkeypatch.setattr(common.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="bytes are needed, but only 1,000 are free"):
        fairseq.convert(mini_checkpoint, tmp_path / "out")
    assert left_in(tmp_path) == []


def run_command(*arguments, limit: int | None = None) -> subprocess.CompletedProcess:
    """Runs `python -m convert …`, in a process that may write files of at most `limit` bytes."""

    def restrict():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "convert", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        preexec_fn=restrict if limit is not None else None,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_disk_that_refuses_the_weights_is_one_line_and_leaves_nothing(tmp_path, mini_checkpoint):
    done = run_command("fairseq", mini_checkpoint, tmp_path / "out", limit=10**6)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: The weights (")
    assert left_in(tmp_path) == []


# The command line


def test_the_command_converts_shows_progress_and_prints_the_folder(tmp_path, mini_checkpoint, mini_state):
    done = run_command("fairseq", mini_checkpoint, tmp_path / "out", "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "out")
    assert "the model alone is written" in done.stderr
    assert "Converting: 100%" in done.stderr and "Verifying: 100%" in done.stderr
    assert assert_loads(tmp_path / "out", mini_state).dtype == torch.float16


@pytest.mark.parametrize("source", ["fairseq", "huggingface"])
def test_the_command_answers_bad_input_with_one_line(source, tmp_path, capsys):
    assert command.main([source, str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: No such") and err.count("\n") == 1
    assert str(tmp_path / "nowhere") in err


def test_the_command_tells_an_interruption(tmp_path, mini_checkpoint, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fairseq, "write_folder", interrupt)
    assert command.main(["fairseq", str(mini_checkpoint), str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; nothing was written"


def test_the_command_wants_a_source_that_exists(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["tensorflow", "a", "b"])
    assert stop.value.code == 2
    assert "fairseq" in capsys.readouterr().err


# Folders of the Hub


@pytest.mark.parametrize("size", legacy_sizes())
def test_every_hub_folder_fits_the_model_without_a_missing_or_unexpected_key(size):
    state = legacy_state(size, device="meta")
    config = huggingface.infer_config(state, legacy_config(size))
    common.check_shapes(empty_model(config), fairseq.to_native(state, config))
    if size != "mini":
        expected = OFAConfig.from_size(size, **{key: legacy_config(size)[key] for key in ("dropout", "init_std")})
        assert config.to_dict() == expected.to_dict()


@pytest.mark.parametrize("size", ["mini", "tiny", *(pytest.param(s, marks=pytest.mark.slow) for s in LARGER)])
def test_a_hub_folder_loads_as_it_is(size, tmp_path):
    state = legacy_state(size, exact=False)
    folder = write_legacy(tmp_path / "hub", size, state)
    assert_loads(folder, state)


@pytest.mark.parametrize("size", ["mini", *(pytest.param(s, marks=pytest.mark.slow) for s in ["tiny", *LARGER])])
def test_a_hub_folder_is_converted(size, tmp_path, caplog):
    state = legacy_state(size, exact=False)
    folder = write_legacy(tmp_path / "hub", size, state)
    out = huggingface.convert(folder, tmp_path / "out")
    assert_loads(out, state)
    assert left_in(out) == ["config.json", "generation_config.json", "model.safetensors"]
    assert "the model alone is written" in caplog.text


def test_a_hub_folder_and_the_official_checkpoint_give_the_same_model(tmp_path, mini_state, mini_checkpoint):
    folder = write_legacy(tmp_path / "hub", "mini")
    huggingface.convert(folder, tmp_path / "from_hub")
    fairseq.convert(mini_checkpoint, tmp_path / "from_official")
    hub, official = (load_file(tmp_path / name / "model.safetensors") for name in ("from_hub", "from_official"))
    assert hub.keys() == official.keys()
    assert all(torch.equal(hub[key], official[key]) for key in hub)


def test_a_hub_folder_with_its_vocabulary_gives_a_processor(tmp_path, vocab_dir):
    folder = write_legacy(tmp_path / "hub", "mini")
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((vocab_dir / name).read_bytes())
    out = huggingface.convert(folder, tmp_path / "out", dtype="float16")
    assert len(OFAProcessor.from_pretrained(out).tokenizer) == 59457
    assert OFAForConditionalGeneration.from_pretrained(out).dtype == torch.float16


def test_shards_and_safetensors_are_read_too(tmp_path):
    state = legacy_state("mini", exact=False)
    state = {key: value.clone() for key, value in state.items() if not key.endswith(("bucket", "image_position_idx"))}
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "config.json").write_text(json.dumps(legacy_config("mini")))
    keys = sorted(state)
    weight_map = {}
    for number, part in enumerate((keys[:200], keys[200:])):
        name = f"model-{number}.safetensors"
        save_file({key: state[key] for key in part}, tmp_path / "shards" / name)
        weight_map |= dict.fromkeys(part, name)
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_loads(huggingface.convert(tmp_path / "shards", tmp_path / "out"), state)
    (tmp_path / "shards" / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="A shard of the weights is missing"):
        huggingface.convert(tmp_path / "shards", tmp_path / "again")
    (tmp_path / "shards" / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    with pytest.raises(ValueError, match="has no weight_map"):
        huggingface.convert(tmp_path / "shards", tmp_path / "again")


def test_a_folder_that_was_converted_can_be_converted_again(tmp_path, mini_checkpoint, mini_state):
    first = fairseq.convert(mini_checkpoint, tmp_path / "first")
    assert_loads(huggingface.convert(first, tmp_path / "second", dtype="bfloat16"), mini_state)


@pytest.mark.parametrize(
    ("remove", "write", "message"),
    [
        ("config.json", None, "no config.json"),
        ("pytorch_model.bin", None, "None of model.safetensors"),
        ("config.json", "{broken", "config.json is not valid JSON"),
        ("config.json", "[1]", "holds a list; a JSON object is expected"),
        ("config.json", '{"scale_embedding": true}', "scale_embedding"),
        ("config.json", '{"dropout": "much"}', "Field 'dropout'"),
        ("pytorch_model.bin", "no weights", "pytorch_model.bin .* is not a readable torch checkpoint"),
    ],
)
def test_a_damaged_hub_folder_is_told_what_is_wrong(remove, write, message, tmp_path):
    folder = write_legacy(tmp_path / "hub", "mini")
    (folder / remove).unlink()
    if write is not None:
        (folder / remove).write_text(write)
    with pytest.raises((OSError, ValueError), match=message):
        huggingface.convert(folder, tmp_path / "out")
    assert left_in(tmp_path) == ["hub"]


def test_a_truncated_safetensors_file_is_told_apart(tmp_path, mini_state):
    folder = write_legacy(tmp_path / "hub", "mini")
    (folder / "pytorch_model.bin").unlink()
    save_file({"a": torch.ones(1000)}, folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ValueError, match="model.safetensors .* is not a readable safetensors file"):
        huggingface.convert(folder, tmp_path / "out")


def test_a_malicious_hub_folder_runs_nothing(tmp_path):
    folder = write_legacy(tmp_path / "hub", "mini")
    torch.save({"a": Malicious(os.system, f"touch {tmp_path / 'executed'}")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="Nothing was executed"):
        huggingface.convert(folder, tmp_path / "out")
    assert left_in(tmp_path) == ["hub"]
