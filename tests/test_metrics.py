"""The metrics, each against an independent implementation or a recording of the official one."""

import io
import json
import math
import random
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

import modeling_ofa.evaluation.captions as captions_module
from modeling_ofa.boxes_ofa import BoxCodec
from modeling_ofa.evaluation import (
    METRICS,
    CiderD,
    answer_accuracy,
    bleu,
    coco_caption,
    detection_map,
    edit_distance,
    gigaword_text,
    glue,
    grounding_accuracy,
    label_accuracy,
    normalize_answer,
    ptb_tokens,
    reward_text,
    rouge,
    rouge_l,
    stanford_tokens,
    token_accuracy,
    vqa_accuracy,
    vqa_soft_score,
)
from modeling_ofa.evaluation.ptb import java_package


GOLDEN = Path(__file__).parent / "golden"
EXACT = {"rel": 1e-6, "abs": 1e-9}

needs_java = pytest.mark.skipif(
    java_package() is None, reason="needs Java and pycocoevalcap: pip install 'modeling-ofa[meteor]'"
)


@pytest.fixture(scope="module")
def coco():
    return json.loads((GOLDEN / "captions_coco.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scst():
    return json.loads((GOLDEN / "losses_scst.json").read_text(encoding="utf-8"))


def sentences(seed: int, number: int) -> tuple[list[str], list[list[str]]]:
    """Random candidates and one to five references each, out of few words so that n-grams meet; some are empty."""
    draw = random.Random(seed)

    def sentence(shortest: int) -> str:
        return " ".join(
            draw.choice("a dog cat on the red 's mat runs two".split()) for _ in range(draw.randint(shortest, 9))
        )

    return (
        [sentence(0) for _ in range(number)],
        [[sentence(1) for _ in range(draw.randint(1, 5))] for _ in range(number)],
    )


# Captions


def test_cider_equals_the_official_reward(scst):
    cider = CiderD(scst["df"], scst["df_ref_len_exp"])
    references = [[reward_text(text) for text in texts] for texts in scst["refs"]]
    assert cider.score([reward_text(text) for text in scst["hyps"]], references) == pytest.approx(
        scst["cider_d"], **EXACT
    )

    repeated = [texts for texts in references for _ in range(scst["seq_per_img"])]
    scores = cider.score([reward_text(text) for text in scst["gen_res"]], repeated)
    assert scores == pytest.approx(scst["scores"], **EXACT)


def test_cider_with_its_own_document_frequencies_equals_the_official_corpus_mode(scst):
    scores = CiderD.from_references(scst["refs"]).score(scst["hyps"], scst["refs"])
    assert scores == pytest.approx(scst["cider_d_corpus_mode_unwrapped"], **EXACT)


def test_document_frequencies_of_the_references_are_the_official_table(scst):
    counted = CiderD.from_references([reward_text(text) for text in texts] for texts in scst["refs"])
    assert counted.document_frequency == scst["df"] and counted.n_documents == len(scst["refs"])


def test_document_frequencies_survive_saving_and_equal_tables_are_equal_files(scst, tmp_path):
    one = CiderD.from_references(scst["refs"])
    CiderD.from_references(reversed(scst["refs"])).save(tmp_path / "reversed.json")
    one.save(tmp_path / "table.json")
    assert (tmp_path / "table.json").read_bytes() == (tmp_path / "reversed.json").read_bytes()
    loaded = CiderD.load(tmp_path / "table.json")
    assert loaded.score(scst["hyps"], scst["refs"]) == one.score(scst["hyps"], scst["refs"])


def test_a_file_that_is_no_table_of_document_frequencies_is_refused(tmp_path):
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match="no table of document frequencies"):
        CiderD.load(tmp_path / "other.json")


def test_caption_scores_equal_the_recorded_ones_of_coco(coco):
    scores = coco_caption(coco["predictions"], coco["references"], punctuation=True, meteor=False)
    assert scores["cider"] == pytest.approx(coco["cider"], **EXACT)
    assert [scores[f"bleu_{order}"] for order in range(1, 5)] == pytest.approx(coco["bleu"], **EXACT)
    assert scores["rouge_l"] == pytest.approx(coco["rouge_l"], **EXACT)

    candidates, references = coco["tokenized_predictions"], coco["tokenized_references"]
    each = CiderD.from_references(references).score(candidates, references)
    assert each == pytest.approx(coco["each_cider"], **EXACT)
    assert rouge_l(candidates, references) == pytest.approx(coco["each_rouge_l"], **EXACT)


@pytest.mark.parametrize("seed", range(8))
def test_caption_scores_equal_pycocoevalcap_on_random_captions(seed):
    reason = "the recorded captions stand in for pycocoevalcap (a wheel of 104 MB): pip install 'modeling-ofa[meteor]'"
    Cider = pytest.importorskip("pycocoevalcap.cider.cider", reason=reason).Cider
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge

    candidates, references = sentences(seed, number=[1, 2, 3, 10, 30, 30, 30, 30][seed])
    truths = dict(enumerate(references))
    found = {index: [candidate] for index, candidate in enumerate(candidates)}
    scores = coco_caption(candidates, references, tokenizer="none", punctuation=True, meteor=False)
    cider, each = Cider().compute_score(truths, found)
    assert scores["cider"] == pytest.approx(cider, **EXACT)
    assert CiderD.from_references(references).score(candidates, references) == pytest.approx(list(each), **EXACT)
    expected = Bleu().compute_score(truths, found, verbose=0)[0]
    assert [scores[f"bleu_{order}"] for order in range(1, 5)] == pytest.approx(expected, rel=1e-6, abs=0)
    assert scores["rouge_l"] == pytest.approx(Rouge().compute_score(truths, found)[0], **EXACT)


def test_captions_without_a_common_ngram_score_nothing():
    scores = coco_caption(["zebras grazing", ""], [["two red boats"], ["a cat"]], meteor=False)
    assert scores["cider"] == scores["rouge_l"] == 0.0
    assert scores["bleu_4"] == pytest.approx(0.0, abs=1e-9)


def test_caption_scores_do_not_depend_on_the_order(coco):
    order = list(range(len(coco["predictions"])))
    random.Random(0).shuffle(order)
    shuffled = [[coco[name][index] for index in order] for name in ("predictions", "references")]
    scores = coco_caption(coco["predictions"], coco["references"], meteor=False)
    assert coco_caption(*shuffled, meteor=False) == scores


def test_predictions_lose_their_punctuation_as_ofa_evaluates():
    with_and_without = ["a man's well-known hat.", "a mans wellknown hat"]
    references = [["A man's hat."], ["A hat."]]
    stripped, plain = [coco_caption([one, "a hat"], references, meteor=False) for one in with_and_without]
    assert stripped == plain
    assert coco_caption([with_and_without[0], "a hat"], references, meteor=False, punctuation=True) != plain


def test_treebank_tokens_equal_the_recorded_ones_of_stanford(coco):
    texts = coco["texts"] + [text for those in coco["references"] for text in those]
    expected = coco["tokenized_texts"] + [text for those in coco["tokenized_references"] for text in those]
    assert [" ".join(ptb_tokens(text)) for text in texts] == expected


@needs_java
def test_the_program_of_stanford_gives_what_pycocoevalcap_gives(coco):
    texts = ["", *coco["texts"], "two\nlines", ""]
    tokens = [" ".join(words) for words in stanford_tokens(texts)]
    assert tokens == ["", *coco["tokenized_texts"], "two lines", ""]


@needs_java
def test_meteor_is_given_where_there_is_java(coco):
    scores = coco_caption(coco["predictions"], coco["references"], tokenizer="stanford", punctuation=True)
    assert scores["meteor"] == pytest.approx(coco["meteor"], **EXACT)
    assert scores["cider"] == pytest.approx(coco["cider"], **EXACT)


def test_without_java_meteor_is_left_out_and_refused_if_asked_for(monkeypatch):
    monkeypatch.setattr(captions_module, "java_package", lambda: None)
    assert "meteor" not in coco_caption(["a dog"], [["a dog"]])
    with pytest.raises(ImportError, match=r"modeling-ofa\[meteor\]"):
        coco_caption(["a dog"], [["a dog"]], meteor=True)


def test_stanfords_tokenizer_is_refused_without_java(monkeypatch):
    monkeypatch.setattr("modeling_ofa.evaluation.ptb.java_package", lambda: None)
    with pytest.raises(ImportError, match=r"modeling-ofa\[meteor\]"):
        coco_caption(["a dog"], [["a dog"]], tokenizer="stanford")


def test_an_unknown_tokenizer_is_refused():
    with pytest.raises(ValueError, match="Unknown tokenizer 'moses'"):
        coco_caption(["a dog"], [["a dog"]], tokenizer="moses", meteor=False)


# Questions


def server_accuracy(prediction: str, answers: list[str]) -> float:
    """The published definition, literally: the mean over every choice of all people but one."""
    left_out = range(len(answers))
    return sum(
        min(1.0, sum(answer == prediction for person, answer in enumerate(answers) if person != one) / 3)
        for one in left_out
    ) / len(answers)


@pytest.mark.parametrize("people", [1, 3, 10])
def test_vqa_accuracy_is_the_mean_over_all_people_but_one(people):
    draw = random.Random(people)
    words = ["red", "blue", "green"]
    for _ in range(200):
        answers = [draw.choice(words) for _ in range(people)]
        prediction = draw.choice([*words, "pink"])
        assert answer_accuracy(prediction, answers) == pytest.approx(server_accuracy(prediction, answers), abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("The Dog", "dog"),
        ("an apple, a pear", "apple pear"),
        ("two", "2"),
        ("none", "0"),
        ("isnt", "isn't"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("let's go", "let's go"),
        ("Im", "im"),  # the table has it in capitals only, which lower case never meets
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("tic-tac-toe", "tic tac toe"),
        ("yes.", "yes"),
        ("3.5", "3.5"),
        ("p.m.", "pm"),
        ("1,000", "1000"),
        ("1,000 - 2,000", "1000 2000"),
        ("red,blue", "red blue"),
        ("what?!", "what"),
        ("it's", "it's"),
        ("", ""),
    ],
)
def test_answers_are_normalized_as_on_the_server(answer, normalized):
    assert normalize_answer(answer) == normalized


def test_answers_that_all_agree_are_not_normalized():
    assert answer_accuracy("two", ["2"] * 10) == 0.0
    assert answer_accuracy("two", ["2"] * 9 + ["3"]) == 1.0
    assert answer_accuracy(" a dog\n", ["a dog"] * 10) == 1.0


def test_vqa_accuracy_breaks_down_by_type():
    scores = vqa_accuracy(
        ["yes", "2", "red"],
        [["yes"] * 8 + ["no"] * 2, ["two"] * 2 + ["3"] * 8, ["blue"] * 9 + ["red"]],
        answer_types=["yes/no", "number", "other"],
        question_types=["is the", "how many", "how many"],
    )
    two_agree, one_agrees = (2 * 1 + 8 * 2) / 30, 9 * 1 / 30
    assert scores == pytest.approx(
        {
            "accuracy": (1 + two_agree + one_agrees) / 3,
            "answer_type/yes/no": 1.0,
            "answer_type/number": two_agree,
            "answer_type/other": one_agrees,
            "question_type/is the": 1.0,
            "question_type/how many": (two_agree + one_agrees) / 2,
        }
    )


def test_types_must_be_one_a_question():
    with pytest.raises(ValueError, match="2 answer_types for 1 questions"):
        vqa_accuracy(["yes"], [["yes"]], answer_types=["yes/no", "other"])


def test_the_soft_score_is_the_label_of_the_very_answer():
    references = [{"yes": 1.0, "maybe": 0.3}, {"two": 0.6}, {"red": 0.9}]
    assert vqa_soft_score([" maybe", "2", "red"], references) == {"score": pytest.approx((0.3 + 0 + 0.9) / 3)}
    with pytest.raises(TypeError, match="give a dict"):
        vqa_soft_score(["yes"], [["yes"]])


# Boxes


def test_grounding_accuracy_equals_the_official_one_from_bins_to_scores():
    golden = json.loads((GOLDEN / "eval_refcoco.json").read_text())
    boxes = []
    for tokens, width, height in zip(golden["tokens"], golden["w"], golden["h"], strict=True):
        # The recording has the ratios only: a picture of one by one, resized to them, has the same.
        codec = BoxCodec((1, 1), (height, width), golden["max_image_size"], 58457, golden["num_bins"])
        boxes.append(codec.decode(tokens[:4]))
    np.testing.assert_allclose(boxes, [result["box"] for result in golden["results"]], rtol=1e-6)
    each = [grounding_accuracy([box], [true]) for box, true in zip(boxes, golden["region_coords"], strict=True)]
    assert [scores["accuracy"] for scores in each] == golden["scores"]
    assert grounding_accuracy(boxes, golden["region_coords"])["accuracy"] == np.mean(golden["scores"])


def test_overlaps_are_counted_by_pixels():
    draw = random.Random(0)
    for _ in range(100):
        boxes = []
        for _ in range(2):
            x0, y0 = draw.randrange(12), draw.randrange(12)
            boxes.append((x0, y0, x0 + draw.randint(1, 8), y0 + draw.randint(1, 8)))
        pixels = [{(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])} for b in boxes]
        iou = len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])
        scores = grounding_accuracy([boxes[0]], [boxes[1]], threshold=0.3)
        assert scores["mean_iou"] == pytest.approx(iou, abs=1e-6)
        assert scores["accuracy"] == (iou >= 0.3)


