"""Pictures of the playground for the documents: `python tools/screenshots.py [URL]`.

Takes them of a server of the demo, one that runs or one of its own, at four widths, in the light and the dark theme,
and an animated one of a slider that is moved while an answer is written. Needs Chromium with its driver; without it
the pictures stay as they are.
"""

import io
import json
import shutil
import sys
import tempfile
import time
from contextlib import nullcontext
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from PIL import Image

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
LIVE = {
    **STATE,
    "prompt": "Tell me about the sea.",
    "max_tokens": "110",
    "live": "yes",
    "a": {"preference": {"positive": 0, "simple": 1, "concise": 0}},
    "b": {"preference": {"positive": 0, "simple": 1, "concise": 0}},
}
LIVE_SIZE = (1440, 820)
LONGEST = 0.12
"""Seconds that a frame is shown at most: the page writes more slowly while pictures are taken of it."""
COLOURS = 256
MOVES = [(24, 0.0, 1.0), (72, 1.0, 0.0)]
"""(tokens of A, from where, to where): when its slider `positive` is moved."""
STEPS = 4


def main(url: str | None) -> int:
    """Write the pictures; the exit status is 0."""
    if not shutil.which("chromedriver"):
        print("no Chromium with its driver is installed: the pictures stay as they are")
        return 0
    sys.path.insert(0, str(ROOT / "tests" / "fixtures"))
    chromium = import_module("chromium").chromium
    from ladle.recipes.sweeps.server import serving

    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = nullcontext(url) if url else serving("demo", Path(folder) / "server.log")
        with source as address, chromium(Path(folder) / "profile", 1440, 900) as browser:
            for width, height in SIZES.items():
                for theme in ("light", "dark"):
                    file = IMAGES / f"playground-{width}-{theme}.png"
                    take(browser, f"{address}/", STATE, (width, height), theme, file)
            take(browser, f"{address}/", EXPERTS, (1440, 900), "dark", IMAGES / "playground-experts.png")
            film(browser, f"{address}/", IMAGES / "playground-live.gif")
    return 0


def take(browser: Any, url: str, state: dict[str, Any], size: tuple[int, int], theme: str, file: Path) -> None:
    """One picture of the page once both answers are there."""
    show(browser, url, state, size, theme)
    browser.execute_script("document.querySelector('#answer-both').click()")
    wait(browser, "return ['a','b'].every(s => document.querySelector(`#answer-${s}`).dataset.state === 'done')")
    browser.execute_script("document.activeElement.blur()")
    time.sleep(0.3)
    save([(picture(browser, size), 0)], file)


def film(browser: Any, url: str, file: Path) -> None:
    """Two answers that begin the same, and a slider of one that is moved while they are written."""
    show(browser, url, LIVE, LIVE_SIZE, "light")
    browser.execute_script("document.querySelector('#answer-both').click()")
    frames: list[tuple[Image.Image, float]] = []
    waiting = list(MOVES)
    way: list[float] = []
    until = time.monotonic() + 60
    while time.monotonic() < until:
        frames.append((picture(browser, LIVE_SIZE), time.monotonic()))
        count, state = browser.execute_script(
            "return [document.querySelectorAll('#answer-a [role=option]').length, "
            "['a', 'b'].every(s => document.querySelector(`#answer-${s}`).dataset.state === 'done')]"
        )
        if state:
            break
        if not way and waiting and count >= waiting[0][0]:
            _, start, end = waiting.pop(0)
            way = [start + (end - start) * step / STEPS for step in range(1, STEPS + 1)]
        if way:
            browser.execute_script(
                "const one = document.querySelector('#side-a .preference input'); one.value = 100 * arguments[0];"
                "one.dispatchEvent(new Event('input'))",
                way.pop(0),
            )
    frames.append((picture(browser, LIVE_SIZE), time.monotonic()))
    save([*frames, frames[-1]], file)


def show(browser: Any, url: str, state: dict[str, Any], size: tuple[int, int], theme: str) -> None:
    """The page as it is before it is asked."""
    width, height = size
    # The window's own minimum is wider than a telephone: the page is told its size directly.
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    fragment = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in state.items()}
    browser.get("about:blank")
    browser.get(f"{url}#{urlencode(fragment, quote_via=quote)}")
    wait(browser, "return !document.querySelector('#answer-both').disabled")
    browser.execute_script("document.querySelector(`input[name=theme][value=${arguments[0]}]`).click()", theme)


def picture(browser: Any, size: tuple[int, int]) -> Image.Image:
    """What is seen."""
    image = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    assert image.size == size, image.size
    return image


def save(frames: list[tuple[Image.Image, float]], file: Path) -> None:
    """One picture, or an animated one of frames and the times, in seconds, at which they are shown: small files, in a
    palette of their own."""
    if len(frames) == 1:
        frames[0][0].quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
    else:
        palette = beside([image for image, _ in frames[:: len(frames) // 4 + 1]]).quantize(COLOURS)
        pictures = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image, _ in frames[:-1]]
        lasts = [round(1000 * min(LONGEST, after - time)) for (_, time), (_, after) in pairwise(frames)]
        lasts[-1] = 3000  # what it came to
        pictures[0].save(file, save_all=True, append_images=pictures[1:], duration=lasts, loop=0, optimize=True)
    print(f"{file.relative_to(ROOT)}  {file.stat().st_size / 1024:.0f} KiB", flush=True)


def beside(images: list[Image.Image]) -> Image.Image:
    """One picture of several of the same size."""
    width, height = images[0].size
    joined = Image.new("RGB", (width * len(images), height))
    for place, image in enumerate(images):
        joined.paste(image, (place * width, 0))
    return joined


def wait(browser: Any, condition: str, seconds: float = 180) -> None:
    """Until a script says so."""
    until = time.monotonic() + seconds
    while not browser.execute_script(condition):
        if time.monotonic() > until:
            raise SystemExit(f"waited in vain for: {condition}")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else None))
