"""The built-in family shows what Ladle has, and says of itself what its recipe says."""

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from seeds import fresh_seed
from transformers import PreTrainedTokenizerBase

from ladle.guidance.registry import available, check_methods
from ladle.merging.family.family import Family, load_family
from ladle.recipes.config import load_recipe
from ladle.recipes.training.family_manifest import write_manifest
from ladle.server.engine.requests.tokenizer import load_tokenizer
from ladle.server.tools.formats import HERMES, format_of

ROOT = Path(__file__).resolve().parents[2]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@cache
def demo() -> Family:
    return load_family("demo")


@pytest.fixture
def tokenizers() -> Iterator[tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]]:
    """The base's own, and the one that the family dresses it as."""
    own, dressed = load_tokenizer(demo().base_path), load_tokenizer(demo().base_path)
    demo().conversation.dress(dressed)
    yield own, dressed


def test_it_has_what_nearly_every_method_needs() -> None:
    check_methods(demo())
    lacking = {name for name, (usable, _) in available(demo()).items() if not usable}
    assert lacking <= {"parm", "contrastive"}
    assert demo().surface is not None and demo().calibration is not None and not demo().warnings


def test_the_recipe_writes_its_manifest(tmp_path: Path) -> None:
    committed = ROOT / "families" / "demo"
    for adapter in (committed / "adapters").iterdir():
        (tmp_path / "adapters" / adapter.name).mkdir(parents=True)
    if (committed / "amateur").is_dir():
        (tmp_path / "amateur").mkdir()
    write_manifest(load_recipe("demo"), tmp_path)
    for name in ("family.toml", "chat.jinja"):
        assert (tmp_path / name).read_text() == (committed / name).read_text()


def test_its_template_is_the_base_s_where_there_are_no_tools(
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
) -> None:
    own, dressed = tokenizers
    drawn = random.Random(fresh_seed())
    texts = ["Hi {{x}}  ", " a\n\n", "", "<b>ü</b>"]
    for _ in range(20):
        turns = [{"role": drawn.choice(["user", "assistant"]), "content": drawn.choice(texts)} for _ in range(3)]
        if drawn.random() < 0.5:
            turns.insert(0, {"role": "system", "content": drawn.choice(texts)})
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": drawn.random() < 0.5}
        assert own.apply_chat_template(turns, **options) == dressed.apply_chat_template(turns, **options)


def test_its_template_has_tools_and_their_results(
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
) -> None:
    _, dressed = tokenizers
    assert format_of(dressed) == HERMES
    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "sunny"},
    ]
    text = str(dressed.apply_chat_template(turns, tools=[TOOL], tokenize=False, add_generation_prompt=True))
    said = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    assert f"<|im_start|>assistant\n{said}\n{said}<|im_end|>\n" in text
    assert text.endswith("<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    assert '"name": "weather"' in text.partition("</tools>")[0]