def test_identical_boxes_are_found_and_missing_or_inverted_ones_are_not():
    box = [1.0, 2.0, 5.0, 6.0]
    assert grounding_accuracy([box], [box]) == {"accuracy": 1.0, "mean_iou": pytest.approx(1.0, abs=1e-6)}
    assert grounding_accuracy([None, [5.0, 6.0, 1.0, 2.0]], [box, box]) == {"accuracy": 0.0, "mean_iou": 0.0}
    assert grounding_accuracy([box, None], [box, box])["accuracy"] == 0.5


def test_a_box_is_four_numbers():
    with pytest.raises(ValueError, match="Box 0 of a prediction is four numbers"):
        grounding_accuracy([[1, 2, 3]], [[1, 2, 3, 4]])


def coco_map(predictions: list[dict], references: list[dict]) -> list[float]:
    """AP, AP50 and AP75 by pycocotools."""
    labels = sorted({label for one in predictions + references for label in one["labels"]})

    def rows(pictures: list[dict]) -> list[dict]:
        found = []
        for picture, one in enumerate(pictures, start=1):
            for place, ((x0, y0, x1, y1), label) in enumerate(zip(one["boxes"], one["labels"], strict=True)):
                size = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
                score = {"score": one["scores"][place]} if "scores" in one else {}
                about = {"id": len(found) + 1, "image_id": picture, "category_id": labels.index(label) + 1}
                found.append({**about, **size, **score})
        return found

    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": picture} for picture in range(1, len(references) + 1)],
            "categories": [{"id": place} for place in range(1, len(labels) + 1)],
            "annotations": rows(references),
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows(predictions)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3].tolist()


