"""openai-python against a server process."""

import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch
from seeds import fresh_seed
from server_process import Server, serve_family
from transformers import AutoModelForCausalLM

from ladle.merging.family.family import load_family
from ladle.merging.merges.export import export

MESSAGES: list = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Tell me about rain."}]
ENDLESS: dict = {"logit_bias": {"2": -100, "0": -100}}
"""No token that ends a text."""


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.v1, api_key=server.key, max_retries=0, timeout=60) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    options: dict = {"messages": MESSAGES, "max_tokens": 12, "seed": 5, "logprobs": True, "top_logprobs": 2, **ENDLESS}
    reply = client.chat.completions.create(model="demo/bone_soup@positive=.8,simple=.2", n=2, **options)
    assert reply.object == "chat.completion" and len(reply.choices) == 2
    choice = reply.choices[0]
    assert choice.finish_reason == "length" and choice.message.role == "assistant" and choice.message.content
    assert choice.logprobs is not None and choice.logprobs.content is not None and len(choice.logprobs.content) == 12
    token = choice.logprobs.content[0]
    assert len(token.top_logprobs) == 2 and token.logprob <= token.top_logprobs[0].logprob <= 0
    assert token.bytes is not None and bytes(token.bytes).decode("utf-8", "replace") == token.token
    assert reply.usage is not None and reply.usage.completion_tokens == 24
    assert reply.usage.prompt_tokens_details is not None and reply.system_fingerprint and reply._request_id
    assert reply.steering["preference"] == {"positive": 0.8, "simple": 0.2, "concise": 0}  # type: ignore[attr-defined]
    again = client.chat.completions.create(model="demo/bone_soup@positive=.8,simple=.2", **options)
    assert again.choices[0].message.content == choice.message.content, "the same seed"


def test_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=4, **ENDLESS)
    message = reply.choices[0].message
    for answer in (message, message.model_dump()):
        again = [*MESSAGES, answer, {"role": "user", "content": "And snow?"}]
        assert client.chat.completions.create(model="demo", messages=again, max_tokens=4).choices


def test_streamed_chat_is_the_whole_chat(client: openai.OpenAI) -> None:
    options: dict = {"model": "demo", "messages": MESSAGES, "max_tokens": 12, "seed": 5, **ENDLESS}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    # What is cached differs from the first time to the second.
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-1].steering["method"] == whole.steering["method"]  # type: ignore[attr-defined]


def test_the_streaming_helper_puts_the_answer_together(client: openai.OpenAI) -> None:
    # It insists on an answer that ended by itself: no length limit.
    with client.chat.completions.stream(model="demo", messages=MESSAGES, stop=["a", "e", "i", "o"], seed=3) as helper:
        pieces = [event.delta for event in helper if event.type == "content.delta"]
        choice = helper.get_final_completion().choices[0]
    assert choice.finish_reason == "stop" and choice.message.content == "".join(pieces)
    assert not any(vowel in choice.message.content for vowel in "aeio")


def test_completions(client: openai.OpenAI) -> None:
    options: dict = {"model": "demo/rewarded_soup@simple=1", "max_tokens": 6, "seed": 1, **ENDLESS}
    reply = client.completions.create(prompt=["the rain", "the sea"], logprobs=1, n=2, **options)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and len(logprobs.tokens) == 6
    chunks = list(client.completions.create(prompt=[5, 6, 7], stream=True, **options))
    whole = client.completions.create(prompt=[5, 6, 7], **options)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    stopped = client.completions.create(prompt=[5, 6, 7], stop=[whole.choices[0].text[2:4]], **options)
    assert stopped.choices[0].finish_reason == "stop" and stopped.choices[0].text == whole.choices[0].text[:2]


def test_an_echo_says_how_likely_the_prompt_is(client: openai.OpenAI) -> None:
    text = "the rain in the garden"
    reply = client.completions.create(model="demo", prompt=text, echo=True, logprobs=0, max_tokens=0)
    (choice,) = reply.choices
    assert choice.text == text and choice.finish_reason == "length"
    assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
    first, *others = choice.logprobs.token_logprobs
    assert first is None and others and all(value < 0 for value in others)
    assert reply.usage is not None and reply.usage.completion_tokens == 0
    assert reply.usage.prompt_tokens == 1 + len(others)


