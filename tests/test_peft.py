"""Efficient adaptation through `peft`, unchanged: OFA's default targets, and every method from training to answers."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import (
    HAS_IMAGE,
    SOURCE,
    TOLERANCE,
    TRAINED,
    batch,
    gradients,
    images,
    tiny_model,
)
from transformers import AutoModelForSeq2SeqLM, BitsAndBytesConfig, TorchAoConfig, Trainer, TrainingArguments

import modeling_ofa
from modeling_ofa import (
    DataCollatorForOFA,
    OFAForConditionalGeneration,
    OFAForSequenceClassification,
    OFAProcessor,
    peft_ofa,
)


peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'modeling-ofa[train]'")

TASK = {"task_type": "SEQ_2_SEQ_LM"}
INPUTS = {"input_ids": SOURCE, "attention_mask": SOURCE.ne(1).long(), "pixel_values": images(3)}
INPUTS["patch_masks"] = HAS_IMAGE

# Methods by what can be done with them: those that change modules, which can be merged, and those that add inputs.
MERGEABLE: dict[str, Callable[[], Any]] = {
    "LoRA": lambda: peft.LoraConfig(**TASK, r=4),
    "DoRA": lambda: peft.LoraConfig(**TASK, r=4, use_dora=True),
    "rsLoRA on all linear layers": lambda: peft.LoraConfig(**TASK, r=2, use_rslora=True, target_modules="all-linear"),
    "IA3": lambda: peft.IA3Config(**TASK),
    "AdaLoRA": lambda: peft.AdaLoraConfig(**TASK, init_r=4, target_r=2, total_step=20, tinit=2, tfinal=8),
    "LoHa": lambda: peft.LoHaConfig(**TASK, r=2),
    "LN tuning": lambda: peft.LNTuningConfig(**TASK),
}
PROMPTS: dict[str, Callable[[], Any]] = {
    "prefix tuning": lambda: peft.PrefixTuningConfig(**TASK, num_virtual_tokens=4),
    "projected prefixes": lambda: peft.PrefixTuningConfig(**TASK, num_virtual_tokens=4, prefix_projection=True),
    "prompt tuning": lambda: peft.PromptTuningConfig(**TASK, num_virtual_tokens=4),
    "P-tuning": lambda: peft.PromptEncoderConfig(**TASK, num_virtual_tokens=4, encoder_hidden_size=16),
}
METHODS = MERGEABLE | PROMPTS


def adapted(config: Any, model: OFAForConditionalGeneration | None = None, steps: int = 3) -> Any:
    """A tiny model (or `model`) with an adapter, in which a few large steps were taken."""
    torch.manual_seed(0)
    model = peft.get_peft_model(model or tiny_model(), config).train()
    inputs = {**TRAINED, "attention_mask": INPUTS["attention_mask"]}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def adapted_modules(model: torch.nn.Module) -> set[str]:
    """Names of the layers of the base model that an adapter has replaced."""
    names = {name.removeprefix("base_model.model.") for name, _ in model.named_modules()}
    return {name.removesuffix(".base_layer") for name in names if name.endswith(".base_layer")}


def frozen_state(model: Any) -> dict[str, torch.Tensor]:
    """What the base model of `model` holds, batch statistics included, by the names that it has without an adapter."""
    state = {name.replace("base_layer.", ""): value for name, value in model.get_base_model().state_dict().items()}
    return {name: state[name] for name in tiny_model().state_dict() if name in state}


# ------------------------------------------------------------------------------------------------ default targets


def test_lora_without_targets_adapts_queries_and_values_of_every_attention():
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(**TASK))
    stacks = [("encoder", "self_attn"), ("decoder", "self_attn"), ("decoder", "cross_attn")]
    assert adapted_modules(model) == {
        f"model.{stack}.layers.{i}.{attention}.{projection}"
        for stack, attention in stacks
        for i in range(2)
        for projection in ("q_proj", "v_proj")
    }


def test_every_default_names_modules_of_the_layers_and_none_of_another_part():
    model = tiny_model(resnet_type="ViT-B/16", resnet_depths=None)  # the backbone with linear layers of its own
    names = [name for name, _ in model.named_modules()]
    tables = {name: table for name, table in vars(peft.utils.constants).items() if name.endswith("_MODULES_MAPPING")}
    assert len(tables) > 20
    for method, table in tables.items():
        for target in table["ofa"]:
            found = [name for name in names if name == target or name.endswith(f".{target}")]
            assert found, (method, target)
            assert all(".layers." in name or name.endswith("coder.layer_norm") for name in found), (method, target)


def test_a_users_own_defaults_stay(monkeypatch: pytest.MonkeyPatch):
    table = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    monkeypatch.setitem(table, "ofa", ["k_proj"])
    peft_ofa.register_peft_targets.__wrapped__()
    assert table["ofa"] == ["k_proj"]


def test_nothing_is_registered_where_peft_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    table = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    monkeypatch.delitem(table, "ofa", raising=False)
    monkeypatch.setattr(peft_ofa, "is_peft_available", lambda: False)
    peft_ofa.register_peft_targets.__wrapped__()
    assert "ofa" not in table


def test_importing_the_package_leaves_peft_alone_and_importing_peft_last_is_early_enough():
    program = (
        "import sys, modeling_ofa\n"
        "assert 'peft' not in sys.modules\n"
        "config = modeling_ofa.OFAConfig(vocab_size=9, d_model=8, encoder_layers=1, decoder_layers=1,\n"
        "    encoder_attention_heads=2, decoder_attention_heads=2, resnet_depths=[1, 1, 1], resnet_embedding_size=2)\n"
        "model = modeling_ofa.OFAForConditionalGeneration(config)\n"
        "from peft import LoraConfig, get_peft_model\n"
        "print(get_peft_model(model, LoraConfig(task_type='SEQ_2_SEQ_LM')).peft_config['default'].target_modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "'q_proj'" in run.stdout and "'v_proj'" in run.stdout


# --------------------------------------------------------------------------------- from training to answers


@pytest.mark.parametrize("name", METHODS)
def test_an_adapter_learns_and_leaves_the_base_model_as_it_was(name: str):
    inputs = {**TRAINED, "attention_mask": INPUTS["attention_mask"]}
    model = adapted(METHODS[name](), steps=0)
    before = model(**inputs).loss.item()
    assert adapted(METHODS[name](), steps=5)(**inputs).loss.item() < before - 0.1
    state, base = frozen_state(adapted(METHODS[name]())), tiny_model().state_dict()
    kept = {key for key in base if name != "LN tuning" or "layer_norm" not in key}
    assert kept <= state.keys() and any("running_mean" in key for key in kept)
    assert all(torch.equal(state[key], base[key]) for key in kept)


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_an_adapter_that_is_saved_and_loaded_gives_the_same_logits_and_beams(name: str, tmp_path: Path):
    with torch.enable_grad():
        model = adapted(METHODS[name]())
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path)
    inputs = batch(attention_mask=INPUTS["attention_mask"])
    logits = model(**inputs).logits
    assert (logits - tiny_model()(**inputs).logits).abs().max() > 1e-2
    torch.testing.assert_close(loaded(**inputs).logits, logits)
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6}
    assert torch.equal(loaded.generate(**INPUTS, **beams), model.generate(**INPUTS, **beams))


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_generation_scores_each_step_as_the_forward_pass_does(name: str):
    with torch.enable_grad():
        model = adapted(METHODS[name]())
    output = model.generate(**INPUTS, max_new_tokens=6, output_logits=True, return_dict_in_generate=True)
    ids = output.sequences
    logits = model(**INPUTS, decoder_input_ids=ids[:, :-1]).logits
    written = ids[:, 1:].ne(1)  # a finished row goes on with padding
    steps = torch.stack(output.logits, dim=1)
    torch.testing.assert_close(steps[written], logits[written], **TOLERANCE)
    beams = model.generate(
        **INPUTS, max_new_tokens=6, num_beams=3, length_penalty=0.0, output_scores=True, return_dict_in_generate=True
    )
    ids = beams.sequences
    steps = model(**INPUTS, decoder_input_ids=ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(steps.masked_fill(ids[:, 1:].eq(1), 0).sum(1), beams.sequences_scores, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("name", MERGEABLE)
def test_a_merged_adapter_is_an_ofa_model_of_the_same_logits_and_answers(name: str, tmp_path: Path):
    with torch.enable_grad():
        model = adapted(METHODS[name]())
    inputs = batch(attention_mask=INPUTS["attention_mask"])
    logits, ids = model(**inputs).logits, model.generate(**INPUTS, num_beams=2, max_new_tokens=5)
    candidates = [[5, 6], [5, 9, 30], [77]]
    scores = model.score_candidates(INPUTS, candidates)
    merged = model.merge_and_unload()
    assert type(merged) is OFAForConditionalGeneration
    merged.save_pretrained(tmp_path)
    for one in (merged, OFAForConditionalGeneration.from_pretrained(tmp_path)):
        torch.testing.assert_close(one(**inputs).logits, logits, atol=5e-4, rtol=1e-3)
        assert torch.equal(one.generate(**INPUTS, num_beams=2, max_new_tokens=5), ids)
        torch.testing.assert_close(one.score_candidates(INPUTS, candidates), scores, atol=5e-4, rtol=1e-3)


@torch.no_grad()
def test_candidates_are_scored_without_the_prompts_of_an_adapter():
    with torch.enable_grad():
        model = adapted(METHODS["prompt tuning"]())
    scores = model.score_candidates(INPUTS, [[5, 6], [7]])
    torch.testing.assert_close(scores, tiny_model().score_candidates(INPUTS, [[5, 6], [7]]))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Raw rows of two tasks about one picture."""
    scenes = Path(modeling_ofa.DEFAULT_CHECKPOINT).parent / "scenes"
    picture = Image.open(scenes / "scene_1.png")
    return [
        {"task": "caption", "image": picture, "target": "a walrus reads the news"},
        {"task": "vqa", "image": picture, "text": "who reads?", "target": "walrus"},
    ]


