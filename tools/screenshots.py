"""Pictures of the playground for the documents: `python tools/screenshots.py [URL]`.

Takes them of a server of the demo, one that runs or one of its own, at four widths, in the light and the dark theme.
Needs Chromium with its driver.
"""

import json
import sys
import tempfile
import time
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
SIZES = {390: 844, 1024: 768, 1440: 900, 1920: 1080}
STATE = {
    "family": "demo",
    "prompt": "What is a computer?",
    "temperature": "0",
    "max_tokens": "72",
    "seed": "7",
    "a": {"preference": {"positive": 0.8, "simple": 0.1, "concise": 0.1}},
    "b": {"preference": {"positive": 0.1, "simple": 0.1, "concise": 0.8}},
}
EXPERTS = {
    **STATE,
    "prompt": "Give this as JSON with the keys name, city and age: In Rome lives Anna, aged 43.",
    "a": {"method": "fusion_route"},
    "b": {"method": "base"},
}


def main(url: str | None) -> int:
    """Write the pictures; the exit status is 0."""
    sys.path.insert(0, str(ROOT / "tests" / "fixtures"))
    chromium = import_module("chromium").chromium
    from ladle.recipes.sweeps.server import serving

    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = nullcontext(url) if url else serving("demo", Path(folder) / "server.log")
        with source as address, chromium(Path(folder) / "profile", 1440, 900) as browser:
            for width, height in SIZES.items():
                for theme in ("light", "dark"):
                    take(
                        browser,
                        f"{address}/",
                        STATE,
                        (width, height),
                        theme,
                        IMAGES / f"playground-{width}-{theme}.png",
                    )
            take(browser, f"{address}/", EXPERTS, (1440, 900), "dark", IMAGES / "playground-experts.png")
    return 0


def take(browser: Any, url: str, state: dict[str, Any], size: tuple[int, int], theme: str, file: Path) -> None:
    """One picture of the page once both answers are there."""
    width, height = size
    # The window's own minimum is wider than a telephone: the page is told its size directly.
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    fragment = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in state.items()}
    browser.get("about:blank")
    browser.get(f"{url}#{urlencode(fragment, quote_via=quote)}")
    wait(browser, "return !document.querySelector('#answer-both').disabled")
    browser.execute_script(
        "document.querySelector(`input[name=theme][value=${arguments[0]}]`).click();"
        "document.querySelector('#answer-both').click()",
        theme,
    )
    wait(browser, "return ['a','b'].every(s => document.querySelector(`#answer-${s}`).dataset.state === 'done')")
    browser.execute_script("document.activeElement.blur()")
    time.sleep(0.3)
    browser.save_screenshot(str(file))
    print(file.relative_to(ROOT))


def wait(browser: Any, condition: str, seconds: float = 180) -> None:
    """Until a script says so."""
    until = time.monotonic() + seconds
    while not browser.execute_script(condition):
        if time.monotonic() > until:
            raise SystemExit(f"waited in vain for: {condition}")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else None))
