"""The web page, driven in a real browser, over assistants with hand-written models."""

import re
from dataclasses import replace

import httpx
import pytest
from conftest import in_a_browser
from fakes import FakeRetriever, Typing, call, found, hit
from playwright.sync_api import expect

from kit.agent import Assistant
from kit.config import PROFILES, KitError
from kit.web import Visit, page, serve

PATIENCE = 90_000  # milliseconds; a busy machine of two cores took more than 15 s for an answer that streams
TRAP = 'The rent is <img src="http://elsewhere.test/a.png"> **48,000** [euros](http://elsewhere.test) a year.'


class Place:
    """A served page, the assistants that it made, and what the browser asked for."""

    def __init__(self, browser):
        self.browser, self.assistants, self.addresses = browser, [], []
        self.answer, self.thoughts, self.passage = "48,000", "The passage states it.", "The rent is 48,000 euros."

    def assistant(self):
        primary = Typing(*[call(f"rent {n}") for n in range(30)])
        reasoner = Typing(*[self.thoughts, found(self.answer, self.passage)] * 30)
        hits = [hit("a", self.passage)]
        profile = replace(PROFILES["ci"], stand_in=False)  # so each answer takes the three calls of `found`
        self.assistants.append(Assistant(profile, primary, reasoner, FakeRetriever(hits)))
        return self.assistants[-1]

    def open(self):
        """A page in a browser that knows nothing of the others."""
        opened = self.browser.new_context().new_page()
        opened.set_default_timeout(PATIENCE)
        opened.on("request", lambda request: self.addresses.append(request.url))
        opened.goto(self.url)
        opened.get_by_role("button", name="Ask", exact=True).wait_for()
        return opened


@pytest.fixture
def place(browser):
    place = Place(browser)
    blocks = page(place.assistant, ["What is the rent?"])
    place.url = serve(blocks)
    yield place
    for context in browser.contexts:
        context.close()
    blocks.close(verbose=False)


def ask(opened, question: str) -> None:
    opened.get_by_placeholder("Your question").fill(question)
    opened.get_by_placeholder("Your question").press("Enter")


def says(opened, text: str) -> None:
    opened.get_by_text(text, exact=True).first.wait_for()


@in_a_browser
def test_an_answer_streams_and_its_sources_open(place):
    place.thoughts = "The first sentence of the passage states the rent." + " It does." * 30
    opened = place.open()
    opened.get_by_role("button", name="What is the rent?").click()
    expect(opened.get_by_placeholder("Your question")).to_have_value("What is the rent?", timeout=PATIENCE)
    opened.get_by_role("button", name="Ask", exact=True).click()
    opened.get_by_text(re.compile("… The first sentence")).wait_for()  # what is written shows while it is written
    says(opened, "48,000")
    quote = opened.get_by_text("lease.pdf, page 1: “The rent is 48,000 euros”")
    assert not quote.is_visible()
    opened.get_by_text("sources and steps").click()
    quote.wait_for()
    opened.get_by_text("4 model calls").wait_for()
    assert all(address.startswith((place.url, "data:", "blob:")) for address in place.addresses)


@in_a_browser
def test_an_answer_is_stopped_and_the_next_is_made(place):
    place.thoughts = "word " * 400
    opened = place.open()
    ask(opened, "A long one?")
    opened.get_by_text(re.compile("… word word")).wait_for()
    opened.get_by_role("button", name="Stop").click()
    says(opened, "Stopped.")
    expect(opened.get_by_role("button", name="Ask", exact=True)).to_be_enabled(timeout=PATIENCE)
    place.assistants[0].reasoner.model.replies = ["Short.", *found("48,000", "48,000 euros")]
    ask(opened, "A short one?")
    says(opened, "48,000")


@in_a_browser
def test_the_passages_come_with_an_answer_where_they_are_wanted(place):
    opened = place.open()
    opened.get_by_label("context").check()
    ask(opened, "What is the rent?")
    opened.get_by_text("Passages").wait_for()


