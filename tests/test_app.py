"""The page: its handlers, its server as programs ask it, and, in a browser, what people see of it."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from tiny import save_checkpoint

from modeling_ofa import DEFAULT_CHECKPOINT, cli
from modeling_ofa.cli.examples import read_examples
from modeling_ofa.cli.predictor import Answerer
from modeling_ofa.evaluation.predictor import Predictor
from modeling_ofa.tasks_ofa import TASKS, get_task


gr = pytest.importorskip("gradio", reason="the page needs gradio: pip install 'modeling-ofa[app]'")
gradio_client = pytest.importorskip("gradio_client")

from modeling_ofa import app  # noqa: E402


ROOT = Path(__file__).parents[1]
# Those that a page can show: read pictures and text, and answer with neither codes nor sound.
SHOWN = [row.name for row in TASKS.values() if not row.takes_audio and row.answer != "codes"]
ANSWERS = "cat, dog, neither"
DRAWN = "img[src$='image.png']"  # as gradio names what it did not get from a file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def answerer(checkpoint):
    return Answerer(str(checkpoint), "cpu", with_scores=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Four picture files that differ."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(4):
        Image.effect_noise((100, 80), 60 + 40 * i).convert("RGB").save(folder / f"{i}.png")
    return [folder / f"{i}.png" for i in range(4)]


@pytest.fixture(scope="module")
def url(answerer):
    """A server of the page of a random model."""
    page = app.build_page(answerer, app.shown_tasks(answerer.checkpoint, answerer.processor))
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **app.SERVED)
    yield address
    page.close(verbose=False)


@pytest.fixture
def client(url):
    return gradio_client.Client(url, verbose=False)


def inputs_for(task: str, picture) -> dict[str, object]:
    """What the page is given for a task: a picture as it is, and texts."""
    row = get_task(task)
    given = {"image": picture} if row.takes_image else {}
    if row.takes_text:
        given["text"] = "10,10,50,60" if row.takes_region else "what is a mug?"
    if row.needs_pair:
        given["text_pair"] = "a bell"
    return given | ({"answers": ANSWERS} if row.answer == "label" and not row.answers else {})


def upload(path) -> dict[str, str]:
    """What the server makes of a file that a browser sends."""
    return {"path": str(path), "orig_name": Path(path).name}


def refused(desk: app.Desk, **given) -> str:
    with pytest.raises(gr.Error) as error:
        desk.ask(**given)
    return error.value.message


# --- the handlers


@pytest.mark.parametrize("task", SHOWN)
def test_every_task_is_answered_as_the_command_line_answers_it(answerer, task, pictures):
    text, drawn, sure, asked = app.Desk(answerer, task).ask(**inputs_for(task, upload(pictures[0])))
    row = {"task": task, **inputs_for(task, Image.open(pictures[0]))}
    chooser = answerer.choosing(ANSWERS.split(", ")) if "answers" in row else answerer
    answer = chooser.answer({name: value for name, value in row.items() if name != "answers"}, top_k=app.BARS)
    if get_task(task).answer in ("box", "boxes"):
        assert drawn.width == app.SHOWN_WIDTH and len(sure) == len(answer["boxes"])
        assert text == "no box" or text.count("\n") + 1 == len(answer["boxes"])
        assert (asked is None) == (not answer["boxes"])
        return
    assert text == answer.get("label", answer.get("text")) and drawn is None
    assert sure == dict(answer.get("ranking", [(text, answer["score"])]))
    if get_task(task).answers:
        assert set(sure) == set(get_task(task).answers) and sum(sure.values()) == pytest.approx(1)


def test_answers_to_choose_from_are_the_users_own(answerer, pictures):
    desk, image = app.Desk(answerer, "vqa"), upload(pictures[0])
    text, _, sure, _ = desk.ask(image, "what is it?", answers="a cup, mug,, mug")
    assert set(sure) == {"a cup", "mug"} and text == max(sure, key=sure.get) and sum(sure.values()) == pytest.approx(1)
    free, _, unsure, _ = desk.ask(image, "what is it?", objects="cup, plate", answers=" ")
    assert list(unsure) == [free]


def test_boxes_are_drawn_where_they_are(answerer, tmp_path, monkeypatch):
    found = {"boxes": [[10.0, 20.0, 50.0, 60.0], [60.0, 5.0, 90.0, 30.0]], "labels": ["cup", "cup"]}
    monkeypatch.setattr(Answerer, "answer", lambda *args, **kwargs: {**found, "scores": [0.5, 0.25]})
    path = tmp_path / "grey.png"
    Image.new("RGB", (100, 80), "grey").save(path)
    text, drawn, sure, asked = app.Desk(answerer, "object_detection").ask(upload(path))
    assert text == "10.0 20.0 50.0 60.0  cup\n60.0 5.0 90.0 30.0  cup"
    assert sure == {"1. cup": 0.5, "2. cup": 0.25} and asked == {
        **found,
        "task": "object_detection",
        "image": asked["image"],
    }
    scale = app.SHOWN_WIDTH / 100
    assert drawn.getpixel((round(50 * scale), round(40 * scale))) != (128, 128, 128)
    assert drawn.getpixel((round(30 * scale), round(40 * scale))) == (128, 128, 128)


def test_what_is_missing_or_cannot_be_read_is_said_in_words(answerer, pictures):
    image = upload(pictures[0])
    vqa, region = app.Desk(answerer, "vqa"), app.Desk(answerer, "grounded_caption")
    assert "there is no picture" in refused(vqa, text="what is it?")
    for text in ("", " \n", None):
        assert "“The question” is empty" in refused(vqa, image=image, text=text)
    assert "“The question” has 300 words, but 80 are read" in refused(vqa, image=image, text="why " * 300)
    assert "300 positions" in refused(vqa, image=image, text="why" * 100)
    assert "“The hypothesis” is empty" in refused(app.Desk(answerer, "mnli"), text="a mug")
    assert "four numbers" in refused(region, image=image, text="1,2,3")
    assert "not a region of its picture" in refused(region, image=image, text="200,10,300,50")
    classify = app.Desk(answerer, "image_classification")
    assert "a list that you give" in refused(classify, image=image, answers=" , ")
    assert "1,001 answers" in refused(classify, image=image, answers=",".join(map(str, range(1001))))
    assert app.Desk(answerer, "visual_entailment").ask(image, "a mug")[0] in ("yes", "maybe", "no")  # no premise


def test_attention_is_that_of_the_answer_given(answerer, pictures):
    desk = app.Desk(answerer, "visual_entailment")
    answer, _, _, asked = desk.ask(upload(pictures[0]), "a mug")
    assert asked["image"].size == (100, 80) and (asked["text"], asked["target"]) == ("a mug", answer)
    heat, told, update = desk.look(asked, 0, 0, 0)
    assert heat.width == app.SHOWN_WIDTH
    assert "mean of 2 decoder layers, mean of 2 heads, mean of all tokens" in told and "4 × 4 patches" in told
    assert [one.split(". ")[-1] for one in update["choices"][2:]] == list(asked["target"])  # tokens are bytes here
    other, told, _ = desk.look(asked, 2, 1, 2)
    assert f"decoder layer 2, head 1, token “{asked['target'][0]}”" in told
    assert heat.tobytes() != other.tobytes()
    with pytest.raises(gr.Error, match="no answer yet"):
        desk.look(None, 0, 0, 0)


def test_two_clicks_on_a_picture_make_a_region():
    def click(x, y):
        return gr.SelectData(None, {"index": (x, y), "value": None})

    assert app._corner("", click(60, 50)) == "60,50"
    assert app._corner("60,50", click(20, 70)) == "20,50,60,70"
    assert app._corner("20,50,60,70", click(5, 6)) == "5,6"
    assert app._corner("a, b", click(5, 6)) == "5,6"


def test_the_tabs_are_what_the_card_names_or_else_what_the_vocabulary_has_words_for(checkpoint, answerer, tmp_path):
    assert app.shown_tasks(str(checkpoint), answerer.processor) == SHOWN
    (tmp_path / "README.md").write_text("---\ntags: [vqa, caption, image_generation]\n---\n", encoding="utf-8")
    assert app.shown_tasks(str(tmp_path), answerer.processor) == ["caption", "vqa"]

    class WithoutBins:
        tokenizer = type("Tokenizer", (), {"get_vocab": staticmethod(lambda: {"<s>": 0})})

    boxless = app.shown_tasks(str(checkpoint), WithoutBins)
    assert "vqa" in boxless and not {"visual_grounding", "grounded_caption", "object_detection"} & set(boxless)


# --- the server


def test_every_task_has_a_tab_with_its_examples_and_can_be_asked_by_programs(client, url, pictures):
    served = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {name for name in served if not name.endswith("_attention")} == {f"/{task}" for task in SHOWN}
    with urllib.request.urlopen(f"{url}config") as answer:
        parts = json.load(answer)["components"]
    assert [part["props"]["id"] for part in parts if part["type"] == "tabitem"] == SHOWN
    shown = [len(part["props"]["samples"]) for part in parts if part["type"] == "dataset"]
    counts = [len(read_examples([task])) for task in SHOWN]
    assert shown == [count for count in counts if count]

    given = inputs_for("visual_entailment", gradio_client.handle_file(pictures[0]))
    text, _, sure = client.predict(**given, api_name="/visual_entailment")
    assert text == sure["label"] and {one["label"] for one in sure["confidences"]} == {"yes", "maybe", "no"}
    heat, told, _ = client.predict(layer="layer 2", head="head 1", api_name="/visual_entailment_attention")
    assert Image.open(heat).width == app.SHOWN_WIDTH and "decoder layer 2, head 1" in told


def test_attention_of_another_user_is_not_shown(client, url, pictures):
    image = gradio_client.handle_file(pictures[0])
    client.predict(image=image, text="a mug", api_name="/visual_entailment")
    other = gradio_client.Client(url, verbose=False)
    with pytest.raises(gradio_client.exceptions.AppError, match="no answer yet"):
        other.predict(api_name="/visual_entailment_attention")


@pytest.mark.parametrize(
    "content, said", [("text", "is not a picture"), ("", "is not a picture"), (None, "truncated")]
)
def test_a_file_that_is_no_picture_is_called_by_its_own_name(client, pictures, tmp_path, content, said):
    path = tmp_path / "notes.png"
    path.write_bytes(pictures[0].read_bytes()[:3000] if content is None else content.encode())
    with pytest.raises(gradio_client.exceptions.AppError, match=f"^notes.png.*{said}") as error:
        client.predict(gradio_client.handle_file(path), api_name="/caption")
    assert "gradio" not in str(error.value)  # nor by the server's


def test_files_of_the_server_cannot_be_asked_about(url, pictures):
    """A path that was not uploaded is refused, whoever names it."""
    body = json.dumps({"data": [{"path": str(pictures[0]), "meta": {"_type": "gradio.FileData"}}]}).encode()
    request = urllib.request.Request(f"{url}gradio_api/call/caption", body, {"Content-Type": "application/json"})
    event = json.load(urllib.request.urlopen(request))["event_id"]
    with urllib.request.urlopen(f"{url}gradio_api/call/caption/{event}") as answer:
        assert "event: error" in answer.read().decode()


def test_users_at_once_get_each_their_own_answers_and_the_model_one_question_at_a_time(url, pictures, monkeypatch):
    busy, overlaps = threading.Lock(), []
    calls = Predictor.__call__

    def counted(self, *args, **kwargs):
        overlaps.append(not busy.acquire(blocking=False))
        try:
            time.sleep(0.05)
            return calls(self, *args, **kwargs)
        finally:
            busy.release()

    tasks = ("visual_entailment", "image_text_matching", "vqa", "sst2")
    asked = [
        (task, picture, f"is it a {word}?") for task in tasks for picture in pictures[:2] for word in ("mug", "cup")
    ]

    def ask(client, task, picture, text):
        given = {"image": gradio_client.handle_file(picture)} if get_task(task).takes_image else {}
        return client.predict(**given, text=text, api_name=f"/{task}")[2]["confidences"]

    alone = gradio_client.Client(url, verbose=False)
    expected = [ask(alone, *one) for one in asked]
    assert len({json.dumps(one) for one in expected}) > len(asked) // 2  # mixed ones would show
    monkeypatch.setattr(Predictor, "__call__", counted)
    users = [gradio_client.Client(url, verbose=False) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        given = list(pool.map(lambda i: ask(users[i % 4], *asked[i]), range(len(asked))))
    assert given == expected
    assert len(overlaps) == len(asked) and not any(overlaps)


def test_a_port_that_is_taken_is_refused(checkpoint, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert cli.main(["app", "--checkpoint", str(checkpoint), "--device", "cpu", "--port", port]) == 2
    err = capsys.readouterr().err
    assert err.startswith("ofa: error: the page cannot be served") and port in err and err.count("\n") == 1


def test_a_checkpoint_without_anything_to_show_is_refused(checkpoint, tmp_path, capsys):
    for path in checkpoint.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "README.md").write_text("---\ntags: [image_generation]\n---\n", encoding="utf-8")
    assert cli.main(["app", "--checkpoint", str(tmp_path), "--device", "cpu"]) == 2
    assert "--tasks names others" in capsys.readouterr().err
    assert cli.main(["app", "--checkpoint", str(checkpoint), "--tasks", "vqa,image_generation"]) == 2
    assert "the page cannot show 'image_generation'" in capsys.readouterr().err


# --- what people see


@pytest.fixture(scope="module")
def screen():
    """The script that takes screenshots, which knows its way about the page."""
    pytest.importorskip("playwright", reason="driving a browser needs playwright: pip install 'modeling-ofa[browser]'")
    sys.path.append(str(ROOT / "scripts"))  # at the end: it has an evaluate.py
    import take_screenshots

    if take_screenshots.find_chromium() is None:
        pytest.skip("reason: there is no Chromium here; on Debian: apt install chromium")
    return take_screenshots


@pytest.fixture(scope="module")
def browser(screen):
    with screen.open_browser() as browser:
        yield browser


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(server: subprocess.Popen, url: str) -> None:
    """Waits until a server answers, for minutes at most."""
    for _ in range(300):
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            time.sleep(1)
    raise AssertionError("the server does not answer")


@pytest.fixture(scope="module")
def embedded_url():
    """`ofa app` with the embedded checkpoint, and a tab for each task that there is an example of."""
    port, tasks = free_port(), ",".join(dict.fromkeys(row["task"] for row in read_examples()))
    words = ["app", "--port", str(port), "--tasks", tasks, "--device", "cpu"]
    server = subprocess.Popen([sys.executable, "-m", "modeling_ofa.cli", *words], cwd=ROOT)
    wait_for(server, f"http://127.0.0.1:{port}")
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture
def page(browser, embedded_url):
    """The page, in a browser of a new user; it must ask nothing of other hosts, and break no script."""
    user = browser.new_context(viewport={"width": 1100, "height": 760})
    page = user.new_page()
    hosts, broken = set(), []
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.on("pageerror", lambda error: broken.append(error))
    page.goto(embedded_url)
    yield page
    assert hosts <= {embedded_url.split("/")[2], ""} and not broken
    user.close()


@pytest.fixture(scope="module")
def embedded():
    return Answerer(str(DEFAULT_CHECKPOINT), "cpu", with_scores=True)


def shown_answer(embedded: Answerer, row) -> str:
    """What the page shall show for an example."""
    chooser = embedded.choosing(row["answers"]) if "answers" in row else embedded
    image = Image.open(row["image"]) if "image" in row else None
    answer = chooser.answer({**row, "image": image})
    if get_task(row["task"]).answer not in ("box", "boxes"):
        return answer.get("label", answer.get("text"))
    labels = answer.get("labels", [""] * len(answer["boxes"]))
    boxes = (" ".join(f"{round(float(side), 1)}" for side in box) for box in answer["boxes"])
    return "\n".join("  ".join(filter(None, one)) for one in zip(boxes, labels, strict=True)) or "no box"


@pytest.mark.slow
@pytest.mark.parametrize("task", dict.fromkeys(row["task"] for row in read_examples()))
def test_the_first_example_of_every_tab_is_answered(screen, page, embedded, task):
    panel = screen.open_tab(page, app.tab_title(task))
    screen.choose_example(panel)
    assert screen.ask(panel) == shown_answer(embedded, read_examples([task])[0])
    if get_task(task).answer in ("box", "boxes"):
        drawn = panel.locator(DRAWN)
        assert drawn.evaluate("picture => picture.naturalWidth") == app.SHOWN_WIDTH
    if get_task(task).answers:
        assert panel.get_by_text(re.compile(r"^\d+%$")).count() == len(get_task(task).answers)


@pytest.mark.slow
def test_a_wrong_file_is_named_and_the_next_picture_is_answered(screen, page, embedded, pictures, tmp_path):
    expect = screen.expect
    panel = screen.open_tab(page, "Caption")
    upload, ask = panel.locator("input[type=file]"), panel.get_by_role("button", name="Ask", exact=True)
    for name, content, said in (
        ("notes.png", b"not a picture", "notes.png is not a picture"),
        ("cut.png", pictures[0].read_bytes()[:3000], "cut.png is truncated or damaged"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        upload.set_input_files(path)
        page.wait_for_function(
            "name => performance.getEntriesByType('resource').some(e => e.name.includes(name))", arg=name
        )
        ask.click()
        expect(page.get_by_text(said)).to_be_visible(timeout=screen.PATIENCE)
        panel.get_by_role("button", name="Remove Image").click()
    ask.click()
    expect(page.get_by_text("there is no picture")).to_be_visible(timeout=screen.PATIENCE)

    screen.choose_example(panel, 1)
    ask.click()
    answer = shown_answer(embedded, read_examples(["caption"])[1])
    expect(panel.get_by_label("Answer", exact=True)).to_have_value(answer, timeout=screen.PATIENCE)


@pytest.mark.slow
def test_what_is_typed_is_asked_on_enter_and_its_mistakes_are_said(screen, page, embedded):
    expect = screen.expect
    panel = screen.open_tab(page, "VQA")
    screen.choose_example(panel)
    question = panel.get_by_label("The question")
    for text, said in (("", "“The question” is empty"), ("why " * 81, "has 81 words, but 80 are read")):
        question.fill(text)
        question.press("Enter")
        expect(page.get_by_text(said)).to_be_visible(timeout=screen.PATIENCE)
    row = {**read_examples(["vqa"])[0], "text": "how many objects are there?"}
    question.fill(row["text"])
    question.press("Enter")
    answer = panel.get_by_label("Answer", exact=True)
    expect(answer).to_have_value(shown_answer(embedded, row), timeout=screen.PATIENCE)
    panel.get_by_label("Answers to choose from").fill("seven, eleven")
    question.press("Enter")
    expect(answer).to_have_value(re.compile("seven|eleven"), timeout=screen.PATIENCE)


@pytest.mark.slow
def test_attention_is_shown_on_demand_by_layer_head_and_token_and_goes_with_the_next_answer(screen, page):
    expect = screen.expect
    panel = screen.open_tab(page, "Caption")
    screen.choose_example(panel)
    screen.ask(panel)
    told = screen.show_attention(panel)
    expect(told).to_contain_text("mean of all tokens")
    heat = panel.locator(DRAWN)
    first = heat.get_attribute("src")
    for label, choice, said in (
        ("Layer", "layer 2", "decoder layer 2"),
        ("Head", "head 1", "head 1"),
        ("Token", "1. ", "token “"),
    ):
        panel.get_by_label(label, exact=True).click()
        panel.get_by_role("option", name=choice).first.click()
        expect(told).to_contain_text(said, timeout=screen.PATIENCE)
    assert heat.get_attribute("src") != first
    panel.get_by_role("button", name="Ask", exact=True).click()
    expect(told).to_have_count(0, timeout=screen.PATIENCE)
    expect(panel.get_by_label("Token", exact=True)).to_have_value(app.TOKENS, timeout=screen.PATIENCE)


@pytest.mark.slow
def test_clicks_on_a_picture_mark_a_region(screen, page):
    panel = screen.open_tab(page, "Grounded caption")
    screen.choose_example(panel)
    region, picture = panel.get_by_label("The region"), panel.get_by_test_id("image").locator("img").first
    region.fill("")
    width, height = Image.open(read_examples(["grounded_caption"])[0]["image"]).size
    box = picture.bounding_box()
    for x, y, corners in ((0.75, 0.5, 2), (0.25, 0.25, 4)):
        picture.click(position={"x": x * box["width"], "y": y * box["height"]})
        screen.expect(region).to_have_value(re.compile(",".join([r"\d+"] * corners) + "$"), timeout=screen.PATIENCE)
    marked = [float(side) for side in region.input_value().split(",")]
    assert marked == pytest.approx([width / 4, height / 4, width * 3 / 4, height / 2], abs=3)


@pytest.mark.slow
def test_two_users_at_once_see_each_their_own(screen, browser, embedded_url, embedded):
    rows = read_examples(["vqa"])
    users = [browser.new_context() for _ in range(2)]
    panels = []
    for user, number in zip(users, (0, len(rows) - 1), strict=True):
        page = user.new_page()
        page.goto(embedded_url)
        panels.append(screen.open_tab(page, "VQA"))
        screen.choose_example(panels[-1], number)
    for _ in range(3):  # one after the other without waiting, again and again
        for panel in panels:
            panel.get_by_role("button", name="Ask", exact=True).click()
    for panel, row in zip(panels, (rows[0], rows[-1]), strict=True):
        answer = shown_answer(embedded, row)
        screen.expect(panel.get_by_label("Answer", exact=True)).to_have_value(answer, timeout=screen.PATIENCE)
    screen.show_attention(panels[0])
    assert panels[1].get_by_text("of the attention goes to").count() == 0
    for user in users:
        user.close()


@pytest.mark.slow
def test_a_space_is_the_file_beside_the_package(tmp_path, checkpoint, screen, browser):
    shutil.copy(ROOT / "modeling_ofa" / "app.py", tmp_path)
    (tmp_path / "modeling_ofa").symlink_to(ROOT / "modeling_ofa")
    port = free_port()
    settings = {"OFA_CHECKPOINT": str(checkpoint), "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": str(port)}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen([sys.executable, "app.py"], cwd=tmp_path, env={**environment, **settings})
    try:
        wait_for(server, f"http://127.0.0.1:{port}")
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}")
        panel = screen.open_tab(page, "RTE")
        panel.get_by_label("The premise").fill("a man sleeps")
        panel.get_by_label("The hypothesis").fill("nobody is awake")
        assert screen.ask(panel) in ("yes", "no")
        page.close()
    finally:
        server.terminate()
        server.wait()
