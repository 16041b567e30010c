"""Answers that are steered from the page while they are written."""

import time
from typing import Any

import pytest
from playground_view import Page, metric

from ladle.server.run import Service

pytestmark = pytest.mark.slow
SOUP = {"method": "bone_soup", "preference": {"positive": 1.0, "simple": 0.0, "concise": 0.0}}
END, HOME = "\ue010", "\ue011"
CHANGES = "ladle_steering_changes_total"
LONG: dict[str, Any] = {"a": SOUP, "b": SOUP, "max_tokens": 2500, "temperature": 0, "live": "yes"}


def begun(page: Page, side: str) -> None:
    page.one(f"#answer-{side} .toggle").click()
    page.wait(lambda: page.count(side) > 5)


def stopped(page: Page, side: str) -> None:
    if page.state(side) == "running":
        page.one(f"#answer-{side} .toggle").click()
    page.wait(lambda: page.state(side) != "running")


def requests(page: Page) -> list[dict[str, Any]]:
    return page.run("return window.steered")


@pytest.fixture
def watched(page: Page, url: str) -> Page:
    """The page with long answers, which keeps what it sends to steer them and what came back."""
    page.open(url, **LONG)
    page.ready()
    page.run(
        """
        const real = window.fetch;
        window.steered = [];
        window.fetch = async (path, options) => {
          const reply = await real(path, options);
          if (!path.endsWith('/steering')) return reply;
          const kept = {body: JSON.parse(options.body), reply: await reply.clone().json(), status: reply.status};
          window.steered.push(kept);
          return reply;
        };
        """
    )
    return page


def test_a_slider_steers_the_running_answer(watched: Page) -> None:
    page = watched
    begun(page, "a")
    page.sliders("a")[2].send_keys(END)
    page.wait(lambda: page.all("#answer-a .part"))
    (sent,) = requests(page)
    assert sent["body"] == {"steering": {"preference": {"positive": 0, "simple": 0, "concise": 1}}}, "what changed"
    assert sent["status"] == 200 and page.state("a") == "running"
    mark = page.one("#answer-a .part")
    assert mark.text.endswith("concise 1.00") and mark.get_attribute("aria-hidden") == "true"
    at = sent["reply"]["tokens"][0]
    following = page.run("return arguments[0].nextElementSibling.dataset.index", mark)
    assert int(following) == at, "the mark stands where the part began"
    page.wait(lambda: f"from token {at} on" in page.one("#answer-a .steered").text)
    assert not page.one("#answer-a .stale-note").is_displayed(), "the answer goes by the settings as they are"
    assert page.all("#answer-b .part") == [] and page.state("b") == "idle", "the other side is left alone"

    # A burst of moves is one change, by where the slider came to rest.
    page.sliders("a")[0].send_keys(HOME, *["\ue014"] * 30)
    page.wait(lambda: len(page.all("#answer-a .part")) == 2)
    assert requests(page)[1]["body"]["steering"]["preference"]["positive"] == 0.3 and len(requests(page)) == 2
    # The token's card says it too.
    # Text that comes in may scroll, which hides the card: it is asked for until it stays.
    again = "document.activeElement.blur(); arguments[0].nextElementSibling.focus()"
    marked = page.one("#answer-a .part")
    page.wait(lambda: "From here on" in page.one("#inspector").text or page.run(again, marked))
    page.run("document.activeElement.blur()")
    stopped(page, "a")
    assert page.complaints() == []


def test_a_steered_answer_is_remembered_with_its_parts(page: Page, url: str) -> None:
    page.open(url, **{**LONG, "max_tokens": 500})
    page.ready()
    begun(page, "a")
    page.sliders("a")[1].send_keys(END)
    page.wait(lambda: page.state("a") == "done", seconds=120)
    at = page.run("return document.querySelector('#answer-a .part')?.nextElementSibling.dataset.index")
    assert at is not None, "it was steered before it ended"
    page.one("#past summary").click()
    head = page.one("#past-list li .past-head").text
    assert "positive 1.00" in head and f"from token {at} on simple 1.00" in head, head


def test_without_the_switch_nothing_is_sent_until_it_is_asked_for(watched: Page) -> None:
    page = watched
    page.one("#live").click()
    begun(page, "b")
    page.sliders("b")[1].send_keys(END)
    offer = "#answer-b .steer"
    page.wait(lambda: page.one(offer).is_displayed())
    assert requests(page) == [] and page.all("#answer-b .part") == []
    page.one(offer).click()
    page.wait(lambda: page.all("#answer-b .part"))
    assert len(requests(page)) == 1
    page.wait(lambda: not page.one("#answer-b .stale-note").is_displayed())
    # Turned on, it follows at once what was moved before.
    page.sliders("b")[2].send_keys(END)
    page.wait(lambda: page.one(offer).is_displayed())
    page.one("#live").click()
    page.wait(lambda: len(page.all("#answer-b .part")) == 2)
    stopped(page, "b")
    assert page.complaints() == []


