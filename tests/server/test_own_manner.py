"""A family that talks as its members were taught to: its template and its ends, over HTTP, from files on disk."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import served
from tiny_models import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    IM_START,
    rewrite_json,
    tiny_tokenizer,
    write_family,
)
from transformers import GenerationConfig

RAISES = [
    ("{{ raise_exception('only one user may speak') }}", "only one user may speak"),
    ("{{ messages | map(attribute='role') | list + 3 }}", "can only concatenate list"),
    ("{{ messages[9]['content'] }}", "no element 9"),
    ("{{ 1 // (messages | length - 1) }}", "zero"),
    ("{{ messages.nothing.more.and_more }}", "no attribute 'nothing'"),
    ("{% include 'another' %}", "loader"),
    ("{{ ''.join(1, 2) }}", "join"),
    ("{{ ().__class__.__bases__ }}", "unsafe"),
]


@pytest.fixture
def root(tmp_path: Path, seed: int) -> Path:
    """A base model before chat tuning with members that were tuned on ChatML."""
    root = write_family(tmp_path / "family", "llama", seed, n=2)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token = None, END_OF_TEXT
    (root / "base" / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(root / "base")
    GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0).save_pretrained(root / "base")
    rewrite_json(root / "base" / "config.json", eos_token_id=0)
    tiny_tokenizer().save_pretrained(root / "adapters" / "bone-positive")
    return root


def ask(url: str, path: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": "rain"}]} if "chat" in path else {"prompt": "rain"}
    reply = httpx.post(url + path, json={**asked, "max_tokens": 8, "temperature": 0, **body}, timeout=60)
    assert reply.status_code == 200, reply.text
    document: dict[str, Any] = reply.json()
    return document


def test_answers_end_where_the_members_learned_to(root: Path) -> None:
    with served(root) as (url, _):
        reply = ask(url, logit_bias={"2": 100})
        assert reply["choices"][0]["finish_reason"] == "stop" and reply["usage"]["completion_tokens"] == 1
        tokens = httpx.post(url + "/tokenize", json={"messages": [{"role": "user", "content": "rain"}]}).json()
    ids = tiny_tokenizer().apply_chat_template(
        [{"role": "user", "content": "rain"}], add_generation_prompt=True, return_dict=False
    )
    assert tokens["tokens"] == list(ids)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/generate"])
def test_stop_strings_meet_special_tokens(root: Path, path: str) -> None:
    with served(root, chat_template=write(root, CHAT_TEMPLATE)) as (url, _):
        endless = ask(url, path, logit_bias={"1": 100})
        assert endless["usage"]["completion_tokens"] == 8
        for stop in (IM_START, [".", IM_START], [f"{IM_START}user", IM_START]):
            ended = ask(url, path, logit_bias={"1": 100}, stop=stop)
            assert ended["usage"]["completion_tokens"] == 1 and ended["choices"][0]["finish_reason"] == "stop"
            shown = ask(url, path, logit_bias={"1": 100}, stop=stop, skip_special_tokens=False)
            assert shown["usage"]["completion_tokens"] == 1 and IM_START not in str(shown["choices"][0])


def write(root: Path, template: str) -> Path:
    (root / "given.jinja").write_text(template)
    return root / "given.jinja"


def test_the_operators_template_wins(root: Path) -> None:
    template = write(root, "{% for m in messages %}({{ m['content'] }}){% endfor %}")
    with served(root, chat_template=template) as (url, _):
        tokens = httpx.post(url + "/tokenize", json={"messages": [{"role": "user", "content": "rain"}]}).json()
        assert tokens["tokens"] == tiny_tokenizer()("(rain)")["input_ids"]
        assert ask(url, logit_bias={"2": 100})["choices"][0]["finish_reason"] == "stop"


def test_a_template_that_raises_anything_is_a_bad_request_in_its_words(root: Path) -> None:
    with served(root, chat_template=write(root, CHAT_TEMPLATE)) as (url, service):
        assert ask(url)["choices"]
        tokenizer = service.state.require().engine.tokenizer
        for template, words in RAISES:
            tokenizer.chat_template = template
            body = {"messages": [{"role": "user", "content": "rain"}], "max_tokens": 2}
            for path in ("/v1/chat/completions", "/v1/generate", "/tokenize"):
                reply = httpx.post(url + path, json=body if path != "/tokenize" else {"messages": body["messages"]})
                error = reply.json()["error"]
                assert reply.status_code == 400 and error["param"] == "messages", (template, reply.text)
                assert words in error["message"], error
        tokenizer.chat_template = CHAT_TEMPLATE
        assert ask(url)["choices"]
