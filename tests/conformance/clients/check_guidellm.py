"""guidellm: loads of a few streams over chat and over text completions, steered by name and by a further field, with
functions that must be called and with a form; no request fails."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from server import KEY, NAMED, STEERING, URL, Forecast

PROGRAM = Path(sys.executable).with_name("guidellm")
FORM = {"type": "json_schema", "json_schema": {"name": "forecast", "schema": Forecast.model_json_schema()}}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def load(folder: str, route: str, body: dict[str, Any] | None = None, **data: Any) -> list[dict[str, Any]]:
    """The requests of a load, all of which were answered. ``body``: further fields; ``data``: how prompts are made."""
    out = Path(folder) / "out.json"
    backend = {"kind": "openai_http", "target": URL, "model": NAMED, "api_key": KEY, "request_format": route}
    if body is not None:
        backend |= {"model": "demo", "extras": {"body": body}}
    prompts = {"kind": "synthetic_text", "prompt_tokens": 16, "output_tokens": 8, **data}
    command = [
        str(PROGRAM), "run", "--disable-console",
        "--backend", json.dumps(backend),
        "--profile", "kind=concurrent,streams=3",
        "--constraint", "kind=max_requests,count=6",
        "--tokenizer", f"kind=hf_auto,model={os.environ['LADLE_TOKENIZER']}",
        "--data", json.dumps(prompts),
        "--output", f"kind=json,path={out}",
    ]  # fmt: skip
    subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True, timeout=900)
    (run,) = json.loads(out.read_text())["benchmarks"]
    requests: list[dict[str, Any]] = run["requests"]["successful"]
    assert len(requests) == 6 and not run["requests"]["errored"], run["metrics"]["request_totals"]
    print(f"  {route} {[*(body or ()), *data]}: 6 requests")
    return requests


with tempfile.TemporaryDirectory() as folder:
    for route, body in ((CHAT, None), (TEXT, None), (CHAT, STEERING)):
        # The tokens that were asked for came, although an end of the text may have been among them.
        counts = {request["output_metrics"]["text_tokens"] for request in load(folder, route, body)}
        assert counts == {8}, counts
    form = {**STEERING, "response_format": FORM, "ignore_eos": False, "max_tokens": 200, "max_completion_tokens": 200}
    for request in load(folder, CHAT, form):
        Forecast.model_validate_json(request["output"])
    called = load(folder, CHAT, STEERING, turns=2, tool_call_turns=[0])
    assert any(request["output_metrics"].get("tool_call_count") for request in called), called[0]