@pytest.mark.parametrize("seed", range(10))
def test_detection_map_equals_pycocotools(seed):
    draw = np.random.default_rng(seed)
    predictions, references = [], []
    for _ in range(15):
        true = draw.integers(0, 40, (draw.integers(0, 6), 4)).astype(float)
        true[:, 2:] = true[:, :2] + draw.integers(5, 30, (len(true), 2))
        names = draw.choice(["dog", "cat", "boat"], len(true)).tolist()
        # True boxes, some moved, some twice, some missing, some of another class; and false ones. Scores often tie.
        kept = draw.integers(0, len(true), draw.integers(0, 9)) if len(true) else []
        boxes = [true[place] + draw.choice([0.0, 1.0, 3.0]) * draw.normal(size=4) for place in kept]
        boxes = [np.concatenate([np.minimum(b[:2], b[2:]), np.maximum(b[:2], b[2:])]) for b in boxes]
        found = [names[place] if draw.random() < 0.8 else "cat" for place in kept]
        for _ in range(draw.integers(0, 3)):
            corner = draw.integers(0, 60, 2)
            boxes.append(np.concatenate([corner, corner + draw.integers(1, 20, 2)]).astype(float))
            found.append("bird" if draw.random() < 0.3 else "dog")
        scores = draw.choice([0.1, 0.5, 0.5, 0.9, 0.99], len(boxes)).tolist()
        predictions.append({"boxes": [box.tolist() for box in boxes], "labels": found, "scores": scores})
        references.append({"boxes": true.tolist(), "labels": names})
    scores = detection_map(predictions, references)
    assert list(scores.values()) == pytest.approx(coco_map(predictions, references), **EXACT)
    assert 0 < scores["map"] < scores["map_50"]