@pytest.mark.parametrize("name", ["LoRA", "DoRA", "IA3", "AdaLoRA", "prefix tuning", "prompt tuning"])
def test_trainer_trains_an_adapter_on_raw_rows_that_loads_back(name: str, rows: list[dict[str, Any]], tmp_path: Path):
    processor = OFAProcessor.from_pretrained(modeling_ofa.DEFAULT_CHECKPOINT)
    base = OFAForConditionalGeneration.from_pretrained(modeling_ofa.DEFAULT_CHECKPOINT, dtype=torch.float32)
    torch.manual_seed(0)
    model = peft.get_peft_model(base, METHODS[name]())
    arguments = TrainingArguments(
        tmp_path,
        remove_unused_columns=False,
        per_device_train_batch_size=2,
        max_steps=30,
        learning_rate=5e-2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=30,
        save_steps=30,
        report_to=[],
        use_cpu=True,
    )
    collator = DataCollatorForOFA(processor, size=64)
    trainer = Trainer(model, arguments, train_dataset=rows * 8, eval_dataset=rows, data_collator=collator)
    trainer.train()
    log = {key: value for entry in reversed(trainer.state.log_history) for key, value in entry.items()}  # the first
    assert log["eval_loss"] < log["loss"] - 1
    files = {path.name for path in (tmp_path / "checkpoint-30").iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    base = OFAForConditionalGeneration.from_pretrained(modeling_ofa.DEFAULT_CHECKPOINT, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "checkpoint-30")
    inputs = collator(rows)
    inputs["decoder_input_ids"] = base.prepare_decoder_input_ids_from_labels(inputs.pop("labels"))
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model.eval()(**inputs).logits)


