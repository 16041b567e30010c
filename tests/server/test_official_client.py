"""The official OpenAI client against a real web server and the real engine."""

import time

import openai
import pytest

from ladle.server.engine.engine import Engine

pytestmark = pytest.mark.usefixtures("idle_after")
MESSAGES: list = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Tell me about rain."}]
NO_END = {"2": -100, "0": -100}


@pytest.fixture
def client(live_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live_url}/v1", api_key="none", max_retries=0, timeout=30)


def test_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny@positive=.8,simple=.2",
        messages=MESSAGES,
        max_tokens=12,
        seed=5,
        n=2,
        logprobs=True,
        top_logprobs=2,
        logit_bias=NO_END,
    )
    assert reply.object == "chat.completion" and len(reply.choices) == 2
    choice = reply.choices[0]
    assert (
        choice.finish_reason == "length" and choice.message.role == "assistant" and choice.message.content is not None
    )
    assert choice.logprobs is not None and choice.logprobs.content is not None and len(choice.logprobs.content) == 12
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    assert reply.usage is not None and reply.usage.completion_tokens == 24
    assert reply.usage.prompt_tokens_details is not None
    assert reply.system_fingerprint is not None
    assert reply.steering["preference"] == {"positive": 0.8, "simple": 0.2}  # type: ignore[attr-defined]
    assert reply._request_id


def test_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4, logit_bias=NO_END)
    message = reply.choices[0].message
    for answer in (message, message.model_dump()):
        again = [*MESSAGES, answer, {"role": "user", "content": "And snow?"}]
        assert client.chat.completions.create(model="tiny", messages=again, max_tokens=4).choices


def test_streamed_chat_is_the_whole_chat(client: openai.OpenAI) -> None:
    options: dict = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "seed": 5, "logit_bias": NO_END}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    # What is cached differs from the first time to the second.
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-1].steering["method"] == "bone_soup"  # type: ignore[attr-defined]


def test_the_streaming_helper_puts_the_answer_together(client: openai.OpenAI) -> None:
    # It insists on an answer that ended by itself: no length limit.
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, stop=["a", "e", "i", "o"], seed=3) as helper:
        pieces = [event.delta for event in helper if event.type == "content.delta"]
        choice = helper.get_final_completion().choices[0]
    assert choice.finish_reason == "stop" and choice.message.content == "".join(pieces)


def test_completions(client: openai.OpenAI) -> None:
    options: dict = {"model": "tiny/rewarded_soup@simple=1", "max_tokens": 6, "seed": 1, "logit_bias": NO_END}
    reply = client.completions.create(prompt=["the rain", "the sea"], logprobs=1, **options)
    assert [choice.index for choice in reply.choices] == [0, 1]
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and len(logprobs.tokens) == 6
    chunks = list(client.completions.create(prompt=[5, 6, 7], stream=True, **options))
    whole = client.completions.create(prompt=[5, 6, 7], **options)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_steering_goes_into_extra_body(client: openai.OpenAI) -> None:
    steering = {"method": "bone_soup", "preference": {"positive": 1}}
    reply = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=3, extra_body={"steering": steering, "top_k": 5, "min_p": 0.01}
    )
    assert reply.steering["coefficients"] == pytest.approx({"bone-positive": 1.75, "bone-simple": -0.75})  # type: ignore[attr-defined]


def test_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert "tiny/bone_soup" in names and "cheerful" in names
    for name in [*names, "tiny/bone_soup@positive=1"]:
        assert client.models.retrieve(name).id == name


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=3)
    assert bad.value.param == "temperature" and bad.value.code == "invalid_value"
    assert bad.value.type == "invalid_request_error" and bad.value.request_id
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert tools.value.param == "tools"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert missing.value.code == "model_not_found" and "tiny" in missing.value.message


def test_a_stream_that_is_closed_frees_its_lanes(client: openai.OpenAI, real_engine: Engine) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=450, logit_bias=NO_END, stream=True
    )
    next(iter(stream))
    assert real_engine.stats().running == 1
    stream.close()
    until = time.monotonic() + 2
    while (stats := real_engine.stats()).running:
        assert time.monotonic() < until, stats
        time.sleep(0.002)
    assert real_engine.stats().blocks_free == real_engine.stats().blocks_total


def test_a_client_that_times_out_frees_its_lanes(live_url: str, real_engine: Engine) -> None:
    hasty = openai.OpenAI(base_url=f"{live_url}/v1", api_key="none", max_retries=0, timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        hasty.chat.completions.create(model="tiny", messages=MESSAGES, n=16, max_tokens=450, logit_bias=NO_END)
    until = time.monotonic() + 2
    while real_engine.stats().running or real_engine.stats().waiting:
        assert time.monotonic() < until
        time.sleep(0.002)