def test_only_the_surest_hundred_boxes_of_a_class_count():
    true = {"boxes": [[0.0, 0.0, 10.0, 10.0]], "labels": ["dog"]}
    far = [[50.0 + place, 50.0, 60.0 + place, 60.0] for place in range(100)]
    found = {"boxes": [*far, *true["boxes"]], "labels": ["dog"] * 101, "scores": [0.9] * 100 + [0.1]}
    assert detection_map([found], [true])["map"] == 0.0 == coco_map([found], [true])[0]
    found["scores"] = [0.1] * 100 + [0.9]
    assert detection_map([found], [true])["map"] == pytest.approx(1.0)


def test_boxes_without_scores_rank_in_their_order():
    true = {"boxes": [[0, 0, 10, 10]], "labels": ["dog"]}
    found = {"boxes": [[0, 0, 10, 10], [20, 20, 30, 30]], "labels": ["dog", "dog"]}
    assert detection_map([found], [true])["map_50"] == pytest.approx(1.0)
    assert detection_map([{**found, "scores": [None, None]}], [true])["map_50"] == pytest.approx(1.0)
    assert detection_map([{**found, "boxes": found["boxes"][::-1]}], [true])["map_50"] == pytest.approx(0.5)


def test_a_box_that_is_inside_out_is_a_false_detection():
    true = {"boxes": [[0, 0, 10, 10]], "labels": ["dog"]}
    found = {"boxes": [[10, 10, 0, 0], [0, 0, 10, 10]], "labels": ["dog", "dog"], "scores": [0.9, 0.5]}
    assert detection_map([found], [true])["map"] == pytest.approx(0.5)