def test_an_echo_is_what_transformers_says_of_the_merged_model(
    client: openai.OpenAI, server: Server, tmp_path: Path
) -> None:
    """Of a prompt longer than a step, twice: what is cached by then must not be missing."""
    rng = random.Random(fresh_seed())
    preference = {name: rng.uniform(0.1, 1) for name in ("positive", "simple", "concise")}
    model = "demo/bone_soup@" + ",".join(f"{name}={weight}" for name, weight in preference.items())
    body, headers = {"model": model}, {"Authorization": f"Bearer {server.key}"}
    coefficients = httpx.post(f"{server.v1}/coefficients", json=body, headers=headers).json()["coefficients"]
    folder = export(load_family(server.root), coefficients, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = [rng.randrange(3, 300) for _ in range(700)]
    with torch.inference_mode():
        table = torch.log_softmax(merged(torch.tensor([ids])).logits[0], dim=-1)
    expected = table[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    for _ in range(2):
        reply = client.completions.create(model=model, prompt=ids, echo=True, logprobs=1, max_tokens=1, temperature=0)
        found = reply.choices[0].logprobs
        assert found is not None and found.token_logprobs is not None and found.top_logprobs is not None
        first, *said, last = found.token_logprobs
        assert first is None and torch.tensor(said).sub(expected).abs().max() < 1e-4
        assert last == pytest.approx(float(table[-1].max()), abs=1e-4)
        best = torch.tensor([max(top.values()) for top in found.top_logprobs[1:]])
        assert best.sub(table.max(dim=-1).values).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["bone_soup", "mage"])
def test_steering_goes_into_extra_body(client: openai.OpenAI, method: str) -> None:
    steering = {"method": method, "preference": {"positive": 1}, "trace": True}
    options: dict = {"messages": MESSAGES, "max_tokens": 3, "seed": 4, "temperature": 0}
    extra = {"steering": steering, "top_k": 5, "min_p": 0.01}
    reply = client.chat.completions.create(model="demo", extra_body=extra, **options)
    given = reply.steering  # type: ignore[attr-defined]
    assert given["method"] == method and given["diagnostics"]["tokens"] == reply.usage.completion_tokens  # type: ignore[union-attr]
    named = client.chat.completions.create(model=f"demo/{method}@positive=1", **options)
    assert named.steering["coefficients"] == given["coefficients"]  # type: ignore[attr-defined]
    assert named.choices[0].message.content == reply.choices[0].message.content


def test_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {"demo", "demo/bone_soup", "demo/mage", "cheerful"} <= set(names)
    for name in ["demo", "cheerful", "demo/bone_soup@positive=1"]:
        assert client.models.retrieve(name).id == name


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="demo", messages=MESSAGES, temperature=3)
    assert bad.value.param == "temperature" and bad.value.code == "invalid_value"
    assert bad.value.type == "invalid_request_error" and bad.value.request_id
    with pytest.raises(openai.BadRequestError) as steering:
        client.completions.create(model="demo", prompt="a", extra_body={"steering": {"preference": {"happy": 1}}})
    assert steering.value.param == "steering.preference.happy", steering.value.message
    assert "positive" in steering.value.message
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert missing.value.code == "model_not_found" and "demo" in missing.value.message
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="demo", input="a")


def test_an_echo_that_cannot_be_is_refused_by_name(client: openai.OpenAI) -> None:
    model = "demo"
    for steering in ({"method": "mage", "value": "explicit"}, {"method": "cfg"}):
        if steering["method"] == "mage":
            steering |= {"preference": {"positive": 1}}  # type: ignore[dict-item]
        extra = {"steering": steering}
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model=model, prompt="a b", echo=True, logprobs=1, extra_body=extra)
        assert refused.value.param == "echo" and steering["method"] in refused.value.message
        assert client.completions.create(model=model, prompt="a b", echo=True, max_tokens=1, extra_body=extra)