def test_a_change_for_an_answer_that_was_begun_anew_is_forgotten(watched: Page) -> None:
    page = watched
    begun(page, "a")
    page.run(
        "const one = document.querySelectorAll('#side-a .preference input')[1]; one.value = 100;"
        "one.dispatchEvent(new Event('input')); document.querySelector('#answer-both').click()"
    )
    time.sleep(0.5)  # longer than controls have to rest
    page.wait(lambda: page.count("a") > 5)
    assert requests(page) == [] and page.one("#answer-a .steered").text == ""
    page.one("#stop-both").click()
    page.wait(lambda: "running" not in (page.state("a"), page.state("b")))


def test_what_cannot_be_is_said_and_the_answer_goes_on(watched: Page, running: tuple[str, Service]) -> None:
    page, (_, service) = watched, running
    settings = service.state.settings
    service.state.settings = settings.model_copy(update={"max_steering_changes": 1})
    try:
        begun(page, "a")
        page.sliders("a")[1].send_keys(END)
        page.wait(lambda: page.all("#answer-a .part"))
        page.sliders("a")[2].send_keys(END)
        page.wait(lambda: "allowed: 1 times" in page.one("#answer-a .steered").text)
        assert page.state("a") == "running" and page.one("#answer-a .stale-note").is_displayed()
        assert not page.one("#answer-a .steer").is_displayed(), "what would be refused is not offered"
        page.sliders("a")[0].send_keys(END)
        before = page.count("a")
        page.wait(lambda: page.count("a") > before + 20 or page.state("a") != "running")
        assert len(requests(page)) == 2 and len(page.all("#answer-a .part")) == 1
        stopped(page, "a")
    finally:
        service.state.settings = settings
    # The server's own words, where it refuses one change; the next one is taken.
    begun(page, "b")
    changes = metric(running[0], CHANGES)
    page.run("document.querySelector('#side-b .more').open = true")
    field = page.one("#side-b [data-option=coefficients]")
    field.send_keys('{"nobody": 1}')
    page.wait(lambda: "nobody" in page.one("#answer-b .steered").text)
    assert "refused" in page.one("#answer-b .steered").get_attribute("class") and page.state("b") == "running"
    assert metric(running[0], CHANGES) == changes
    page.run("arguments[0].value = ''; arguments[0].dispatchEvent(new Event('input'))", field)
    page.sliders("b")[1].send_keys(END)
    page.wait(lambda: page.all("#answer-b .part"))
    stopped(page, "b")


def test_a_server_of_several_replicas_says_that_it_cannot(page: Page, url: str) -> None:
    page.open(url, **LONG)
    page.ready()
    page.run(
        "const real = window.fetch; window.fetch = async (path, options) => path.endsWith('/steering')"
        " ? new Response(JSON.stringify({error: {message: 'steer it by a schedule', code: 'not_here'}}), {status: 404})"
        "  : real(path, options)"
    )
    begun(page, "a")
    page.sliders("a")[1].send_keys(END)
    page.wait(lambda: "by a schedule" in page.one("#answer-a .steered").text)
    assert page.state("a") == "running" and not page.one("#answer-a .steer").is_displayed()
    stopped(page, "a")


def test_what_a_change_says(page: Page, url: str) -> None:
    """Only what is new is sent; what cannot be taken back is told."""
    page.open(url)
    page.ready()
    cases = [
        [{"method": "m", "preference": {"x": 1}}, {"method": "m", "preference": {"x": 0}, "trace": True}, None],
        [{"method": "m", "strength": 2}, {"method": "m"}, 1],
        [{"method": "m", "kl_budget": 2, "trace": True}, {"method": "m"}, None],
        [{"method": "m", "kl_budget": 2}, {"method": "n", "alpha": 1}, None],
        [{"method": "m", "preference": {"x": 1}}, {"method": "m", "target": {"x": 1}}, None],
        [{"method": "m", "preference": {"x": 1}}, {"method": "n"}, None],
        [{"method": "m", "preference": {"x": 1}, "terms": []}, {"method": "m", "preference": {"x": 1}}, None],
    ]
    found = page.browser.execute_async_script(
        "const [cases, done] = arguments;"
        "import('/playground/live.js').then(({changeOf}) => done(cases.map(one => changeOf(...one))))",
        cases,
    )
    assert found == [
        {"change": {"preference": {"x": 0}}, "kept": []},
        {"change": {"strength": 1}, "kept": []},
        {"change": {}, "kept": ["kl_budget"]},
        {"change": {"method": "n", "alpha": 1}, "kept": []},
        {"change": {"target": {"x": 1}}, "kept": []},
        {"change": {"method": "n"}, "kept": ["preference"]},
        {"change": {"preference": {"x": 1}}, "kept": []},
    ]