def test_pictures_without_boxes_are_counted_and_classes_without_true_boxes_are_not():
    empty = {"boxes": [], "labels": [], "scores": []}
    true = {"boxes": [[0, 0, 10, 10]], "labels": ["dog"]}
    assert detection_map([empty], [true]) == {"map": 0.0, "map_50": 0.0, "map_75": 0.0}
    found = {"boxes": [[0, 0, 10, 10], [0, 0, 9, 9]], "labels": ["dog", "cat"], "scores": [0.5, 0.9]}
    assert detection_map([found, empty], [true, empty])["map"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="No reference has a box"):
        detection_map([found], [empty])


def test_boxes_labels_and_scores_must_match_in_number():
    with pytest.raises(ValueError, match="Prediction 0 has 1 boxes, 2 labels and 1 scores"):
        detection_map([{"boxes": [[0, 0, 1, 1]], "labels": ["a", "b"]}], [{"boxes": [[0, 0, 1, 1]], "labels": ["a"]}])


# Labels


def labellings(seed: int, words: list[str]) -> tuple[list[str], list[str]]:
    draw = random.Random(seed)
    references = [draw.choice(words[:3]) for _ in range(60)]
    return [true if draw.random() < 0.6 else draw.choice(words) for true in references], references


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("words", [["yes", "no"], ["yes", "no", "no", "dunno"], ["yes", "maybe", "no"]])
def test_accuracy_and_correlation_equal_sklearn(seed, words):
    predictions, references = labellings(seed, words)
    scores = glue(predictions, references, "cola")
    assert scores["accuracy"] == pytest.approx(accuracy_score(references, predictions), **EXACT)
    assert scores["matthews_correlation"] == pytest.approx(matthews_corrcoef(references, predictions), **EXACT)
    assert glue(predictions, references, "mnli") == {"accuracy": scores["accuracy"]}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("task", ["mrpc", "qqp"])
def test_f1_equals_sklearn(seed, task):
    predictions, references = labellings(seed, ["yes", "no", "no", "dunno"])
    scores = glue(predictions, references, task)
    expected = f1_score([word == "yes" for word in references], [word == "yes" for word in predictions])
    assert scores["f1"] == pytest.approx(expected, **EXACT)
    assert scores["accuracy"] == label_accuracy(predictions, references)["accuracy"]


