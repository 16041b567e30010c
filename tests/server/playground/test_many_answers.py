"""What the page does beyond two answers: the grid, targets, the triangle, earlier answers, and answers that are out of
date or broke off."""

import dataclasses
import itertools
from collections.abc import Iterator

import pytest
from calibrations import identity_calibration
from playground_view import Page

from ladle.server.run import Service

HEADINGS = "return [...document.querySelectorAll('h1, h2, h3, h4')].map(one => Number(one.tagName[1]))"
SOUP = {"method": "bone_soup", "preference": {"positive": 0.5, "simple": 0.3, "concise": 0.2}}


@pytest.fixture
def calibrated(running: tuple[str, Service]) -> Iterator[str]:
    """The server's family with a calibration, as if one had been measured."""
    url, service = running
    (hosted,) = service.state.hosting.families.values()
    live = hosted.serving
    assert live is not None
    measured = dataclasses.replace(live.family, calibration=identity_calibration(live.family.objectives))
    hosted.serving = dataclasses.replace(live, family=measured)
    yield url
    hosted.serving = live


def test_the_grid_answers_under_five_preferences_and_the_base(page: Page, url: str) -> None:
    page.open(url, a=SOUP, max_tokens=6, temperature=0, seed=3)
    page.ready()
    page.one("#answer-grid").click()
    page.wait(lambda: page.one("#grid").get_attribute("data-state") == "done")
    titles = [cell.text for cell in page.all("#grid .cell h3")]
    assert titles[:4] == ["Base", "positive 1.00", "simple 1.00", "concise 1.00"] and len(titles) == 6
    assert all("6 tokens" in cell.text for cell in page.all("#grid .cell .hint"))
    assert "seed 3" in page.one("#grid-shared").text and not page.one("#grid-stale").is_displayed()
    page.one("#prompt").send_keys(" And?")
    assert page.one("#grid-stale").is_displayed()
    page.all("#grid .cell")[3].find_elements("css selector", "button")[1].click()
    assert page.shares("b") == {"positive": 0, "simple": 0, "concise": 100}
    assert page.complaints() == []


def test_an_answer_says_when_its_settings_have_changed_and_can_be_brought_back(page: Page, url: str) -> None:
    page.open(url, a=SOUP, b=SOUP, max_tokens=6)
    page.ready()
    page.one("#answer-both").click()
    page.finished()
    note = "#answer-a .stale-note"
    assert not page.one(note).is_displayed()
    page.sliders("a")[0].send_keys("\ue010")
    page.wait(lambda: page.one(note).is_displayed())
    assert not page.one("#answer-b .stale-note").is_displayed()
    page.one("#past summary").click()
    entries = page.all("#past-list li")
    assert len(entries) == 2 and "positive 0.50" in entries[0].text
    entries[0].find_element("css selector", "button").click()
    page.wait(lambda: page.shares("a") == {"positive": 50, "simple": 30, "concise": 20})
    assert "words" in page.one("#answer-a .meter").text and page.all("#answer-a .spark polyline")


def test_the_triangle_sets_weights(page: Page, url: str) -> None:
    page.open(url, a=SOUP)
    page.ready()
    box = page.one("#side-a .triangle svg")
    assert box.is_displayed()
    page.run(
        "const svg = arguments[0], box = svg.getBoundingClientRect();"
        "svg.setPointerCapture = () => {};"
        "svg.dispatchEvent(new PointerEvent('pointerdown', {clientX: box.left + box.width / 2, clientY: box.top + 2, "
        "pointerId: 1, buttons: 1}))",
        box,
    )
    assert page.shares("a")["concise"] == 100


def test_targets_of_a_calibrated_family(page: Page, calibrated: str) -> None:
    page.open(calibrated, a=SOUP, max_tokens=4)
    page.ready()
    assert page.all("#side-a .heat circle")
    page.one("#side-a .aim input").click()
    assert page.one("#side-a .targets").is_displayed() and not page.one("#side-a .preference").is_displayed()
    assert "\u2192" in page.one("#side-a .brief").text
    page.wait(lambda: page.all("#side-a .bars .bars-table"))
    page.one("#answer-a .toggle").click()
    page.wait(lambda: page.state("a") == "done")
    assert "target" in page.run("return decodeURIComponent(location.hash)")