def test_a_stream_that_is_left_frees_its_lanes(client: openai.OpenAI, server: Server) -> None:
    options: dict = {"model": "demo", "max_tokens": 8000, "stream": True, **ENDLESS}
    with server.abandoned(2), client.chat.completions.create(messages=MESSAGES, n=2, **options) as stream:
        next(stream)
        server.wait(running=True)
    with server.abandoned():
        stream = client.completions.create(prompt="a", **options)
        next(stream)
        stream.close()
    with server.abandoned(3):
        guided = {"method": "mage", "preference": {"positive": 1}}
        stream = client.chat.completions.create(messages=MESSAGES, n=3, extra_body={"steering": guided}, **options)
        next(stream)
        stream.close()


def test_a_client_that_times_out_frees_its_lanes(server: Server) -> None:
    with (
        server.abandoned(8),
        openai.OpenAI(base_url=server.v1, api_key=server.key, max_retries=0, timeout=1.0) as hasty,
        pytest.raises(openai.APITimeoutError),
    ):
        hasty.chat.completions.create(model="demo", messages=MESSAGES, n=8, max_tokens=8000, **ENDLESS)


@pytest.fixture(scope="module")
def strict_server(demo_folder: Path) -> Iterator[Server]:
    """A server that takes small bodies, and lets one request run and one wait."""
    options = ("--max-body-bytes", "2000", "--max-sequences", "1", "--max-queue", "1")
    with serve_family(demo_folder, "--kv-memory", "24MiB", *options) as running:
        yield running


@pytest.fixture
def strict(strict_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=strict_server.v1, api_key=strict_server.key, max_retries=0, timeout=60) as client:
        yield client


def test_keys(strict_server: Server, strict: openai.OpenAI) -> None:
    assert strict.models.retrieve("demo").id == "demo"
    with (
        openai.OpenAI(base_url=strict_server.v1, api_key="another", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        stranger.models.list()
    assert refused.value.code == "invalid_api_key" and refused.value.type == "authentication_error"


def test_a_body_that_is_too_large(strict: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        strict.completions.create(model="demo", prompt="a" * 3000)
    assert refused.value.status_code == 413 and refused.value.code == "body_too_large"


def test_a_full_queue(strict_server: Server, strict: openai.OpenAI) -> None:
    """429; the client's own retries come through once there is room."""
    running = strict.completions.create(model="demo", prompt="a", max_tokens=8000, stream=True, **ENDLESS)
    next(running)
    waiting = threading.Thread(target=lambda: strict.completions.create(model="demo", prompt="b", max_tokens=2))
    waiting.start()
    until = time.monotonic() + 30
    while not strict_server.metrics()["ladle_num_requests_waiting"]:
        assert time.monotonic() < until
    with pytest.raises(openai.RateLimitError) as full:
        strict.completions.create(model="demo", prompt="c")
    assert full.value.code == "queue_full" and float(full.value.response.headers["retry-after"]) >= 1
    freed = threading.Timer(0.2, running.close)
    freed.start()
    patient = strict.with_options(max_retries=5)
    assert patient.completions.create(model="demo", prompt="c", max_tokens=2).choices
    waiting.join(30)
    freed.join()


def test_a_server_that_drains(strict_server: Server, strict: openai.OpenAI) -> None:
    """503. The last test of this server."""
    running = strict.completions.create(model="demo", prompt="a", max_tokens=8000, stream=True, **ENDLESS)
    next(running)
    strict_server.process.send_signal(signal.SIGTERM)
    with pytest.raises(openai.APIStatusError) as draining:
        while True:
            strict.models.list()
    assert isinstance(draining.value, openai.InternalServerError) and draining.value.status_code == 503
    assert draining.value.code == "draining" and draining.value.response.headers["retry-after"]
    running.close()
    assert strict_server.process.wait(30) == 0
