"""The model among others: saving and loading, copies and offload, PEFT, Trainer."""

import copy
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny import (
    HAS_IMAGE,
    SOURCE,
    TARGET,
    TOLERANCE,
    TRAINED,
    VOCAB_SIZE,
    batch,
    gradients,
    images,
    labels_of,
    randomize,
    tiny_config,
    tiny_model,
)
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from modeling_ofa import (
    OFAConfig,
    OFAForConditionalGeneration,
    OFAForSequenceClassification,
    OFAModel,
)


@pytest.fixture(scope="module")
def model() -> OFAForConditionalGeneration:
    return tiny_model()


# -------------------------------------------------------------------------------- saving, loading, copying


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_tied_weights_are_saved_once(model: OFAForConditionalGeneration, tmp_path: Path):
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        saved = set(file.keys())
    tied = {"lm_head.weight", "model.decoder.embed_tokens.weight"}
    assert saved == set(model.state_dict()) - tied
    assert not any("buckets" in name for name in saved)
    loaded = OFAForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.encoder.embed_tokens.weight
    assert loaded.lm_head.weight is loaded.model.decoder.embed_tokens.weight


def test_saving_and_loading_twice_gives_back_every_bit(model: OFAForConditionalGeneration, tmp_path: Path):
    model.save_pretrained(tmp_path / "a")
    once = OFAForConditionalGeneration.from_pretrained(tmp_path / "a")
    once.save_pretrained(tmp_path / "b")
    twice = OFAForConditionalGeneration.from_pretrained(tmp_path / "b")
    assert_same_weights(model, once)
    assert_same_weights(model, twice)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert (tmp_path / "a/config.json").read_text() == (tmp_path / "b/config.json").read_text()


@torch.no_grad()
def test_loading_computes_the_tables_that_no_file_holds(model: OFAForConditionalGeneration, tmp_path: Path):
    model.save_pretrained(tmp_path)
    loaded = OFAForConditionalGeneration.from_pretrained(tmp_path)  # by way of the meta device, which holds nothing
    for stack in (loaded.model.encoder, loaded.model.decoder):
        assert torch.equal(stack.token_buckets, stack.make_token_buckets())
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)


@torch.no_grad()
def test_shards_load_as_one_file_does(model: OFAForConditionalGeneration, tmp_path: Path):
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    assert_same_weights(OFAForConditionalGeneration.from_pretrained(tmp_path), model)


@torch.no_grad()
def test_the_auto_classes_load_what_was_saved(model: OFAForConditionalGeneration, tmp_path: Path):
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), OFAConfig)
    for auto in (AutoModelForSeq2SeqLM, AutoModelForImageTextToText):
        loaded = auto.from_pretrained(tmp_path)
        assert isinstance(loaded, OFAForConditionalGeneration)
        assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(base, OFAModel) and not info["missing_keys"]
    assert torch.equal(base(**batch()).last_hidden_state, model.model(**batch()).last_hidden_state)
    classifier, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=4, output_loading_info=True
    )
    assert isinstance(classifier, OFAForSequenceClassification) and classifier.num_labels == 4
    assert info["missing_keys"] and all(key.startswith("classification_head.") for key in info["missing_keys"])


def test_a_fresh_model_has_the_initialization_of_the_official_code():
    torch.manual_seed(0)
    model = OFAForConditionalGeneration(tiny_config(d_model=128, scale_resids=True))
    for name, parameter in model.named_parameters():
        if "embed_images" in name:
            continue
        if "norm" in name or "_ln" in name or "w_resid" in name or "c_attn" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(not name.endswith("bias")))), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.numel() > 4000:
            assert parameter.detach().std().item() == pytest.approx(0.02, rel=0.05), name


@torch.no_grad()
def test_copies_and_pickles_give_the_same_model(model: OFAForConditionalGeneration):
    expected = model(**batch()).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(**batch()).logits, expected)
        assert twin.lm_head.weight is twin.model.encoder.embed_tokens.weight
        assert twin.lm_head.weight is not model.lm_head.weight


def test_the_configuration_survives_json_pickle_and_torch_save(tmp_path: Path):
    config = tiny_config(adapter_dim=4, resnet_type="resnet50", scale_resids=True, num_labels=7)
    config.save_pretrained(tmp_path)
    torch.save(config, tmp_path / "config.pt")
    twins = [
        OFAConfig.from_pretrained(tmp_path),
        pickle.loads(pickle.dumps(config)),
        torch.load(tmp_path / "config.pt", weights_only=False),
        copy.deepcopy(config),
    ]
    for twin in twins:
        assert twin.to_dict() == config.to_dict()