@in_a_browser
def test_clear_forgets_what_was_said(place):
    opened = place.open()
    ask(opened, "My secret is a blue clock.")
    says(opened, "48,000")
    opened.get_by_role("button", name="Clear", exact=True).last.click()
    expect(opened.get_by_text("48,000", exact=True)).to_have_count(0, timeout=PATIENCE)
    ask(opened, "What is my secret?")
    says(opened, "48,000")
    assert "blue clock" not in str(place.assistants[0].primary.asked[-1]["messages"])


@in_a_browser
def test_visitors_do_not_see_each_other(place):
    one, other = place.open(), place.open()
    ask(one, "My secret is a blue clock.")
    says(one, "48,000")
    ask(other, "What is my secret?")
    says(other, "48,000")
    assert "blue clock" not in other.content()
    assert len(place.assistants) == 2
    assert "blue clock" not in str(place.assistants[1].primary.asked)


@in_a_browser
def test_markup_is_text_and_nothing_in_it_is_fetched(place):
    place.passage = TRAP
    place.answer = "<b>48</b> **48** [48](http://elsewhere.test) ![48](http://elsewhere.test/b.png)"
    opened = place.open()
    question = "<script>window.caught = 1</script> <img src='http://elsewhere.test/c.png'>"
    ask(opened, question)
    says(opened, question)
    says(opened, place.answer)
    opened.get_by_text("sources and steps").click()
    opened.get_by_text("**48,000**").wait_for()
    assert not opened.evaluate("window.caught")
    assert not [address for address in place.addresses if "elsewhere" in address]
    assert opened.locator("a[href*=elsewhere]").count() == 0


@in_a_browser
def test_a_question_that_is_too_long_is_refused(place):
    opened = place.open()
    ask(opened, "a" * 100_000)
    opened.get_by_text("ask one of at most 4000").wait_for()


@pytest.mark.ollama  # it needs no model, but the minutes that opening twenty pages takes
@in_a_browser
def test_twenty_questions_at_once_are_all_answered(place):
    opened = [place.open() for _ in range(20)]
    for number, one in enumerate(opened):
        ask(one, f"Question {number}?")
    for one in opened:
        says(one, "48,000")
    asked = [assistant.primary.asked for assistant in place.assistants]
    assert len(asked) == 20 and all(len(requests) == 1 for requests in asked)


def test_one_question_at_a_time_and_none_that_is_empty():
    visit = Visit(Place(None).assistant())
    assert not visit.take("  ") and visit.take("first?") and not visit.take("second?")
    *_, last = visit.answer()
    assert last.answer == "48,000" and not visit.busy
    assert list(visit.answer()) == []


def test_a_question_is_given_up_while_it_waits():
    place = Place(None)
    visit = Visit(place.assistant())
    visit.take("first?")
    visit.stop()
    assert "was stopped" in str(*visit.answer())
    assert not place.assistants[0].primary.asked and visit.take("next?")


def test_whoever_leaves_stops_the_answer():
    place = Place(None)
    place.thoughts = "word " * 400
    visit = Visit(place.assistant())
    visit.take("first?")
    answer = visit.answer()
    next(answer)
    answer.close()
    assert not visit.busy and len(place.assistants[0].reasoner.model.asked) < 2


def test_another_name_of_this_machine_is_not_answered_to():
    """A web site may make its own name mean 127.0.0.1, and read what the page shows."""
    blocks = page(Place(None).assistant)
    try:
        address = serve(blocks)
        assert httpx.get(address, trust_env=False).status_code == 200
        assert httpx.get(address, headers={"Host": "evil.example"}, trust_env=False).status_code == 400
    finally:
        blocks.close(verbose=False)


def test_a_port_that_is_taken_is_named():
    blocks = page(Place(None).assistant)
    try:
        port = int(serve(blocks).rstrip("/").rsplit(":", 1)[1])
        with pytest.raises(KitError, match=f"port {port}.*another --port"):
            serve(page(Place(None).assistant), port)
    finally:
        blocks.close(verbose=False)
