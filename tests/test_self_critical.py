"""Self-critical training: the recorded loss and rewards, what is answered and read how often, and that it learns."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TOLERANCE, tiny_model
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import Seq2SeqTrainingArguments

from modeling_ofa import (
    DEFAULT_CHECKPOINT,
    DataCollatorForOFA,
    OFAForConditionalGeneration,
    OFAImageProcessorPil,
    OFAProcessor,
    OFATokenizer,
)
from modeling_ofa.evaluation import CiderD
from modeling_ofa.tasks_ofa import TASKS
from modeling_ofa.training.self_critical import (
    CiderReward,
    SelfCriticalTrainer,
    SelfCriticalTrainingArguments,
    advantages_over_others,
    self_critical_loss,
)


GOLDEN = Path(__file__).parent / "golden"
SCENES = Path(__file__).parents[1] / "modeling_ofa" / "assets" / "scenes"
CODES, BINS = range(300, 316), range(316, 366)

# A random model says anything, so a test's captions are short.
CAPTION = replace(TASKS["caption"], generation={**TASKS["caption"].generation, "max_new_tokens": 7})


@pytest.fixture(scope="module")
def processor() -> OFAProcessor:
    """300 words, 16 codes and 50 bins, for pictures of 64 pixels."""
    learner = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([task.instruction for task in TASKS.values()], learner)
    words = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in words["merges"]]
    tokenizer = OFATokenizer(words["vocab"], merges, num_codes=len(CODES), num_bins=len(BINS), model_max_length=64)
    return OFAProcessor(OFAImageProcessorPil(size={"height": 64, "width": 64}), tokenizer, max_image_size=64)


def rows(number: int = 3, **columns) -> list[dict]:
    pictures = [Image.open(SCENES / f"scene_{1 + i % 3}.png").convert("RGB") for i in range(number)]
    return [{"image": picture, "target": f"it is {i}", **columns} for i, picture in enumerate(pictures)]


def words_of(answers: list[dict], rows: list[dict]) -> list[float]:
    """A reward that differs from answer to answer."""
    return [float(sum(map(ord, str(answer)))) % 17 for answer in answers]


@pytest.fixture
def trainer(processor, tmp_path):
    """Makes a trainer of a random model, or of one that is given."""

    def make(data=None, reward=words_of, model=None, task=CAPTION, **kwargs) -> SelfCriticalTrainer:
        model = tiny_model(vocab_size=len(processor.tokenizer)) if model is None else model
        named = ("processing_class", "data_collator", "eval_dataset")
        others = {name: kwargs.pop(name) for name in named if name in kwargs}
        defaults = {"max_steps": 1, "per_device_train_batch_size": 3, "learning_rate": 0.01, "optim": "sgd"}
        quiet = {"report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
        args = SelfCriticalTrainingArguments(str(tmp_path), **{**defaults, **quiet, **kwargs})
        return SelfCriticalTrainer(
            model,
            args,
            reward=reward,
            train_dataset=rows() if data is None else data,
            **{"processing_class": processor, "data_collator": DataCollatorForOFA(processor, task=task), **others},
        )

    return make


def first_batch(trainer: SelfCriticalTrainer) -> dict:
    return next(iter(trainer.get_train_dataloader()))


def logged(trainer: SelfCriticalTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# --- the official numbers -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scst() -> dict:
    return json.loads((GOLDEN / "losses_scst.json").read_text(encoding="utf-8"))


def test_rewards_of_beams_and_their_advantages_are_the_official_ones(scst):
    reward = CiderReward(CiderD(scst["df"], scst["df_ref_len_exp"]))
    data = [{"references": texts} for texts in scst["refs"] for _ in range(scst["seq_per_img"])]
    scores = reward([{"text": text.strip()} for text in scst["gen_res"]], data)
    assert scores == pytest.approx(scst["scores"], abs=1e-9)
    scores = torch.tensor(scores, dtype=torch.float64).view(-1, scst["seq_per_img"])
    assert advantages_over_others(scores).flatten().tolist() == pytest.approx(scst["reward"], abs=1e-9)


def test_the_loss_and_its_gradient_are_the_official_ones(scst):
    recorded = np.load(GOLDEN / "losses_scst.npz")
    logits = torch.tensor(recorded["logits"], requires_grad=True)
    target = torch.tensor(recorded["target"])
    labels = target.masked_fill(target == 1, -100)
    loss = self_critical_loss(logits, labels, torch.tensor(scst["scst_loss"]["reward"]))
    loss.backward()
    assert int(labels.ne(-100).sum()) == scst["scst_loss"]["ntokens"]
    assert loss.item() == pytest.approx(scst["scst_loss"]["loss"], rel=1e-6)
    torch.testing.assert_close(logits.grad, torch.tensor(recorded["grad"]), atol=1e-6, rtol=1e-6)


# --- rewards ---------------------------------------------------------------------------------------------------------


def test_one_answer_alone_has_its_reward_as_advantage():
    rewards = torch.tensor([[2.0], [-1.0], [0.0]])
    assert advantages_over_others(rewards).equal(rewards)


def test_what_is_no_answer_counts_for_nothing():
    rewards = torch.tensor([[1.0, 4.0, 100.0], [3.0, 7.0, 7.0], [5.0, 5.0, 5.0]])
    written = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    assert advantages_over_others(rewards, written).tolist() == [[-3.0, 3.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_document_frequencies_are_counted_saved_and_loaded(tmp_path):
    references = [["A black dog.", "a dog, asleep"], ["two red boats"]]
    reward = CiderReward.from_references(references)
    assert reward.cider.document_frequency["<eos>"] == 2 and reward.cider.document_frequency["dog asleep <eos>"] == 1
    reward.cider.save(tmp_path / "frequencies.json")
    loaded = CiderReward(CiderD.load(tmp_path / "frequencies.json"))
    answers, data = [{"text": "a black dog!"}, {"text": "two boats"}], [{"references": one} for one in references]
    assert loaded(answers, data) == reward(answers, data)
    assert reward(answers, data)[0] > reward(answers, data)[1] > 0


def test_a_target_is_the_reference_of_a_row_that_has_no_others():
    reward = CiderReward.from_references([["a dog"], ["two red boats"], ["a cat"]])
    answer = [{"text": "two boats"}]
    both = [[{"target": "two red boats"}], [{"references": ["two red boats"], "target": "a cat"}]]
    assert reward(answer, both[0]) == reward(answer, both[1]) != [0.0]


@pytest.mark.parametrize(
    ("answers", "data", "message"),
    [
        (
            [{"text": "a dog"}],
            [{"image": None, "references": []}],
            "none .its columns: image, references.*`target`",
        ),
        ([{"codes": [1]}], [{"target": "a dog"}], "compares texts, but an answer has codes"),
        ([], [], "no predictions"),
    ],
    ids=["no references", "no text", "nothing"],
)
def test_cider_refuses_what_it_cannot_compare(answers, data, message):
    with pytest.raises(ValueError, match=message):
        CiderReward.from_references([["a dog"]])(answers, data)


def test_a_reward_of_ones_own_gets_each_answer_with_its_whole_row(trainer):
    seen = []

    def reward(answers, data):
        seen.extend(zip(answers, data, strict=True))
        return torch.arange(len(answers))

    data = rows(3, mood="cheerful")
    training = trainer(data, reward=reward, num_samples=4)
    training.train()
    assert len(seen) == 12 and all(isinstance(answer["text"], str) for answer, _ in seen)
    assert all(row["mood"] == "cheerful" and isinstance(row["image"], Image.Image) for _, row in seen)
    assert [row["target"] for _, row in seen[::4]] == [row["target"] for _, row in seen[3::4]]
    assert {row["target"] for _, row in seen} == {row["target"] for row in data}


def test_a_reward_may_judge_boxes_in_pixels_of_the_picture(trainer):
    def reward(answers, data):
        assert all({"boxes", "scores"} <= answer.keys() for answer in answers)
        return [float(len(answer["boxes"])) for answer in answers]

    data = [{**row, "text": "the dog", "target": None, "boxes": [[8, 8, 40, 40]]} for row in rows()]
    answered = trainer(data, reward=reward, task="visual_grounding")
    batch = answered.answer(first_batch(answered))
    assert batch["labels"].shape == (15, 5)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_answers_are_the_beams_of_the_search_that_decodes_the_task(trainer, processor):
    training = trainer()
    batch = first_batch(training)
    answered = training.answer(batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "patch_masks")}
    expected = training.model.generate(**inputs, **processor.generation_kwargs(CAPTION), num_return_sequences=5)
    assert answered["decoder_input_ids"].equal(expected[:, :-1])
    for labels, sequence in zip(answered["labels"].tolist(), expected.tolist(), strict=True):
        written = sequence[1 : sequence.index(2) + 1]
        assert labels == written + [-100] * (len(labels) - len(written))
    assert answered["labels"].shape[1] <= 7


def test_beams_do_not_depend_on_dropout_and_samples_differ(trainer, processor):
    model = tiny_model(vocab_size=len(processor.tokenizer), dropout=0.5, attention_dropout=0.5).train()
    searching, sampling = trainer(model=model), trainer(model=model, do_sample=True)
    batch = first_batch(searching)
    assert searching.answer(batch)["labels"].equal(searching.answer(batch)["labels"])
    drawn = sampling.answer(batch)["labels"]
    assert len(drawn.unique(dim=0)) > 10 and not drawn.equal(sampling.answer(batch)["labels"])


def test_samples_come_from_all_probabilities_of_the_model(trainer, processor):
    model = tiny_model(vocab_size=len(processor.tokenizer))
    model.generation_config.update(do_sample=True, top_k=3, top_p=0.9, temperature=0.1)
    training = trainer(rows(1), model=model, do_sample=True, num_samples=1000, per_device_train_batch_size=1)
    batch = training.answer(first_batch(training))
    drawn = batch["labels"][:, 0].bincount(minlength=model.config.vocab_size) / 1000
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "patch_masks")}
    with torch.no_grad():
        expected = model(**inputs, decoder_input_ids=torch.tensor([[0]])).logits[0, 0].softmax(-1)
    assert (drawn - expected).abs().max() < 0.06 and (drawn > 0).sum() > 10


def test_a_range_holds_for_answers_and_for_the_loss(trainer):
    training = trainer(constraint_range=[20, 40], do_sample=True)
    batch = training.answer(first_batch(training))
    labels = batch["labels"]
    allowed = labels.eq(-100) | labels.lt(4) | (labels.ge(20) & labels.lt(40))
    assert allowed.all() and labels.ge(20).any()

    loss = training.compute_loss(training.model, dict(batch), num_items_in_batch=torch.tensor(1))
    inputs = {name: batch[name] for name in batch if name not in ("labels", "advantages", "constraints")}
    logits = training.model(**inputs).logits
    logits[..., 4:20] = logits[..., 40:] = -torch.inf
    chosen = logits.log_softmax(-1).gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
    expected = -(chosen.masked_fill(labels.eq(-100), 0).sum(1) * batch["advantages"]).sum()
    torch.testing.assert_close(loss, expected, **TOLERANCE)


def test_a_closed_list_with_fewer_answers_than_beams_trains_on_what_there_is(trainer):
    data = [{**row, "text": "a dog", "target": "no"} for row in rows()]
    training = trainer(
        data, task="image_text_matching", reward=lambda answers, _: [a["label"] == "no" for a in answers]
    )
    batch = training.answer(first_batch(training))
    written = batch["labels"].ne(-100).any(1).view(3, 5)
    assert written.sum(1).tolist() == [2, 2, 2]
    assert batch["advantages"].view(3, 5)[~written].eq(0).all()
    assert batch["advantages"].view(3, 5)[written].abs().tolist() == [1.0] * 6
    loss = training.compute_loss(training.model, batch)
    assert loss.isfinite()


@pytest.mark.parametrize("do_sample", [False, True])
def test_answers_that_are_cut_short_have_a_finite_loss(trainer, do_sample):
    task = replace(TASKS["object_detection"], generation={**TASKS["object_detection"].generation, "max_new_tokens": 3})
    training = trainer([{**row, "target": None} for row in rows()], task=task, do_sample=do_sample)
    batch = training.answer(first_batch(training))
    assert batch["labels"][:, :2].ge(BINS.start).all() and batch["labels"][:, 2].eq(2).all()
    assert training.compute_loss(training.model, batch).isfinite()


@pytest.mark.parametrize("labelled", [True, False])
def test_decoder_prompts_are_read_and_not_trained_on(trainer, processor, labelled):
    texts = ["what is it?", "how many dogs are there in here?", "where?"]
    data = [{**row, "text": text} for row, text in zip(rows(), texts, strict=True)]
    collator = DataCollatorForOFA(processor, "vqa", decoder_prompt="prev_output", with_targets=labelled)
    training = trainer(data, data_collator=collator)
    batch = first_batch(training)
    assert ("labels" in batch) is labelled
    answered = training.answer(batch)
    for i, source in enumerate(batch["input_ids"].tolist()):
        prompt = [token for token in source if token not in (1, 2)]
        for answer in range(5 * i, 5 * i + 5):
            ids = answered["decoder_input_ids"][answer].tolist()
            labels = answered["labels"][answer].tolist()
            assert ids[: len(prompt)] == prompt
            start = len(prompt) - 1
            assert labels[:start] == [-100] * start and labels[start] != -100
            assert labels[start : len(ids) - 1] == ids[start + 1 :] or 2 in labels


def test_rows_of_several_tasks_share_a_batch(trainer):
    own = {"caption": {}, "vqa": {"text": "what is it?"}, "image_text_matching": {"text": "a dog", "target": "no"}}
    data = [{**row, "task": task, **own[task]} for row, task in zip(rows(), own, strict=True)]
    training = trainer(data, task=None, num_samples=2)
    training.train()
    batch = first_batch(training)
    answered = training.answer(batch)
    tasks = [row["task"] for row in batch["rows"]]
    labels = answered["labels"].view(3, 2, -1)[tasks.index("image_text_matching")]
    texts = training.processing_class.tokenizer.batch_decode(labels.clamp(min=1), skip_special_tokens=True)
    assert sorted(texts) == [" no", " yes"]
    assert training.compute_loss(training.model, answered).isfinite()


# --- the loss --------------------------------------------------------------------------------------------------------


def loss_and_gradients(model, compute) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.train()
    model.zero_grad()
    loss = compute()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_pictures_read_once_have_the_loss_and_gradients_of_a_copy_for_each_answer(trainer):
    training = trainer(num_samples=4)
    model = training.model
    batch = training.answer(first_batch(training))
    labels = batch["labels"]
    buffers = copy.deepcopy(dict(model.named_buffers()))

    def with_copies():
        encoder = ("input_ids", "attention_mask", "pixel_values", "patch_masks")
        copies = {name: batch[name].repeat_interleave(4, dim=0) for name in encoder}
        log_probs = model(**copies, decoder_input_ids=batch["decoder_input_ids"]).logits.log_softmax(-1)
        chosen = log_probs.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2).masked_fill(labels.eq(-100), 0)
        return -(chosen.sum(1) * batch["advantages"]).sum() / labels.ne(-100).sum()

    loss, gradients = loss_and_gradients(model, lambda: training.compute_loss(model, dict(batch)))
    for name, buffer in model.named_buffers():  # statistics of batches, which the copies do not change
        buffer.copy_(buffers[name])
    expected, expected_gradients = loss_and_gradients(model, with_copies)
    torch.testing.assert_close(loss, expected, **TOLERANCE)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-4, rtol=1e-3, msg=name)


def test_pictures_that_are_drawn_are_codes_for_the_decoder(trainer):
    generation = {"do_sample": True, "top_k": 256, "min_new_tokens": 4, "max_new_tokens": 5}
    drawing = replace(TASKS["image_infilling"], generation=generation, image_size=64)
    data = [{**row, "task": task, "target": None} for row, task in zip(rows(2), [None, "caption"], strict=True)]
    with pytest.raises(ValueError, match="Tasks that sample and tasks that search"):
        trainer(data, task=drawing, num_samples=2).train()

    training = trainer(data[:1], task=drawing, num_samples=2)
    batch = training.answer(first_batch(training))
    codes = batch["labels"][:, :4]
    assert batch["code_masks"].tolist() == [True, True] and codes.ge(CODES.start).all() and codes.lt(CODES.stop).all()
    assert training.compute_loss(training.model, batch).isfinite()


@pytest.mark.parametrize("sentence_avg", [False, True])
def test_accumulated_batches_make_the_update_of_one_batch(trainer, processor, sentence_avg):
    weights = []
    for size, steps in ((4, 1), (2, 2), (1, 4)):
        # Statistics of batches would depend on their size.
        model = tiny_model(vocab_size=len(processor.tokenizer), freeze_resnet=True)
        training = trainer(
            rows(4),
            model=model,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            sentence_avg=sentence_avg,
            max_grad_norm=0,
            logging_steps=1,
        )
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        training.train()
        weights.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
        weights[-1]["loss"] = torch.tensor(logged(training, "loss")[0])
    assert weights[0]["loss"] != 0 and any(change.abs().max() > 1e-4 for change in weights[0].values())
    for others in weights[1:]:
        for name, change in others.items():
            torch.testing.assert_close(change, weights[0][name], atol=1e-5, rtol=1e-3, msg=name)


def test_the_loss_is_divided_by_tokens_or_by_answers(trainer):
    losses, batches = [], []
    for sentence_avg in (False, True):
        training = trainer(sentence_avg=sentence_avg, logging_steps=1, seed=3)
        batches.append(training.answer(first_batch(training)))
        training.train()
        losses.append(logged(training, "loss")[0])
    tokens = int(batches[0]["labels"].ne(-100).sum())
    assert losses[0] * tokens == pytest.approx(losses[1] * 15, rel=1e-4) and losses[0] != 0


@pytest.mark.parametrize("do_sample", [False, True])
def test_one_answer_a_row_is_safe(trainer, do_sample):
    training = trainer(num_samples=1, do_sample=do_sample, max_steps=2, logging_steps=1)
    training.train()
    assert all(np.isfinite([*logged(training, "loss"), *logged(training, "grad_norm")]))
    assert all(p.isfinite().all() for p in training.model.parameters())


# --- as a trainer ----------------------------------------------------------------------------------------------------


def test_logs_have_the_mean_reward_and_where_the_time_went(trainer):
    rewards = []

    def reward(answers, data):
        rewards.append(words_of(answers, data))
        return rewards[-1]

    training = trainer(rows(6), reward=reward, max_steps=4, gradient_accumulation_steps=2, logging_steps=2)
    training.train()
    assert len(rewards) == 8
    assert logged(training, "reward") == pytest.approx([np.mean(rewards[:4]), np.mean(rewards[4:])], rel=1e-5)
    for name in ("sample_time", "reward_time", "backward_time"):
        assert len(logged(training, name)) == 2 and min(logged(training, name)) > 0
    seconds = sum(2 * sum(logged(training, name)) for name in ("sample_time", "reward_time", "backward_time"))
    assert seconds < logged(training, "train_runtime")[0]


def test_half_precision_trains(trainer):
    training = trainer(bf16=True, logging_steps=1)
    before = copy.deepcopy(training.model.state_dict())
    training.train()
    assert np.isfinite(logged(training, "loss")[0]) and logged(training, "grad_norm")[0] > 0
    embeddings = "model.encoder.embed_tokens.weight"
    after = training.model.state_dict()[embeddings]
    assert after.dtype == torch.float32 and not after.equal(before[embeddings])


def test_evaluation_decodes_as_the_task_is(trainer, processor):
    training = trainer(
        eval_dataset=rows(), predict_with_generate=True, per_device_eval_batch_size=3, ema_decay=0.5, max_steps=2
    )
    metrics = training.evaluate()
    batch = DataCollatorForOFA(processor, task=CAPTION)(rows())
    with torch.no_grad():
        assert metrics["eval_loss"] == pytest.approx(training.model(**batch).loss.item(), rel=1e-5)
    predictions = training.predict(rows()).predictions
    expected = training.model.generate(**batch, **processor.generation_kwargs(CAPTION))
    assert predictions[:, 1 : expected.shape[1]].tolist() == expected[:, 1:].tolist()
    training.train()  # evaluation leaves nothing behind
    assert "eval_loss" in training.evaluate()


def test_a_word_that_is_rewarded_is_said_more_often(trainer):
    processor = OFAProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    model = OFAForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT, freeze_resnet=True).eval()
    data = rows(2, task="caption")
    inputs = processor(task="caption", images=[row["image"] for row in data], return_tensors="pt")
    ids = model.generate(**inputs, num_beams=5, num_return_sequences=5, max_new_tokens=16)
    said = [set(answer["text"].split()) for answer in processor.post_process(ids, task="caption")]
    rare = (said[1] - said[0]) | (said[6] - said[5])  # what the second answer says, and the first does not
    training = trainer(
        data,
        lambda answers, _: [not rare.isdisjoint(answer["text"].split()) for answer in answers],
        model,
        processing_class=processor,
        data_collator=None,
        max_steps=14,
        learning_rate=2e-4,
        optim="adamw_torch",
        lr_scheduler_type="constant",
        logging_steps=1,
    )
    training.train()
    rewards = logged(training, "reward")
    assert np.mean(rewards[:2]) < 0.7 and np.mean(rewards[-3:]) > 0.9


TWO_PROCESSES = """
import sys

