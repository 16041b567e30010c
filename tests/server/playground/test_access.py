"""The page without a mouse, in both themes, on a phone, and where the server wants a key."""

import subprocess
import time
from pathlib import Path

import httpx
import pytest
from live_server import served
from playground_view import GUIDED, ROUTED, Page

from ladle.server.run import Service
from ladle.server.state import Phase

pytestmark = pytest.mark.slow

NAMELESS = """
return [...document.querySelectorAll('button, input, select, textarea, a, [role], summary, dialog pre')].filter(one =>
  one.checkVisibility() && !(one.ariaLabel || one.getAttribute('aria-labelledby') || one.labels?.length
  || (one.textContent ?? '').trim() || one.title || ['status', 'alert', 'tooltip'].includes(one.role)))
  .map(one => one.outerHTML)
"""
CONTRASTS = """
const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d',
  {willReadFrequently: true});
const over = (below, color) => {
  canvas.fillStyle = `rgb(${below.join(' ')})`; canvas.fillRect(0, 0, 1, 1);
  canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const light = rgb => rgb.map(one => one / 255).map(one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
  .reduce((sum, one, index) => sum + one * [0.2126, 0.7152, 0.0722][index], 0);
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const one = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !one.checkVisibility() || one.closest('.unseen, .skip, :disabled')) continue;
  const chain = [];
  for (let up = one; up; up = up.parentElement) chain.unshift(up);
  const below = chain.reduce((rgb, up) => over(rgb, getComputedStyle(up).backgroundColor), [255, 255, 255]);
  const [high, low] = [light(over(below, getComputedStyle(one).color)), light(below)].sort((a, b) => b - a);
  found.push([(high + 0.05) / (low + 0.05), one.className || one.tagName, walker.currentNode.data.slice(0, 20)]);
}
return found.sort((a, b) => a[0] - b[0]).slice(0, 3)
"""


def test_all_of_it_can_be_done_from_the_keyboard(page: Page, url: str) -> None:
    page.open(url, b=ROUTED, max_tokens=40)
    page.ready()
    tab, down, right, escape = "\ue004", "\ue015", "\ue014", "\ue00c"
    focused = "const one = document.activeElement; return one.id || one.className || one.name || one.tagName"
    reached, shown = [], set()
    page.keys(tab)
    assert page.run("return document.activeElement.textContent") == "Skip to the answers"
    for _ in range(60):
        page.keys(tab)
        reached.append(page.run(focused))
        shown.add(page.run("return getComputedStyle(document.activeElement).outlineStyle"))
        if reached[-1] == "toggle":
            break
    wanted = {"prompt", "seed", "locked", "answer-both", "method", "chip", "share"}
    assert wanted <= set(reached), reached
    assert sum(name == "BODY" for name in reached) == 0, "the focus is never lost"
    page.one("#prompt").send_keys("\ue009\ue007")  # control and enter
    page.finished()
    page.one("#answer-a .toggle").send_keys(tab)
    assert page.run("return document.activeElement.dataset.index") == "0", "an answer is one stop"
    page.wait(lambda: page.one("#inspector").is_displayed())
    first = page.one("#inspector").text
    page.keys(right)
    assert page.run("return document.activeElement.dataset.index") == "1"
    page.wait(lambda: page.one("#inspector").is_displayed() and page.one("#inspector").text != first)
    assert page.run("return document.activeElement.getAttribute('aria-describedby')") == "inspector"
    # Forty short tokens may fit on one line.
    page.run("Object.assign(document.querySelector('#answer-a .tokens').style, {width: '5em', wordBreak: 'break-all'})")
    line = "return document.activeElement.getClientRects()[0].top + scrollY"
    at = page.run(line)
    page.keys(down)
    assert page.run(line) > at, "the line below"
    page.keys("\ue010")
    assert page.run("return document.activeElement.dataset.index") == "39"
    page.keys(escape)
    page.wait(lambda: not page.one("#inspector").is_displayed())
    page.keys(tab)
    assert "toggle" in page.run(focused), "on to the other answer"


