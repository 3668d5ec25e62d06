"""The report page in a browser: it shows what rows say without doing it, and finds, sorts and exports them."""

import csv
import io
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from toy_run import BREAKOUT, CLASSES, FORMULA, SCRIPT, toy_record

from amal_hf.report import write_report


sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_report(toy_record(), tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, written):
    """The page, with what it asked for and complained of."""
    page = chromium.new_page(viewport={"width": 1400, "height": 900})
    page.troubles = []
    page.on("console", lambda message: page.troubles.append(message.text))
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on(
        "request", lambda request: None if request.url[:5] in ("file:", "data:") else page.troubles.append(request.url)
    )
    page.goto(written.as_uri())
    page.wait_for_selector("#rows tbody tr")
    yield page
    page.close()


def column(page, title):
    """What the rows in view say in a column."""
    titles = [text.rstrip(" ▲▼") for text in page.locator("#rows thead th").all_text_contents()]
    place = titles.index(title) + 1
    return page.locator(f"#rows tbody td:nth-child({place})").all_inner_texts()


def select(page, field, value):
    """Set a filter, and wait until the rows have changed."""
    before = page.inner_text("#count")
    if field in ("query", "from", "to"):
        page.fill(f"#{field}", value)
    else:
        page.select_option(f"#{field}", label=value)
    sync_api.expect(page.locator("#count")).not_to_have_text(before)
    return int(page.inner_text("#count").split(" of ")[0].replace(",", ""))


def clear(page):
    """Take all filters away."""
    page.click("text=Clear")
    sync_api.expect(page.locator("#count")).to_contain_text("300 of 300")


def exported(page):
    """The rows of the CSV that the button gives."""
    with page.expect_download() as download:
        page.click("#export")
    text = Path(download.value.path()).read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_hostile_rows_are_shown_and_not_run(page):
    """A row of script, one that would break out of its block, and their details: text, and nothing else."""
    select(page, "query", "onerror")
    assert column(page, "text") == [SCRIPT]
    page.click("#rows tbody button")
    assert SCRIPT in page.inner_text("#details")
    select(page, "query", "<!--")
    page.click("#rows tbody button")
    assert BREAKOUT[:40] in page.inner_text("#details")
    assert page.title() == "amal on 300 examples"
    assert page.troubles == []


def test_the_policy_stops_a_script_that_got_in(page):
    """Were escaping ever to fail, the browser itself refuses a script that is not the page's own."""
    page.evaluate("document.body.insertAdjacentHTML('beforeend', \"<img src=x onerror=document.title='run'>\")")
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = \"document.title='run'\"; document.body.append(s)"
    )
    page.wait_for_timeout(100)
    assert page.title() == "amal on 300 examples"
    assert any("Content Security Policy" in trouble for trouble in page.troubles)


def test_rows_are_sorted_by_weight(page):
    """The lowest weights come first, a click turns them round, and what was never trained on stays last."""
    weights = np.sort(toy_record().weights["labels"])
    assert column(page, "weight: labels")[:5] == [f"{weight:.3f}" for weight in weights[:5]]
    header = page.get_by_role("button", name="weight: labels")
    header.click()
    assert page.locator("#rows th[aria-sort=descending]").count() == 1
    assert float(column(page, "weight: labels")[0]) == pytest.approx(np.nanmax(weights), abs=1e-3)
    page.evaluate("scroller => scroller.scrollTop = scroller.scrollHeight", page.query_selector("#scroller"))
    sync_api.expect(page.locator("#rows tbody tr").last).to_have_attribute("aria-rowindex", "301")
    assert column(page, "weight: labels")[-2:] == ["", ""]