@torch.no_grad()
def test_resizing_the_vocabulary_keeps_old_words_and_ties():
    model = tiny_model()
    expected = model(**batch()).logits
    model.resize_token_embeddings(VOCAB_SIZE + 10)
    assert model.config.vocab_size == VOCAB_SIZE + 10
    weight = model.model.encoder.embed_tokens.weight
    assert weight.shape == (VOCAB_SIZE + 10, 32)
    assert model.lm_head.weight is weight and model.model.decoder.embed_tokens.weight is weight
    logits = model(**batch(labels=labels_of(TARGET))).logits
    assert logits.shape[-1] == VOCAB_SIZE + 10
    torch.testing.assert_close(logits[..., :VOCAB_SIZE], expected, **TOLERANCE)
    ids = model.generate(input_ids=SOURCE, max_new_tokens=3, suppress_tokens=list(range(VOCAB_SIZE)))
    assert ids[:, 1:].min() >= VOCAB_SIZE
    model.resize_token_embeddings(VOCAB_SIZE - 20)
    assert model(input_ids=SOURCE % 100, decoder_input_ids=TARGET % 100).logits.shape[-1] == VOCAB_SIZE - 20


@torch.no_grad()
@pytest.mark.parametrize(
    ("device_map", "memory"),
    [({"": "cpu"}, None), ("auto", None), ({"": "disk"}, None), ("auto", "300KB"), ("sequential", "200KB")],
    ids=["cpu", "auto", "all on disk", "part on disk", "part on disk in sequence"],
)
def test_device_maps_place_the_model_and_change_nothing(
    model: OFAForConditionalGeneration, tmp_path: Path, device_map: str | dict[str, str], memory: str | None
):
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    loaded = OFAForConditionalGeneration.from_pretrained(
        tmp_path / "model",
        device_map=device_map,
        max_memory=None if memory is None else {"cpu": memory},
        offload_folder=tmp_path / "offload",
    )
    on_disk = any(parameter.is_meta for parameter in loaded.parameters())
    assert on_disk == (memory is not None or device_map == {"": "disk"})
    torch.testing.assert_close(loaded(**batch()).logits, model(**batch()).logits, **TOLERANCE)
    inputs = {"input_ids": SOURCE, "pixel_values": images(3), "max_new_tokens": 5, "num_beams": 2}
    assert torch.equal(loaded.generate(**inputs), model.generate(**inputs))


@torch.no_grad()
def test_prefixes_work_from_disk_too(tmp_path: Path):
    model = tiny_model(encoder_prompt_length=2, decoder_prompt_length=2, decoder_prompt_projection_dim=4)
    model.save_pretrained(tmp_path / "model")
    loaded = OFAForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "offload"
    )
    torch.testing.assert_close(loaded(**batch()).logits, model(**batch()).logits, **TOLERANCE)


# ------------------------------------------------------------------------------------------------------ ecosystem


def test_lora_trains_merges_saves_and_loads(tmp_path: Path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules="all-linear", task_type="SEQ_2_SEQ_LM", r=2, init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_model(), config)
    inputs = dict(TRAINED)
    loss, grads = gradients(model, inputs)
    assert loss.isfinite() and grads and all("lora_" in name for name in grads)
    assert any("cross_attn" in name for name in grads) and not any("lm_head" in name for name in grads)
    with torch.no_grad():
        expected = model(**batch()).logits
        assert (expected - tiny_model()(**batch()).logits).abs().max() > 1e-3
        ids = model.generate(input_ids=SOURCE, pixel_values=images(3), max_new_tokens=4)
        model.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path)
        torch.testing.assert_close(loaded(**batch()).logits, expected)
        merged = model.merge_and_unload()
        assert isinstance(merged, OFAForConditionalGeneration)
        torch.testing.assert_close(merged(**batch()).logits, expected, **TOLERANCE)
        assert torch.equal(merged.generate(input_ids=SOURCE, pixel_values=images(3), max_new_tokens=4), ids)


ROWS = [
    {
        "input_ids": SOURCE[i % 3],
        "pixel_values": images(1, 32, 32, seed=i)[0],
        "patch_masks": HAS_IMAGE[i % 3],
        "labels": labels_of(TARGET)[i % 3],
    }
    for i in range(6)
]


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def training_arguments(path: Path, **kwargs: Any) -> Seq2SeqTrainingArguments:
    return Seq2SeqTrainingArguments(
        output_dir=str(path),
        use_cpu=True,
        report_to=[],
        max_steps=3,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=3,
        learning_rate=1e-2,
        logging_steps=1,
        **kwargs,
    )


def test_seq2seq_trainer_trains_evaluates_and_saves(tmp_path: Path):
    model = tiny_model()
    before = model.lm_head.weight.detach().clone()
    seen: dict[str, Any] = {}

    def compute_metrics(prediction: Any) -> dict[str, float]:
        seen["ids"], seen["labels"] = prediction.predictions, prediction.label_ids
        return {"words": 1.0}

    arguments = training_arguments(
        tmp_path, predict_with_generate=True, generation_max_length=6, generation_num_beams=2, save_strategy="no"
    )
    trainer = Seq2SeqTrainer(
        model, arguments, train_dataset=ROWS, eval_dataset=ROWS, data_collator=collate, compute_metrics=compute_metrics
    )
    assert trainer.train().global_step == 3
    assert not torch.equal(model.lm_head.weight, before)
    metrics = trainer.evaluate()
    assert metrics["eval_words"] == 1.0 and metrics["eval_loss"] > 0
    assert seen["ids"].shape[0] == 6 and (seen["labels"][:3, : TARGET.shape[1]] == labels_of(TARGET).numpy()).all()
    model.eval()
    expected = model.generate(
        **{k: v for k, v in collate(ROWS[:3]).items() if k != "labels"}, max_length=6, num_beams=2
    )
    width = min(expected.shape[1], seen["ids"].shape[1])
    assert torch.equal(torch.from_numpy(seen["ids"][:3, :width]), expected[:, :width])
    trainer.save_model(str(tmp_path / "saved"))
    assert_same_weights(OFAForConditionalGeneration.from_pretrained(tmp_path / "saved"), model)


