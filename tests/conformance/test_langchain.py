"""LangChain's ChatOpenAI against a server process."""

from typing import Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr
from server_process import Server

MESSAGES = [("system", "Be kind."), ("user", "Tell me about rain.")]
ENDLESS: dict = {"logit_bias": {2: -100, 0: -100}}
STEERING = {"method": "mage", "preference": {"positive": 0.8, "concise": 0.2}, "trace": True}


def chat(server: Server, **options: object) -> ChatOpenAI:
    values: dict = {"model": "demo", "max_tokens": 8, "seed": 3, "max_retries": 0, "timeout": 60, **options}
    return ChatOpenAI(base_url=server.v1, api_key=SecretStr(server.key), **values)


def test_invoke(server: Server) -> None:
    model = chat(server, logprobs=True, top_logprobs=2, extra_body={"steering": STEERING}, **ENDLESS)
    answer = model.invoke(MESSAGES)
    assert isinstance(answer, AIMessage) and answer.text
    assert answer.response_metadata["finish_reason"] == "length"
    assert len(answer.response_metadata["logprobs"]["content"]) == 8
    assert all(len(token["top_logprobs"]) == 2 for token in answer.response_metadata["logprobs"]["content"])
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] == 8
    assert chat(server, **ENDLESS).invoke([*MESSAGES, answer, HumanMessage("And snow?")]).text


def test_stream_is_what_invoke_gives(server: Server) -> None:
    model = chat(server, model="demo/mage@positive=.8,concise=.2", stream_usage=True, **ENDLESS)
    whole = model.invoke(MESSAGES)
    total = None
    for chunk in model.stream(MESSAGES):
        total = chunk if total is None else total + chunk
    assert total is not None and total.text == whole.text
    assert total.usage_metadata is not None and whole.usage_metadata is not None
    assert total.usage_metadata["total_tokens"] == whole.usage_metadata["total_tokens"]


def test_batch(server: Server) -> None:
    model = chat(server, model="demo@simple=1", stop=["e"])
    prompts = [f"{number} times" for number in range(4)]
    answers = model.batch(list(prompts), {"max_concurrency": 4})
    assert [answer.text for answer in answers] == [model.invoke(prompt).text for prompt in prompts]
    assert not any("e" in answer.text for answer in answers)


def test_structured_output(server: Server) -> None:
    class Weather(BaseModel):
        wet: bool
        sky: Literal["grey", "blue"]

    model = chat(server, model="demo/mage@positive=1", max_tokens=200)
    answer = model.with_structured_output(Weather, method="json_schema").invoke(MESSAGES)
    assert isinstance(answer, Weather)


def test_errors_are_those_of_openais_client(server: Server) -> None:
    import openai

    with pytest.raises(openai.NotFoundError):
        chat(server, model="gpt-4o").invoke(MESSAGES)
    with pytest.raises(openai.BadRequestError) as refused:
        chat(server, extra_body={"steering": {"preference": {"happy": 1}}}).invoke(MESSAGES)
    assert refused.value.param == "steering.preference.happy"


def test_a_stream_that_is_left_frees_its_lanes(server: Server) -> None:
    with server.abandoned():
        stream = chat(server, max_tokens=8000, **ENDLESS).stream(MESSAGES)
        next(stream)
        server.wait(running=True)
        stream.close()  # type: ignore[attr-defined]