def test_a_server_that_is_gone_is_told_and_asked_again(page: Page, url: str) -> None:
    page.open(url, a=SOUP, max_tokens=4)
    page.ready()
    page.run("window.real = window.fetch; window.fetch = async () => { throw new TypeError('Failed to fetch'); }")
    page.one("#answer-a .toggle").click()
    problem = page.wait(lambda: page.one("#answer-a .problem").text)
    assert "cannot be reached" in problem and "fetch" not in problem
    page.run("window.fetch = window.real")
    page.one("#answer-a .retry").click()
    page.wait(lambda: page.state("a") == "done")
    assert not page.one("#answer-a .retry").is_displayed()


def test_headings_skip_no_level(page: Page, url: str) -> None:
    page.open(url)
    page.ready()
    levels = page.run(HEADINGS)
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_what_experts_wrote_is_in_the_bars(page: Page, url: str) -> None:
    page.open(url, a={"method": "fusion_route"}, max_tokens=12, seed=5)
    page.ready()
    page.one("#answer-a .toggle").click()
    page.wait(lambda: page.state("a") == "done")
    rows = page.wait(lambda: page.all("#side-a .bars .bars-table tr"))
    shares = [float(row.find_element("css selector", ".number").text) for row in rows]
    assert len(shares) >= 2 and abs(sum(shares) - 1) < 0.02


ADDED = """
const real = window.fetch;
window.fetch = (path, options) => {
  if (!path.endsWith('v1/generate')) return real(path, options);
  const body = JSON.parse(options.body);
  Object.assign(body.steering, arguments[0]);
  return real(path, {...options, body: JSON.stringify(body)});
};
"""
SAID = """
const tokens = [['<think>', ''], ['They ', 'They '], ['ask.', 'ask.'], ['</think>', '']].map(([_, reasoning_content]) =>
  ({id: 5, text: '', logprob: -1, base_logprob: -1, shift: 0.1, expert: null, reasoning_content}));
tokens.push({id: 6, text: 'Yes.', logprob: -1, base_logprob: -1, shift: 0.1, expert: null});
const end = {seed: 1, choices: [{index: 0, finish_reason: 'stop', reasoning_content: 'They ask.'}],
  steering: {warnings: []}};
const real = window.fetch;
window.fetch = async (path, options) => {
  if (!path.endsWith('v1/generate')) return real(path, options);
  window.sent = JSON.parse(options.body);
  const events = [...tokens.map(token => ({index: 0, token})), end].map(one => `data: ${JSON.stringify(one)}\\n\\n`);
  return new Response(`${events.join('')}data: [DONE]\\n\\n`);
};
"""


def test_a_monitor_that_ended_an_answer_is_named(page: Page, url: str) -> None:
    page.open(url, a=SOUP, max_tokens=40, seed=2)
    page.ready()
    page.run(ADDED, {"monitor": {"value": "explicit-simple", "above": -1e6, "for": 4, "hold": 1}})
    page.one("#answer-a .toggle").click()
    page.wait(lambda: page.state("a") == "done")
    said = page.one("#answer-a .ended").text
    assert said.startswith("Stopped by monitor explicit-simple at token 4 (value "), said
    assert "monitor explicit-simple" in page.one("#compare").text and page.count("a") == 3


def test_a_thought_stands_apart_from_the_answer(page: Page, url: str) -> None:
    page.open(url, a=SOUP, thinking=128)
    page.ready()
    assert page.one("#thinking").get_attribute("value") == "128"
    page.run(SAID)
    page.one("#answer-a .toggle").click()
    page.wait(lambda: page.state("a") == "done")
    assert page.run("return window.sent.thinking") == {"budget": 128}
    assert page.one("#answer-a .thought").text == "They ask."
    assert page.run("return document.querySelector('#answer-a .thought').nextSibling.textContent") == "Yes."
    assert "1\u00a0words" in page.one("#answer-a .meter").get_attribute("textContent"), "the answer's alone"
    page.one("#answer-a .thought-toggle").click()
    assert not page.one("#answer-a .thought").is_displayed()
    assert page.one("#answer-a .thought-toggle").get_attribute("aria-expanded") == "false"
    page.one("#past summary").click()
    assert page.one("#past-list .past-text").text == "Yes."


def test_a_family_without_tags_refuses_a_thought_in_its_own_words(page: Page, url: str) -> None:
    page.open(url, a=SOUP, thinking="apart", max_tokens=4)
    page.ready()
    page.one("#answer-a .toggle").click()
    assert "thinking" in page.wait(lambda: page.one("#answer-a .problem").text)