def test_constant_answers_have_neither_correlation_nor_f1():
    assert glue(["yes"] * 3, ["yes", "no", "no"], "cola")["matthews_correlation"] == 0.0
    assert glue(["no"] * 3, ["no"] * 3, "mrpc") == {"accuracy": 1.0, "f1": 0.0}


def test_glue_refuses_unknown_tasks_and_references_that_f1_does_not_know():
    with pytest.raises(ValueError, match="Unknown GLUE task 'stsb'; choose one of cola, mnli"):
        glue(["yes"], ["yes"], "stsb")
    with pytest.raises(ValueError, match="a reference is '1'; write yes or no"):
        glue(["1"], ["1"], "qqp")


def test_ranked_labels_also_give_the_top_k_accuracy():
    ranked = [["cat", "dog", "boat"], ["dog", "cat", "boat"], ["boat", "dog", "bird"]]
    assert label_accuracy(ranked, ["cat", "cat", "cat"], top_k=2) == {"accuracy": 1 / 3, "top_2_accuracy": 2 / 3}
    assert label_accuracy(["cat", "dog"], ["cat", "cat"]) == {"accuracy": 0.5}


def test_labels_and_ranked_labels_do_not_mix():
    with pytest.raises(TypeError, match="mixed"):
        label_accuracy(["cat", ["cat"]], ["cat", "cat"])
    with pytest.raises(ValueError, match="A ranked list of labels is empty"):
        label_accuracy([[], ["cat"]], ["cat", "cat"])
    with pytest.raises(ValueError, match="top_k is at least 1"):
        label_accuracy([["cat"]], ["cat"], top_k=0)


# Texts


@pytest.mark.parametrize(
    ("summary", "official"),
    [
        ("us stocks don ' t rise ( again )", "us stocks do n't rise -lrb- again -rrb-"),
        ("Q&A & <unk> in 2010", "q&a &amp;  unk in 20#0"),
        ('it \' s 11 , 000 " fine " a - b', "it 's ##,000 `` fine '' a-b"),
        ("UN<unk> [ x ] > 1", "un unk -lsb- x -rsb- &gt; #"),
        ("", ""),
    ],
)
def test_summaries_read_to_rouge_as_the_official_rewriting(summary, official):
    perfect = {"rouge1": 1.0, "rouge1_recall": 1.0} if official else {"rouge1": 0.0, "rouge1_recall": 0.0}
    scores = rouge([gigaword_text(summary)], [[official]], gigaword=False)
    assert {name: scores[name] for name in perfect} == perfect
    assert rouge([summary], [[official]]) == scores


def test_rouge_is_the_mean_of_rouge_score_and_of_references_the_best_counts():
    predictions, references = sentences(3, 20)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = rouge(predictions, references, gigaword=False)
    for name in scorer.rouge_types:
        best = [
            max((scorer.score(text, prediction)[name] for text in texts), key=lambda score: score.fmeasure)
            for prediction, texts in zip(predictions, references, strict=True)
        ]
        assert scores[name] == pytest.approx(np.mean([score.fmeasure for score in best]), **EXACT)
        assert scores[f"{name}_recall"] == pytest.approx(np.mean([score.recall for score in best]), **EXACT)


def test_chinese_summaries_are_scored_by_characters():
    scores = rouge(["北京 天气"], [["北京的天气"]], characters=True)
    assert scores["rouge1_recall"] == pytest.approx(4 / 5)
    assert scores["rouge2"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_rouge_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ImportError, match=r"modeling-ofa\[metrics\]"):
        rouge(["a"], [["a"]])


def levenshtein(left: str, right: str) -> int:
    """By the definition's recursion."""
    if not left or not right:
        return len(left) + len(right)
    return min(
        levenshtein(left[1:], right) + 1,
        levenshtein(left, right[1:]) + 1,
        levenshtein(left[1:], right[1:]) + (left[0] != right[0]),
    )