def test_it_can_be_read_in_both_themes_and_on_a_phone(page: Page, url: str) -> None:
    page.open(url, a=GUIDED, b=ROUTED, max_tokens=24, temperature=1.2)
    page.ready()
    page.one("#answer-both").click()
    page.finished()
    page.one("#side-a .more summary").click()
    papers = set()
    for theme in ("light", "dark"):
        page.run("document.querySelector(`#theme input[value=${arguments[0]}]`).click()", theme)
        papers.add(page.run("return getComputedStyle(document.body).backgroundColor"))
        for colours in ("shift", "expert"):
            page.run("document.querySelector(`#colours input[value=${arguments[0]}]`).click()", colours)
            assert page.one("#answer-b .tokens").get_attribute("data-colours") == colours
            time.sleep(0.2)  # transitions of colours
            worst = page.run(CONTRASTS)
            assert worst[0][0] >= 4.5, (theme, colours, worst)
    assert len(papers) == 2 and page.run("return localStorage.getItem('ladle-theme')") == "dark"
    assert page.run(NAMELESS) == []
    steps = (
        "return [...document.querySelectorAll('#answer-a .legend [data-shift]')]"
        ".map(one => getComputedStyle(one).backgroundColor)"
    )
    page.run("document.querySelector('#colours input[value=shift]').click()")
    assert len(set(page.run(steps))) == 6, "six steps, six colours"
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 780, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        page.run("document.querySelector('#theme input[value=auto]').click()")
        for opened in (False, True):
            page.run("document.querySelectorAll('.side').forEach(one => { one.open = arguments[0]; })", opened)
            assert page.run("return document.documentElement.scrollWidth") <= 360, "nothing sticks out"
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_controls_follow_the_method_and_refusals_are_the_servers_words(page: Page, url: str) -> None:
    page.open(url, a={"method": "base"}, b={"method": "nonsense"}, max_tokens=10)
    page.ready()
    assert "nonsense" in page.one("#notice").text
    family = httpx.get(f"{url}/v1/families/tiny").json()
    for name, method in family["methods"].items():
        entry = page.one(f"#side-a .method option[value={name}]")
        assert entry.is_enabled() == method["available"]
        assert method["available"] or method["reason"] in entry.get_attribute("textContent")
        if method["available"]:
            page.run("const one = document.querySelector('#side-a .method'); one.value = arguments[0]; "
                     "one.dispatchEvent(new Event('change'))", name)  # fmt: skip
            controls = {one.get_attribute("data-option") for one in page.all("#side-a .options [data-option]")}
            assert controls == set(method["options"]) - {"strength"} | {"search"}, name
            assert bool(page.all("#side-a .strengths input")) == ("strength" in method["options"])
            assert page.one("#side-a .preference").is_displayed() == (method["preference"] == "required")
    page.one("#side-a [data-preset=guided]").click()
    assert page.shares("a") == {"positive": 25, "simple": 25, "concise": 50}
    assert page.one("#side-a .method").get_attribute("value") == "mage"
    assert [one.get_attribute("value") for one in page.all("#side-a .strengths input[type=number]")] == ["1", "1"]
    body = {"prompt": "a", "max_tokens": 10**6, "steering": {"method": "base"}}
    page.run("document.querySelector('#max-tokens').value = 1000000; "
             "document.querySelector('#max-tokens').dispatchEvent(new Event('input'))")  # fmt: skip
    page.one("#answer-a .toggle").click()
    problem = page.wait(lambda: page.one("#answer-a .problem").text)
    refusal = httpx.post(f"{url}/v1/generate", json=body).json()["error"]["message"]
    words = "max_tokens: This model's maximum context length is"
    assert problem.startswith(words) and refusal.startswith(words)
    page.one("#side-a .more").get_attribute("open") or page.one("#side-a .more summary").click()
    page.one("#side-a [data-option=candidates]").send_keys("2000")
    page.wait(lambda: "steering.candidates: 2000 is not allowed" in page.one("#side-a .bars").text)


def test_it_waits_for_a_server_that_is_loading(page: Page, running: tuple[str, Service]) -> None:
    url, service = running
    service.state.phase = Phase.LOADING
    try:
        page.open(url)
        page.wait(lambda: "loading" in page.one("#notice").text)
        assert not page.one("#answer-both").is_enabled() and page.one("#prompt").is_displayed()
    finally:
        service.state.phase = Phase.READY
    page.ready()
    assert not page.one("#notice").is_displayed()


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(
    page: Page, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("grüße-secret\n")
    with served(folder, api_key_file=tmp_path / "keys", allow_trace=False) as (url, _):
        page.open(url, a=GUIDED, b={"method": "base"}, max_tokens=8)
        page.wait(lambda: page.one("#key-form").is_displayed())
        assert "no API key was given" in page.one("#key-reason").text
        page.one("#key").send_keys("wrong\ue007")
        page.wait(lambda: "the API key is not known" in page.one("#key-reason").text)
        page.one("#key").send_keys("grüße-secret\ue007")
        page.ready()
        assert not page.one("#key-form").is_displayed()
        page.one("#answer-both").click()
        page.finished()
        assert "no traces" in page.one("#notice").text, "a server that gives none is asked for none"
        kept = page.run("return [JSON.stringify({...localStorage}), location.href, document.cookie].join()")
        assert "secret" not in kept and page.run("return sessionStorage.length") == 1
        page.one("#side-a .show-code").click()
        assert "secret" not in page.one("#curl").text + page.one("#python").text
        monkeypatch.setenv("LADLE_API_KEY", "grüße-secret")
        done = subprocess.run(["bash", "-c", f"set -- {_without_curl(page.one('#curl').text)}; echo \"$4\""],
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert done.stdout.strip() == "Authorization: Bearer grüße-secret"
        page.one("#code-close").click()


def _without_curl(command: str) -> str:
    return command.removeprefix("curl ").replace("http", "", 1).partition(" ")[2].lstrip("\\\n ")