import torch

from modeling_ofa import DEFAULT_CHECKPOINT, OFAForConditionalGeneration, OFAProcessor
from modeling_ofa.training.self_critical import SelfCriticalTrainer, SelfCriticalTrainingArguments
from test_self_critical import logged, rows, words_of

folder, size = sys.argv[1], int(sys.argv[2])
training = SelfCriticalTrainer(
    OFAForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT, freeze_resnet=True),
    SelfCriticalTrainingArguments(
        folder,
        max_steps=3,
        per_device_train_batch_size=size,
        learning_rate=1e-4,
        logging_steps=1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
    ),
    reward=words_of,
    processing_class=OFAProcessor.from_pretrained(DEFAULT_CHECKPOINT),
    train_dataset=rows(4, task="caption"),
)
training.train()
if training.is_world_process_zero():
    torch.save({name: logged(training, name) for name in ("loss", "grad_norm", "reward")}, f"{folder}/{size}.pt")
training.accelerator.end_training()  # gloo aborts where one process goes before the other is done
"""


@pytest.mark.slow
def test_two_processes_train_as_one_with_their_batches(tmp_path):
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    for processes, size in ((1, 4), (2, 2)):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *torchrun, str(tmp_path / "script.py"), str(tmp_path), str(size)]
        subprocess.run(command, env=environment, check=True, timeout=300)
    one, two = torch.load(tmp_path / "4.pt"), torch.load(tmp_path / "2.pt")
    assert one["reward"] == pytest.approx(two["reward"], rel=1e-6)
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)
    assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "at least 1, not 0"),
        ({"constraint_range": [4]}, r"the one behind the last, not .4."),
        ({"constraint_range": [40, 20]}, r"the one behind the last, not .40, 20."),
        ({"remove_unused_columns": True}, "set remove_unused_columns=False"),
        ({"rdrop_alpha": 1.0}, "rdrop_alpha is of training with given answers"),
    ],
)
def test_bad_arguments_are_refused(trainer, arguments, message):
    with pytest.raises(ValueError, match=message):
        trainer(**arguments)


def test_the_trainer_says_what_it_lacks(trainer, processor, tmp_path):
    with pytest.raises(TypeError, match="is the model's OFAProcessor, not OFATokenizer"):
        trainer(processing_class=processor.tokenizer)
    with pytest.raises(TypeError, match="is called with answers and rows of data, which float is not"):
        trainer(reward=1.0)
    with pytest.raises(TypeError, match="are SelfCriticalTrainingArguments here, not Seq2SeqTrainingArguments"):
        args = Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True)
        SelfCriticalTrainer(tiny_model(), args, reward=words_of, processing_class=processor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": lambda answers, rows: [1.0]}, "1 numbers for 15 answers"),
        ({"reward": lambda answers, rows: [float("nan")] * len(answers)}, "is nan, which is not finite"),
        ({"reward": CiderReward.from_references([["a dog"]]), "data": "unlabelled"}, "fill the column `references`"),
        ({"constraint_range": [300, 900]}, "no range of a model with"),
        ({"task": None}, "names no task"),
    ],
    ids=["number", "nan", "no references", "range", "no task"],
)
def test_what_is_wrong_with_a_step_is_said_before_the_first_update(trainer, changes, message):
    if changes.get("data") == "unlabelled":
        changes = {**changes, "data": [{**row, "target": None} for row in rows()]}
    training = trainer(**changes)
    before = copy.deepcopy(training.model.state_dict())
    with pytest.raises(ValueError, match=message):
        training.train()
    assert all(value.equal(before[name]) for name, value in training.model.state_dict().items())


def test_an_empty_batch_is_refused(trainer):
    training = trainer()
    with pytest.raises(ValueError, match="The batch is empty"):
        training.get_train_dataloader().collate_fn([])