def test_edit_distances_follow_the_definition():
    draw = random.Random(0)
    texts = [["".join(draw.choice("abc") for _ in range(draw.randint(0, 6))) for _ in range(30)] for _ in range(2)]
    pairs = list(zip(*texts, strict=True))
    scores = edit_distance(*texts)
    edits = [levenshtein(*pair) for pair in pairs]
    assert scores["cer"] == pytest.approx(sum(edits) / sum(map(len, texts[1])))
    relative = [edit / max(map(len, pair)) if any(pair) else 0.0 for edit, pair in zip(edits, pairs, strict=True)]
    assert scores["normalized_edit_distance"] == pytest.approx(np.mean(relative))
    assert scores["exact_match"] == pytest.approx(np.mean([left == right for left, right in pairs]))


def test_spaces_count_in_read_texts_only_if_asked_for():
    assert edit_distance(["北 京"], ["北京 "])["exact_match"] == 1.0
    assert edit_distance(["a b"], ["ab"], spaces=True)["cer"] == 0.5
    with pytest.raises(ValueError, match="All references are empty"):
        edit_distance(["a"], [" "])


def test_tokens_too_few_or_too_many_are_wrong():
    assert token_accuracy([[1, 2, 3], [4]], [[1, 9, 3], [4, 5]]) == {"accuracy": 3 / 5}
    assert token_accuracy([[1, 2]], [[1]]) == {"accuracy": 1 / 2}
    with pytest.raises(ValueError, match="no tokens"):
        token_accuracy([[]], [[]])


# All of them


SAMPLES = {
    "text": {"references": ["yes", ["yes", "ja"]], "answer_scores": ["yes", {"yes": 1.0}], "target": ["yes", "yes"]},
    "box": {"box": [[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]]},
    "detections": {
        "detections": [{"boxes": [[0, 0, 2, 2]], "labels": ["a"]}, {"boxes": [[0, 0, 2, 2]], "labels": ["a"]}]
    },
    "codes": {"codes": [[1, 2], [1, 2]]},
}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_refuses_unequal_lengths_nothing_and_bare_strings(name):
    metric = METRICS[name]
    prediction, reference = SAMPLES[metric.predictions][metric.references]
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        metric.function([prediction] * 2, [reference])
    with pytest.raises(ValueError, match="no predictions"):
        metric.function([], [])
    with pytest.raises(TypeError, match="not strings"):
        metric.function("yes", [reference])


@pytest.mark.parametrize("name", METRICS)
def test_the_headline_of_every_metric_is_a_finite_float_and_higher_is_better(name):
    metric = METRICS[name]
    prediction, reference = SAMPLES[metric.predictions][metric.references]
    # Two samples, since CIDEr and the correlation need a second one that differs.
    wrong = {"text": "no", "box": None, "detections": {"boxes": [], "labels": []}, "codes": [7, 8]}[metric.predictions]
    other = {"references": ["no"], "answer_scores": {"no": 1.0}, "target": "no"}.get(metric.references, reference)
    right = prediction if other is reference else "no"
    options = {"meteor": False} if name == "coco_caption" else {}
    good = metric.function([prediction, right], [reference, other], **options)
    bad = metric.function([wrong, right], [reference, other], **options)
    assert all(type(score) is float and math.isfinite(score) for score in [*good.values(), *bad.values()])
    assert good[metric.headline] > bad[metric.headline]


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.references == "references"])
def test_a_sample_needs_a_list_of_references(name):
    with pytest.raises(TypeError, match="references of sample 0 are a string"):
        METRICS[name].function(["yes"], ["yes"])
    with pytest.raises(ValueError, match="Sample 0 has no reference"):
        METRICS[name].function(["yes"], [[]])


def test_the_package_of_metrics_imports_no_extra():
    extras = ("datasets", "evaluate", "rouge_score", "pycocoevalcap", "pycocotools", "sklearn")
    # What generation in transformers imports by itself is not ours: scikit-learn, in 5.17.
    code = "import sys; from transformers import GenerationMixin; known = set(sys.modules)\n"
    code += f"import modeling_ofa.evaluation; print([name for name in {extras} if name in set(sys.modules) - known])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_bleu_counts_a_word_as_often_as_one_reference_has_it():
    assert bleu(["a a a a a"], [["a cat and a cat", "a dog"]])[0] == pytest.approx(2 / 5)
