"""What the models are asked while they are measured."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from ladle.guidance.plan import PromptView
from ladle.merging.exceptions import InputError

# Plain requests of several kinds, none of which asks for a tone or a length.
NEUTRAL = (
    "How do I keep bread fresh for a few days?",
    "Explain why the sky is blue.",
    "My train leaves an hour late. What can I do meanwhile?",
    "Write two sentences about a lake in autumn.",
    "What does a librarian do all day?",
    "Name three things to check before a bicycle ride.",
    "What is the difference between weather and climate?",
    "A friend asks whether to learn the piano or the guitar. What should I say?",
)
MOST = 64  # every prompt is some 24 rows of the vocabulary's width for each set of weights


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts of a file: one per line; in a ``.jsonl`` file every line is an object with the key ``prompt``.

    Raises:
        InputError: naming the line: no text, no such object, no prompts at all or more than 64.
        OSError: the file cannot be read.
    """
    prompts = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError("prompts", str(file), f"a text in UTF-8 ({error.reason} at byte {error.start})") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompts.append(_object(line, f"prompts:{number}") if file.suffix == ".jsonl" else line.strip())
    if not 1 <= len(prompts) <= MOST:
        raise InputError("prompts", f"{len(prompts)} in {file}", f"1 to {MOST} prompts")
    return tuple(prompts)


def _object(line: str, field: str) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    text = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise InputError(field, line[:80], 'a JSON object with the key "prompt" and a text')
    return text.strip()


def render(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], view: PromptView | None) -> list[list[int]]:
    """Token ids of every prompt as a source with ``view`` sees it, in the chat template where there is one; else with
    the special tokens that the tokenizer puts in front. The same text as the server makes of a request.

    Raises:
        InputError: the chat template refuses the prompt, or nothing is left of it.
    """
    rows = []
    for index, prompt in enumerate(prompts):
        ids = tokenizer(_text(tokenizer, prompt, view), add_special_tokens=not tokenizer.chat_template)["input_ids"]
        if not ids:
            raise InputError(f"prompts[{index}]", prompt, "at least one token")
        rows.append(list(ids))
    return rows


def _text(tokenizer: PreTrainedTokenizerFast, prompt: str, view: PromptView | None) -> str:
    assert view is None or view.kind == "system", "values have no other views"
    if not tokenizer.chat_template:
        return prompt if view is None else f"{view.text}\n\n{prompt}"
    turns = [] if view is None else [{"role": "system", "content": view.text}]
    turns.append({"role": "user", "content": prompt})
    from jinja2 import TemplateError

    try:
        text: Any = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise InputError("prompts", prompt, reason=f"the base's chat template refuses it ({error})") from None
    return str(text)
