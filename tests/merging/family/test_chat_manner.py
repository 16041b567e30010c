"""Chat templates and end tokens: the base's, its members', the family's."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_models import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    IM_END,
    IM_START,
    rewrite_json,
    tiny_tokenizer,
    write_family,
    write_full_member,
)
from transformers import AutoTokenizer, GenerationConfig

from ladle.merging.exceptions import FamilyError
from ladle.merging.family.chat_manner import ChatManner, end_of_turn
from ladle.merging.family.family import Family, load_family
from ladle.merging.merges.export import export

PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
MEMBERS = ("bone-positive", "bone-simple", "only-positive", "only-simple")


def as_base_model(base: Path) -> None:
    """A model before chat tuning: it ends at <|endoftext|> and has no chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.eos_token = END_OF_TEXT
    (base / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(base)
    GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0).save_pretrained(base)
    rewrite_json(base / "config.json", eos_token_id=0)


def tuned(folder: Path, template: str | None = CHAT_TEMPLATE, eos: str = IM_END) -> None:
    """The tokenizer that a trainer leaves in an adapter's folder."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token = template, eos
    tokenizer.save_pretrained(folder)


@pytest.fixture
def root(tmp_path: Path, seed: int) -> Path:
    return write_family(tmp_path / "family", "llama", seed, n=2)


def stated(root: Path, **keys: Any) -> Family:
    file = root / "family.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    file.write_text("\n".join([*lines, file.read_text()]))
    return load_family(root)


def test_a_base_that_says_it_all_stands(root: Path) -> None:
    family = load_family(root)
    assert family.conversation == ChatManner() and family.warnings == ()


def test_a_members_manner_is_taken_over_where_the_base_has_none(root: Path, tmp_path: Path) -> None:
    as_base_model(root / "base")
    assert load_family(root).conversation == ChatManner(), "nobody has any"
    for name in MEMBERS:
        tuned(root / "adapters" / name)
    family = load_family(root)
    spoken = family.conversation
    assert spoken.template == CHAT_TEMPLATE and spoken.origin == "member bone-positive"
    assert spoken.ends == (IM_END,) and spoken.eos_token == IM_END and family.warnings == ()
    tokenizer = AutoTokenizer.from_pretrained(root / "base")
    assert spoken.dress(tokenizer) == {2} and tokenizer.chat_template == CHAT_TEMPLATE
    # A merge is served elsewhere in the same manner.
    out = export(family, {"bone-positive": 1.0}, tmp_path / "merged")
    merged = AutoTokenizer.from_pretrained(out)
    turns = [{"role": "user", "content": "rain"}]
    assert merged.apply_chat_template(turns, tokenize=False) == f"{IM_START}user\nrain{IM_END}\n"
    assert merged.eos_token == IM_END
    assert GenerationConfig.from_pretrained(out).eos_token_id == [0, 2]


@pytest.mark.parametrize("source", ["generation config", "tokenizer", "template"])
def test_end_tokens_are_found_wherever_they_are(root: Path, source: str, seed: int) -> None:
    as_base_model(root / "base")
    folder = root / "adapters" / "only-simple"
    if source == "generation config":
        GenerationConfig(eos_token_id=[0, 2]).save_pretrained(folder)
    elif source == "tokenizer":
        tuned(folder, template=None)
    else:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    assert load_family(root).conversation.ends == (IM_END,)


def test_disagreements_are_told(root: Path) -> None:
    tuned(root / "adapters" / "only-simple", PLAIN, END_OF_TEXT)
    family = load_family(root)
    assert family.conversation.template is None and family.conversation.ends == ()
    template, end = family.warnings
    assert template.startswith("member only-simple has another chat template than the base")
    assert f"member only-simple ends its answers with {END_OF_TEXT}" in end and "stop_tokens" in end
    family = stated(root, stop_tokens=[END_OF_TEXT])
    assert family.conversation.ends == (END_OF_TEXT,) and len(family.warnings) == 1


def test_members_that_disagree_among_themselves(root: Path) -> None:
    as_base_model(root / "base")
    tuned(root / "adapters" / "bone-simple")
    tuned(root / "adapters" / "only-simple", PLAIN, IM_START)
    family = load_family(root)
    assert family.conversation.origin == "member bone-simple"
    assert family.conversation.ends == (IM_END, IM_START)
    assert len(family.warnings) == 1 and "member only-simple has another chat template" in family.warnings[0]


@pytest.mark.parametrize("kept", [True, False])
def test_a_broken_template_matters_where_it_is_used(root: Path, kept: bool) -> None:
    (root / "adapters" / "bone-simple" / "chat_template.jinja").write_text("{% for m in")
    if kept:
        assert "another chat template" in load_family(root).warnings[0]
        return
    as_base_model(root / "base")
    with pytest.raises(FamilyError, match="bone-simple: chat template: is no chat template in Jinja"):
        load_family(root)


def test_a_broken_template_of_the_base_is_told_unless_another_one_is_in_force(root: Path, tmp_path: Path) -> None:
    (root / "base" / "chat_template.jinja").write_text("{% if x %}")
    with pytest.raises(FamilyError, match="base: chat template: is no chat template in Jinja: .*[Uu]nexpected end"):
        load_family(root)
    other = tmp_path / "other.jinja"
    other.write_text(PLAIN)
    assert load_family(root, chat_template=str(other)).conversation.template == PLAIN


@pytest.mark.parametrize("stated", ["x", None, True, [None, "2", 99999], {"2": 2}, 2.0])
def test_end_tokens_that_are_none_are_passed_over(root: Path, stated: Any) -> None:
    as_base_model(root / "base")
    (root / "adapters" / "bone-simple" / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    assert load_family(root).conversation == ChatManner()


def test_full_members_count_too(root: Path, seed: int) -> None:
    as_base_model(root / "base")
    shutil.rmtree(root / "adapters" / "only-simple")
    write_full_member(root / "adapters" / "only-simple", root / "base", seed)
    assert load_family(root).conversation.ends == (IM_END,)


def test_the_family_says_it_itself(root: Path, tmp_path: Path) -> None:
    (root / "chat.jinja").write_text(PLAIN)
    family = stated(root, chat_template="chat.jinja", stop_tokens=[IM_START])
    assert family.conversation.template == PLAIN and family.conversation.ends == (IM_START,)
    (tmp_path / "other.json").write_text(json.dumps({"chat_template": "other {{ messages }}"}))
    family = load_family(root, chat_template=tmp_path / "other.json")
    assert family.conversation.template == "other {{ messages }}"


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"chat_template": "none.jinja"}, "no such file"),
        ({"chat_template": "broken.jinja"}, "is no chat template in Jinja"),
        ({"chat_template": ""}, "chat_template"),
        ({"stop_tokens": ["<|eot|>"]}, "stop_tokens: '<|eot|>' is no token of the base's tokenizer"),
        ({"stop_tokens": "<|im_end|>"}, "stop_tokens"),
        ({"stop_tokens": [2]}, "stop_tokens"),
    ],
)
def test_what_is_wrong_is_named(root: Path, keys: dict[str, Any], reason: str) -> None:
    (root / "broken.jinja").write_text("{% for m in messages %}")
    with pytest.raises(FamilyError) as caught:
        stated(root, **keys)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHAT_TEMPLATE, IM_END),
        (PLAIN, "</s>"),
        ("{{ messages[-1]['content'] }}\n<|end|><|end_of_all|>", "<|end|>"),
        ("{{ messages[-1]['content'] | trim }} and more <|im_end|>", None),
        ("{{ raise_exception('only one message') }}", None),
        ("{{ messages[0]['nothing']['more'] }}", None),
    ],
)
def test_the_end_of_a_turn_is_what_the_template_puts_there(template: str, end: str | None) -> None:
    assert end_of_turn(template, {IM_END, IM_START, "</s>", "<|end", "<|end|>"}, "</s>") == end


def test_a_merge_keeps_additional_templates(root: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tool_use": "tools {{ tools }}", "rag": "rag"}
    tokenizer.save_pretrained(root / "base")
    assert (root / "base" / "additional_chat_templates" / "rag.jinja").is_file()
    out = export(load_family(root), {"bone-positive": 1.0}, tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
    # Older checkpoints have them in a list.
    shutil.rmtree(root / "base" / "additional_chat_templates")
    (root / "base" / "chat_template.jinja").unlink()
    named = [{"name": name, "template": text} for name, text in tokenizer.chat_template.items()]
    rewrite_json(root / "base" / "tokenizer_config.json", chat_template=named)
    out = export(load_family(root), {"bone-positive": 1.0}, tmp_path / "older")
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