def test_the_trainers_label_smoothing_sees_logits_aligned_with_the_labels(tmp_path: Path):
    model = tiny_model()

    def collate_for_smoothing(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        inputs = collate(rows)  # as `DataCollatorForSeq2Seq` does when it knows the model
        return {**inputs, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(inputs["labels"])}

    trainer = Seq2SeqTrainer(
        model,
        training_arguments(tmp_path, label_smoothing_factor=0.1, save_strategy="no"),
        train_dataset=ROWS,
        data_collator=collate_for_smoothing,
    )
    inputs = collate_for_smoothing(ROWS[:3])
    with torch.no_grad():
        loss = trainer.compute_loss(model, dict(inputs))
        labels = inputs.pop("labels")
        scores = model(**inputs).logits.log_softmax(-1)[labels != -100]
        nll = -scores.gather(-1, labels[labels != -100].unsqueeze(-1)).mean()
    torch.testing.assert_close(loss, 0.9 * nll - 0.1 * scores.mean())


@pytest.mark.parametrize("steps", [1, 3])
def test_gradient_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path: Path, steps: int):
    # Rows have labels of different lengths: a mean of means would differ.
    torch.manual_seed(0)
    model = tiny_model(freeze_resnet=True)
    arguments = training_arguments(tmp_path, gradient_accumulation_steps=steps, save_strategy="no", optim="sgd")
    arguments.per_device_train_batch_size = 6 // steps
    arguments.max_steps, arguments.max_grad_norm, arguments.lr_scheduler_type = 1, 0.0, "constant"
    trainer = Seq2SeqTrainer(model, arguments, train_dataset=ROWS, data_collator=collate)
    trainer.train()
    twin = tiny_model(freeze_resnet=True).train()
    twin(**collate(ROWS)).loss.backward()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad
            torch.testing.assert_close(dict(model.named_parameters())[name], parameter, msg=name)


def test_building_and_using_the_model_raises_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = randomize(OFAForConditionalGeneration(tiny_config()))
        loss = model(**TRAINED).loss
        loss.backward()
        model.eval().generate(input_ids=SOURCE, pixel_values=images(3), num_beams=2, max_new_tokens=3)


REMOTE = """
import json, sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = sys.argv[1]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype="float32").eval()
picture = Image.new("RGB", (96, 64), "red")
tasks = ["caption", "visual_grounding"]
inputs = processor(task=tasks, images=[picture] * 2, text=[None, "the dog"], return_tensors="pt")
ids = model.generate(**inputs, **processor.generation_kwargs(tasks, constrained=True))
inputs = processor(task="visual_entailment", images=picture, text="a dog", return_tensors="pt")
scores = model.score_candidates(inputs, processor.answer_trie(["yes", "no"], task="visual_entailment"))
print(json.dumps([ids.tolist(), scores.tolist(), "modeling_ofa" in sys.modules]))
"""


def test_the_code_that_travels_with_a_checkpoint_does_without_the_package(tmp_path):
    folder = tmp_path / "checkpoint"
    # Classes register for the Auto classes of every later save, so that is done in a process of its own.
    publish = (
        "import sys, modeling_ofa as ofa\n"
        "ofa.OFAConfig.register_for_auto_class()\n"
        "ofa.OFAForConditionalGeneration.register_for_auto_class('AutoModelForImageTextToText')\n"
        "ofa.OFAImageProcessorPil.register_for_auto_class('AutoImageProcessor')\n"
        "ofa.OFATokenizer.register_for_auto_class('AutoTokenizer')\n"
        "ofa.OFAProcessor.register_for_auto_class('AutoProcessor')\n"
        "for one in (ofa.OFAForConditionalGeneration, ofa.OFAProcessor):\n"
        "    one.from_pretrained(ofa.DEFAULT_CHECKPOINT).save_pretrained(sys.argv[1])\n"
    )
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with_package = {**environment, "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", publish, str(folder)], env=with_package, check=True, capture_output=True)
    local = "import modeling_ofa" + REMOTE.replace("trust_remote_code=True, ", "").replace(
        ", trust_remote_code=True", ""
    )
    found = []
    for code, env in ((REMOTE, environment), (local, with_package)):
        command = [sys.executable, "-c", code, str(folder)]
        run = subprocess.run(command, env=env, cwd=tmp_path, check=True, capture_output=True, text=True)
        found.append(json.loads(run.stdout))
    (ids, scores, has_package), (local_ids, local_scores, _) = found
    assert not has_package and "trust_remote_code" not in local
    assert ids == local_ids and scores == local_scores
