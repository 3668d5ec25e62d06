"""The report page as a file: it holds the run, asks for nothing, and has a name for everything."""

import html.parser
import json
from dataclasses import replace

import numpy as np
import pytest
from toy_run import BREAKOUT, FORMULA, SCRIPT, toy_record

from amal_hf.report import page_data, rule_table, shown, write_report


RESULTS = [
    {"name": "labels <only>", "test": 0.5, "test_interval": (0.4, 0.6)},
    {"name": "amal", "test": 0.75, "test_interval": (0.7, 0.8), "seconds": 12},
]


class Parts(html.parser.HTMLParser):
    """Tags with their attributes, and what stands in each script."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts, self.inside = [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data

    def handle_endtag(self, tag):
        self.inside = None


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_report(toy_record(), tmp_path_factory.mktemp("page") / "report.html", RESULTS)


@pytest.fixture(scope="module")
def parts(written):
    return Parts(written.read_text(encoding="utf-8"))


def test_the_data_come_back_as_they_are(parts):
    """Two scripts, the data and the page's own; hostile rows neither end the block early nor add a third."""
    assert len(parts.scripts) == 2
    assert json.loads(parts.scripts[0]) == json.loads(json.dumps(page_data(toy_record())))
    assert json.loads(parts.scripts[0])["texts"]["text"][:3] == [SCRIPT, BREAKOUT, FORMULA]


def test_nothing_is_fetched(parts):
    """The page opens from disk on a machine without network: no link, script or image of another file."""
    places = [attrs[name] for _, attrs in parts.tags for name in ("src", "href", "action") if attrs.get(name)]
    assert places
    assert all(place.startswith(("data:image/png;base64,", "#")) for place in places)
    policy = next(a["content"] for _, a in parts.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_every_control_has_a_name(parts):
    """A screen reader announces fields by their labels and pictures by their texts."""
    assert all(attrs.get("alt") for tag, attrs in parts.tags if tag == "img")
    assert ("html", {"lang": "en"}) in parts.tags
    labels = sum(tag == "label" for tag, _ in parts.tags)
    assert labels == sum(tag in ("input", "select") for tag, _ in parts.tags) == 8


def test_columns_hold_the_run():
    """What is unknown is null, classes are numbers into their names, a rule lists only the rows it votes on."""
    record = toy_record()
    data = page_data(record)
    assert data["labels"] == record.labels.tolist()
    assert data["numbers"]["weight: labels"][-1] is None
    np.testing.assert_allclose(data["numbers"]["weight: teacher"], record.weights["teacher"], atol=1e-4)
    rebuilt = np.full_like(record.rules.votes, -1)
    for rule, (rows, votes) in enumerate(zip(data["rules"]["rows"], data["rules"]["votes"], strict=True)):
        rebuilt[rows, rule] = votes
    np.testing.assert_array_equal(rebuilt, record.rules.votes)


def test_bad_rules_come_first():
    """The table of rules begins with the least believed, which here are the least right."""
    table = rule_table(toy_record())
    assert [row["name"] for row in table] == ["rule_1", "rule_3", "rule_0", "rule_2"]
    precision = [float(row["precision"]) for row in table]
    assert precision == sorted(precision)


def test_a_run_with_nothing_but_weights_has_a_page(tmp_path):
    """Regression, streams and custom data have no classes, rules or texts; the page then leaves these out."""
    record = toy_record(20)
    record.classes, record.labels, record.truth, record.guesses, record.student = [], None, None, None, None
    record.rules, record.texts, record.teachers, record.log_history = None, {}, {}, []
    page = write_report(record, tmp_path / "report.html").read_text(encoding="utf-8")
    data = json.loads(Parts(page).scripts[0])
    assert data["labels"] is data["rules"] is None
    assert 'id="rules"' not in page


def test_values_are_shown_for_people():
    """Four digits of a number, thousands marked, intervals in words, nothing for what is not known."""
    values = [0.123456, float("nan"), None, 12345, (0.5, 0.75), True, "word"]
    assert [shown(value) for value in values] == ["0.1235", "", "", "12,345", "0.5 to 0.75", "True", "word"]


def test_long_ids_stay_exact():
    """A browser has 53 bits for a number; an id of more comes as text, so that an export can be joined back."""
    record = replace(toy_record(), ids=[2**53 + 1, 2**53 - 1, "a"])
    assert page_data(record)["ids"] == ["9007199254740993", 2**53 - 1, "a"]