# -------------------------------------------------------------------------------------------- several adapters


@torch.no_grad()
def test_several_adapters_share_a_model_and_are_switched_and_switched_off():
    inputs = batch()
    base = tiny_model()
    expected = {"base": base(**inputs).logits}
    config = peft.LoraConfig(**TASK, r=2, init_lora_weights=False)
    model = peft.get_peft_model(base, config, adapter_name="caption").eval()
    expected["caption"] = model(**inputs).logits
    model.add_adapter("vqa", peft.LoraConfig(**TASK, r=3, init_lora_weights=False))
    model.set_adapter("vqa")
    expected["vqa"] = model(**inputs).logits
    assert min((expected["vqa"] - expected[other]).abs().max() for other in ("base", "caption")) > 1e-2
    for name in ("caption", "vqa", "caption"):
        model.set_adapter(name)
        torch.testing.assert_close(model(**inputs).logits, expected[name])
    with model.disable_adapter():
        torch.testing.assert_close(model(**inputs).logits, expected["base"])


@torch.no_grad()
def test_rows_of_one_batch_may_have_adapters_of_their_own():
    config = peft.LoraConfig(**TASK, init_lora_weights=False)
    model = peft.get_peft_model(tiny_model(), config, adapter_name="caption").eval()
    model.add_adapter("vqa", peft.LoraConfig(**TASK, r=3, init_lora_weights=False))
    names = ["vqa", "__base__", "caption"]
    logits = model(**batch(), adapter_names=names).logits
    ids = model.generate(**INPUTS, adapter_names=names, max_new_tokens=5)
    for i, name in enumerate(names):
        alone = tiny_model()
        if name != "__base__":
            model.set_adapter(name)
            alone = model
        torch.testing.assert_close(logits[i], alone(**batch()).logits[i], **TOLERANCE)
        assert torch.equal(ids[i], alone.generate(**INPUTS, max_new_tokens=5)[i])
    # Keys and values of an image serve all its beams, and have no row for each of the names that peft counts.
    with pytest.raises(ValueError, match="Length of `adapter_names`"):
        model.generate(**INPUTS, adapter_names=names, max_new_tokens=5, num_beams=2)


