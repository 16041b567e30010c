"""Simon Willison's llm: prompts, streams, schemas and functions, with the server among its OpenAI-compatible models, as
a user adds one: a file."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from server import KEY, NAMED, V1, Forecast

with tempfile.TemporaryDirectory() as folder:
    entry = {"model_id": "ladle", "model_name": NAMED, "api_base": V1, "api_key_name": "ladle",
             "supports_schema": True, "supports_tools": True}  # fmt: skip
    # JSON is YAML.
    (Path(folder) / "extra-openai-models.yaml").write_text(json.dumps([entry]))
    (Path(folder) / "keys.json").write_text(json.dumps({"ladle": KEY}))
    told = {**os.environ, "LLM_USER_PATH": folder}

    def llm(*words: str) -> str:
        command = [str(Path(sys.executable).with_name("llm")), *words]
        found = subprocess.run(command, env=told, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
        assert found.returncode == 0, found.stderr
        return found.stdout

    llm("-m", "ladle", "-o", "max_tokens", "12", "Tell me about rain.")
    llm("-m", "ladle", "-o", "max_tokens", "12", "--no-stream", "-s", "Be kind.", "And snow?")
    schema = json.dumps(Forecast.model_json_schema())
    print("  ", Forecast.model_validate_json(llm("-m", "ladle", "--schema", schema, "Will it rain?")))
    # It has no way to say that a function must be called, and none for further fields: the model's name steers.
    function = "def weather(town: str) -> str:\n    return town + ' is wet'\n"
    for streamed in ((), ("--no-stream",)):
        llm("-m", "ladle", "-o", "max_tokens", "40", *streamed, "--functions", function, "Will it rain in Bath?")
