"""Takes the pictures of the page in docs/images, with the system's Chromium, so that they show what the page is today.

`python scripts/take_screenshots.py` serves the embedded checkpoint, asks the first example of each of its tasks, and
writes `app_TASK.png` of each tab and `app_attention.png`. Needs the extras `app` and `browser`, and a Chromium
(on Debian: `apt install chromium`).
"""

import argparse
import io
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from modeling_ofa import app
from modeling_ofa.cli.errors import CommandError
from modeling_ofa.cli.predictor import Answerer, default_checkpoint


ROOT = Path(__file__).parents[1]
SIZE = {"width": 1100, "height": 760}
PATIENCE = 120_000  # milliseconds that an answer may take
EXAMPLES = "tr.tr-body, button.gallery-item"  # those of one column are no table


def find_chromium() -> str | None:
    """Gives the path of the system's Chromium, if it has one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Opens the system's Chromium without a window, and closes it afterwards."""
    chromium = find_chromium()
    if chromium is None:
        raise CommandError("no Chromium was found; on Debian: apt install chromium")
    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, as whom tests often run in containers.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def open_tab(page: Page, title: str) -> Locator:
    """Goes to a tab, which may be in the menu of those that have no room, and gives what it holds."""
    tab = page.get_by_role("tab", name=title, exact=True)
    page.get_by_role("tab").first.wait_for()
    if tab.count() == 0 or not tab.first.is_visible():
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=title).first.click()
    else:
        tab.first.click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    expect(panel).to_have_count(1)
    return panel


def choose_example(panel: Locator, number: int = 0) -> None:
    """Chooses an example, and waits until it is in its fields."""
    row = panel.locator(EXAMPLES).nth(number)
    texts = [text for text in (cell.strip() for cell in row.locator("td").all_inner_texts()) if text]
    thumbnails = row.locator("img")
    source = thumbnails.first.get_attribute("src") if thumbnails.count() else None
    row.click(position={"x": 12, "y": 12})  # the middle may be the border between two cells
    if source is not None:
        expect(panel.get_by_test_id("image").locator("img").first).to_have_attribute("src", source, timeout=PATIENCE)
    fields = panel.locator("textarea, input[type=text]")
    for text in texts:
        panel.page.wait_for_function(
            "([fields, text]) => fields.some(field => field.value === text)",
            arg=[fields.element_handles(), text],
            timeout=PATIENCE,
        )


def ask(panel: Locator) -> str:
    """Asks the first question of a tab, waits for the end of it, and gives the answer."""
    panel.get_by_role("button", name="Ask", exact=True).click()
    panel.get_by_text(re.compile(r"^\d+%$")).first.wait_for(timeout=PATIENCE)  # of the bars
    return panel.get_by_label("Answer", exact=True).input_value()


def show_attention(panel: Locator) -> Any:
    """Opens what shows attention, asks for it, and gives the words about it, as they come."""
    panel.get_by_role("button", name="Attention over the picture").click()
    panel.get_by_role("button", name="Show attention").click()
    told = panel.get_by_text("of the attention goes to")
    told.wait_for(timeout=PATIENCE)
    return told


def save_screenshot(page: Page, path: Path) -> None:
    """Writes what the whole page looks like."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)  # until what fades has faded
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True, animations="disabled")))
    picture.convert("RGB").save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=default_checkpoint(), help="folder or Hub id (the embedded one)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images", help="folder (%(default)s)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    answerer = Answerer(arguments.checkpoint, with_scores=True)
    tasks = app.shown_tasks(arguments.checkpoint, answerer.processor)
    served = app.build_page(answerer, tasks)
    _, url, _ = served.launch(prevent_thread_lock=True, quiet=True, **app.SERVED)
    try:
        with open_browser() as browser:
            page = browser.new_page(viewport=SIZE)
            page.goto(url)
            for task in tasks:
                panel = open_tab(page, app.tab_title(task))
                if panel.locator(EXAMPLES).count() == 0:
                    continue
                choose_example(panel)
                ask(panel)
                save_screenshot(page, arguments.output / f"app_{task}.png")
                if task == "vqa":
                    show_attention(panel)
                    save_screenshot(page, arguments.output / "app_attention.png")
    finally:
        served.close(verbose=False)


if __name__ == "__main__":
    try:
        main()
    except CommandError as error:
        sys.exit(f"take_screenshots: error: {error}")