@torch.no_grad()
def test_adapters_load_beside_each_other_and_through_transformers_own_methods(tmp_path: Path):
    inputs = batch()
    expected = {}
    tiny_model().save_pretrained(tmp_path / "base")
    for seed, name in enumerate(("caption", "vqa")):
        torch.manual_seed(seed)
        base = OFAForConditionalGeneration.from_pretrained(tmp_path / "base")
        model = peft.get_peft_model(base, peft.LoraConfig(**TASK, init_lora_weights=False))
        model.save_pretrained(tmp_path / name)
        expected[name] = model(**inputs).logits
    model = peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "caption", adapter_name="caption")
    model.load_adapter(tmp_path / "vqa", adapter_name="vqa")
    plain = tiny_model()
    plain.load_adapter(str(tmp_path / "caption"), adapter_name="caption")
    plain.load_adapter(str(tmp_path / "vqa"), adapter_name="vqa")
    for one in (model, plain):
        for name in ("vqa", "caption"):
            one.set_adapter(name)
            torch.testing.assert_close(one(**inputs).logits, expected[name])
    # The folder of an adapter names its base model, which is loaded along.
    whole = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "vqa")
    torch.testing.assert_close(whole(**inputs).logits, expected["vqa"])


# ------------------------------------------------------------------------------------- what else is trained


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient_of_an_adapter(use_reentrant: bool):
    def lora() -> Any:
        torch.manual_seed(0)
        return peft.get_peft_model(tiny_model(), peft.LoraConfig(**TASK, init_lora_weights=False)).train()

    loss, expected = gradients(lora(), TRAINED)
    assert expected and all("lora_" in name for name in expected)
    model = lora()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    calls: list[int] = []
    model.get_base_model().model.encoder.layers[0].fc1.register_forward_hook(lambda *args: calls.append(1))
    checkpointed, grads = gradients(model, TRAINED)
    assert len(calls) == 2  # forward, and once more in backward
    torch.testing.assert_close(checkpointed, loss)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], msg=lambda m, name=name: f"{name}: {m}")


def test_a_classification_head_is_trained_and_saved_with_the_adapter(tmp_path: Path):
    config = peft.LoraConfig(task_type="SEQ_CLS", modules_to_save=["classification_head"])
    model = peft.get_peft_model(tiny_model(OFAForSequenceClassification, num_labels=3), config).train()
    inputs = {"input_ids": SOURCE, "pixel_values": images(3), "labels": torch.tensor([0, 2, 1])}
    _, grads = gradients(model, inputs)
    assert any("classification_head" in name for name in grads)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(**inputs).loss.backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path)
    other = tiny_model(OFAForSequenceClassification, num_labels=3)
    torch.nn.init.zeros_(other.classification_head.out_proj.weight)
    loaded = peft.PeftModel.from_pretrained(other, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_new_words_are_trained_alone_and_with_the_tied_head(tmp_path: Path):
    with torch.enable_grad():
        model = adapted(peft.LoraConfig(**TASK, trainable_token_indices={"embed_tokens": [60, 61]}))
    logits = model(**batch()).logits
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path)
    torch.testing.assert_close(loaded(**batch()).logits, logits)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**batch()).logits, logits, **TOLERANCE)
    changed = (merged.lm_head.weight != tiny_model().lm_head.weight).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [60, 61]
    assert torch.equal(merged.lm_head.weight, merged.get_input_embeddings().weight)


# ------------------------------------------------------------------------------------------------- quantized


def four_bits() -> Any:
    return BitsAndBytesConfig(load_in_4bit=True)


def eight_bits() -> Any:
    return BitsAndBytesConfig(load_in_8bit=True)


def eight_bits_of_torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


@pytest.mark.parametrize(
    ("library", "quantization"),
    [("bitsandbytes", four_bits), ("bitsandbytes", eight_bits), ("torchao", eight_bits_of_torchao)],
)
def test_lora_trains_and_answers_over_a_quantized_base_model(library: str, quantization: Callable[[], Any]):
    pytest.importorskip(library, reason=f"{library} is not installed")
    source, target = {"pretrained_model_name_or_path": modeling_ofa.DEFAULT_CHECKPOINT}, batch(input_ids=SOURCE)
    whole = OFAForConditionalGeneration.from_pretrained(**source, dtype=torch.float32)
    base = OFAForConditionalGeneration.from_pretrained(
        **source, dtype=torch.float32, quantization_config=quantization()
    )
    with torch.no_grad():
        gap = whole(**target).logits.softmax(-1) - base(**target).logits.softmax(-1)
        assert 0 < gap.abs().sum(-1).mean() < 0.1  # of 2, as far apart as probabilities can be
    model = peft.get_peft_model(peft.prepare_model_for_kbit_training(base), peft.LoraConfig(**TASK))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model.train()(**TRAINED).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert model.eval().generate(**INPUTS, num_beams=3, max_new_tokens=4).shape[0] == 3
    assert model.score_candidates(INPUTS, [[5, 6], [7]]).isfinite().all()
    assert isinstance(model.merge_and_unload(), OFAForConditionalGeneration)