def test_names_of_members_are_put_into_the_coefficients(page: Page, url: str) -> None:
    page.open(url, a=SOUP)
    page.ready()
    page.run("document.querySelectorAll('#side-a .more, #side-a .names').forEach(one => { one.open = true; })")
    field = page.one("#side-a [data-option=coefficients]")
    chips = page.all("#side-a .names .chip")
    assert len(chips) >= 3
    for chip in (chips[0], chips[1], chips[0]):
        chip.click()
    names = [chip.text for chip in chips[:2]]
    assert field.get_attribute("value") == f'{{"{names[0]}":0.1,"{names[1]}":0.1}}'
    page.wait(lambda: all(name in page.one("#side-a .bars").text for name in names))


def test_expected_rewards_show_where_the_sliders_stand(page: Page, calibrated: str) -> None:
    page.open(calibrated, a=SOUP)
    page.ready()
    page.run("document.querySelector('#side-a .front').open = true")
    assert "positive 0.50 \u00b7 simple 0.30 \u00b7 concise 0.20" in page.one("#side-a .front .hint").text
    place = "const one = document.querySelector('#side-a .front .dot'); return one.outerHTML"
    before = page.run(place)
    page.sliders("a")[0].send_keys("\ue010")
    assert page.run(place) != before
    found = page.browser.execute_async_script(
        """
        const [done] = arguments;
        import('/playground/front.js').then(({frontOf, expectedAt}) => done([
          frontOf([[0, 1], [0.5, 0.5], [0.4, 0.4], [1, 0], [0.2, 1]]),
          expectedAt([[1, 0], [0.5, 0.5], [0, 1]].map(([x, y]) => ({preference: {x, y}, quantiles: {x: x * x, y}})),
                     ['x', 'y'], {x: 0.75, y: 0.25}),
        ]));
        """
    )
    assert found == [[[0.2, 1], [0.5, 0.5], [1, 0]], {"x": 0.625, "y": 0.25}]


CHOSEN = """
const rank = document.querySelector('#rank');
rank.value = arguments[0];
rank.dispatchEvent(new Event('change'));
"""


def test_ranked_answers_stand_with_their_scores(page: Page, url: str) -> None:
    page.open(url, a=SOUP, b=SOUP, max_tokens=6, seed=4, rank="likelihood", answers=3)
    page.ready()
    assert page.one("#rank").get_attribute("value") == "likelihood" and not page.one("#ask-box").is_displayed()
    page.one("#answer-both").click()
    page.finished()
    rows = page.all("#answer-a .ranked li")
    scores = [float(row.find_element("css selector", ".score").text.replace("\u2212", "-")) for row in rows]
    assert len(rows) == 3 and scores == sorted(scores, reverse=True)
    said = page.run("return [...document.querySelectorAll('#answer-a .ranked .said')].map(one => one.textContent)")
    assert said[0] == page.text("a") and page.count("a") == 6
    assert page.text("b") == page.text("a"), "the same seeds"
    rows = page.run("return [...document.querySelectorAll('#compare tr')].map(one => one.textContent)")
    assert [row for row in rows if row.startswith("Tokens a second")] == ["Tokens a second\u2013\u2013"], "at once"
    page.run(CHOSEN, "ask")
    assert page.one("#ask-box").is_displayed()
    page.one("#rank-question").send_keys("Is it kind?")
    page.one("#answer-a .toggle").click()
    page.wait(lambda: page.state("a") == "done")
    assert "Is+it+kind" in page.run("return location.hash") and len(page.all("#answer-a .ranked li")) == 3
    page.run(CHOSEN, "")
    page.one("#answer-a .toggle").click()
    page.wait(lambda: page.state("a") == "done")
    assert not page.one("#answer-a .ranked").is_displayed() and not page.one("#answers-box").is_displayed()
    assert page.complaints() == []


def test_a_search_says_what_it_drew(page: Page, url: str) -> None:
    search = {"by": "likelihood", "until": 3, "draws": 2}
    page.open(url, a={**SOUP, "search": search}, max_tokens=6, seed=4)
    page.ready()
    page.one("#answer-a .toggle").click()
    page.wait(lambda: page.state("a") == "done")
    assert "12\u00a0drawn" in page.one("#answer-a .meter").get_attribute("textContent") and page.count("a") == 6


def test_a_thought_that_a_verifier_ended_says_so(page: Page, url: str) -> None:
    page.open(url, a=SOUP, thinking=512, verify=64)
    page.ready()
    assert page.one("#verify-box").get_attribute("hidden") is None
    page.run(SAID.replace("{warnings: []}", "{warnings: [], thoughts: [{index: 0, checks: 2, ended: 3}]}"))
    page.one("#answer-a .toggle").click()
    page.wait(lambda: page.state("a") == "done")
    assert page.run("return window.sent.thinking") == {"budget": 512, "verifier": {"every": 64}}
    assert page.one("#answer-a .ended").text == "The verifier ended the thought at token 3."