def test_filters_agree_with_numpy(page):
    """Every filter keeps exactly the rows that its words say, alone and together."""
    record = toy_record()
    assert select(page, "label", "plant") == (record.labels == 1).sum()
    both = (record.labels == 1) & (record.rules.votes[:, 2] >= 0)
    assert select(page, "rule", "rule_2") == both.sum()
    clear(page)
    assert select(page, "compare", "label ≠ truth") == (record.labels != record.truth).sum()
    assert (
        select(page, "loss", "rules") == ((record.labels != record.truth) & np.isfinite(record.weights["rules"])).sum()
    )
    clear(page)
    select(page, "loss", "labels")
    assert select(page, "to", "0.5") == (record.weights["labels"] < 0.5).sum()
    clear(page)
    assert select(page, "query", "FÖHRE") == sum("Föhre" in text for text in record.texts["text"])


def test_the_selection_is_exported(page):
    """The CSV holds the rows in their order with all that is known, and no cell that a spreadsheet would run."""
    select(page, "compare", "label ≠ truth")
    record, rows = toy_record(), exported(page)
    wrong = np.flatnonzero(record.labels != record.truth)
    weights = np.round(record.weights["labels"].astype(np.float64), 4)  # as on the page
    ranked = wrong[np.argsort(weights[wrong], kind="stable")]  # NaN comes last
    assert [row["example_id"] for row in rows] == [record.ids[place] for place in ranked]
    assert [row["label"] for row in rows] == [CLASSES[record.labels[place]] for place in ranked]
    assert {row["marked"] for row in rows} == {"0"}
    clear(page)
    select(page, "query", "HYPERLINK")
    assert [row["text"] for row in exported(page)] == ["'" + FORMULA]


def test_marked_rows_are_kept_and_exported(page):
    """A person ticks rows while looking through them, and takes these alone away."""
    boxes = page.locator("#rows tbody input")
    names = [boxes.nth(place).get_attribute("aria-label") for place in (0, 2)]
    for place in (0, 2):
        boxes.nth(place).check()
    page.check("#marked")
    sync_api.expect(page.locator("#count")).to_contain_text("2 of 300")
    rows = exported(page)
    assert [f"mark {row['example_id']}" for row in rows] == names
    assert {row["marked"] for row in rows} == {"1"}


def test_the_keyboard_reaches_every_row(page):
    """Tab leads to one row, the arrows and End to all others, Enter shows the row."""
    page.locator("#rows tbody button").first.focus()
    page.keyboard.press("ArrowDown")
    sync_api.expect(page.locator("#rows tr:focus-within")).to_have_attribute("aria-rowindex", "3")
    page.keyboard.press("End")
    sync_api.expect(page.locator("#rows tr:focus-within")).to_have_attribute("aria-rowindex", "301")
    page.keyboard.press("Enter")
    assert page.inner_text("#details h3") in ("Example row-298", "Example row-299")
    page.keyboard.press("Home")
    sync_api.expect(page.locator("#rows tr:focus-within")).to_have_attribute("aria-rowindex", "2")


def test_a_rule_leads_to_its_examples(page):
    """From the table of rules a name filters the examples."""
    page.click("[data-rule=rule_0]")
    votes = (toy_record().rules.votes[:, 0] >= 0).sum()
    assert page.inner_text("#count").startswith(f"{votes} of 300")


def test_dark_and_narrow(page):
    """In dark mode text is light on dark; at the width of a telephone nothing but the tables scrolls sideways."""
    page.emulate_media(color_scheme="dark")
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert sum(map(int, ink[4:-1].split(","))) > 600 > 150 > sum(map(int, paper[4:-1].split(",")))
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.slow
def test_a_hundred_thousand_rows(chromium, tmp_path):
    """Only rows in view are in the document, and filters answer at once."""
    path = write_report(toy_record(100_000), tmp_path / "report.html")
    page = chromium.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("#rows tbody tr")
    assert page.locator("#rows tbody tr").count() < 60
    page.focus("#query")
    times = []
    for field, value in (("query", "cat"), ("label", "plant"), ("rule", "rule_1"), ("from", "0.92")):
        started = time.perf_counter()
        select(page, field, value)
        times.append(time.perf_counter() - started)
    # 0.06 s of waiting for more keys and the driver's own time are in it, and a busy machine may take long once.
    assert min(times) < 0.5
    page.close()
