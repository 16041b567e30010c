"""The LiteLLM proxy in front of the server, asked by the official client: chat, stream, tools, form, messages."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from openai import OpenAI

from server import KEY, NAMED, SAYING, STEERING, URL, V1, Forecast

CONFIG = {
    "model_list": [
        {"model_name": "named", "litellm_params": {"model": f"openai/{NAMED}", "api_base": V1, "api_key": KEY}},
        {"model_name": "demo", "litellm_params": {"model": "openai/demo", "api_base": V1, "api_key": KEY}},
        {"model_name": "messages", "litellm_params": {"model": f"anthropic/{NAMED}", "api_base": URL, "api_key": KEY}},
    ],
    "litellm_settings": {"telemetry": False},
}
with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    config = Path(folder) / "config.yaml"
    config.write_text(json.dumps(CONFIG))
    program = Path(sys.executable).with_name("litellm")
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    master = f"sk-{secrets.token_hex(32)}"
    told = {**os.environ, "LITELLM_MASTER_KEY": master}
    proxy = subprocess.Popen(command, env=told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        there = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                if httpx.get(f"{there}/health/liveliness").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        client = OpenAI(base_url=f"{there}/v1", api_key=master, max_retries=0)
        said = client.chat.completions.create(model="named", messages=SAYING, max_tokens=12)
        assert said.choices[0].message.content is not None and said.usage.completion_tokens
        chunks = list(client.chat.completions.create(model="named", messages=SAYING, max_tokens=12, stream=True))
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        form = {"type": "json_schema", "json_schema": {"name": "f", "schema": Forecast.model_json_schema()}}
        said = client.chat.completions.create(
            model="demo", messages=SAYING, max_tokens=300, response_format=form, extra_body=STEERING
        )
        Forecast.model_validate_json(said.choices[0].message.content)
        tools = [{"type": "function", "function": {"name": "weather", "parameters": Forecast.model_json_schema()}}]
        said = client.chat.completions.create(
            model="named", messages=SAYING, max_tokens=300, tools=tools, tool_choice="required"
        )
        Forecast.model_validate_json(said.choices[0].message.tool_calls[0].function.arguments)
        said = client.chat.completions.create(model="messages", messages=SAYING, max_tokens=12)
        assert said.choices[0].message.content is not None
    finally:
        proxy.terminate()
        proxy.wait(30)
print("  chat, stream, form, tools, Anthropic's messages behind it")
