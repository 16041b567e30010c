"""Fields of other people's APIs that are not supported. What asks nothing about the answer is accepted at any value.
What would change the answer may be sent at the value that changes nothing; any other value is refused by name, because
a field that is accepted and ignored answers a question nobody asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema, create_model

from ladle.nulls import without_unset
from ladle.server.http.strict_model import UNREAD, Unread

Defaults = Mapping[str, tuple[Any, ...]]

# vLLM's, of both endpoints. What it has and Ladle honours is in ``engine_fields`` and ``chat_fields``.
_BOTH: Defaults = {
    "allowed_token_ids": (),
    "bad_words": ([],),
    "early_stopping": (False,),
    "ec_transfer_params": (),
    # Some clients put it into the body where it has to be taken apart, as they do with nothing in it.
    "extra_body": ({},),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "logprob_token_ids": (),
    "mm_payload": ("tensors",),
    "repetition_detection": (),
    "return_mm_kwargs": (False,),
    "return_prompt_text": (False,),
    "return_token_ids": (False,),
    "return_token_offsets": (False,),
    "return_tokens_as_token_ids": (False,),
    "routed_experts_prompt_start": (0,),
    "thinking_token_budget": (),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "watermarking": (False,),
}
# llama.cpp's, whose clients send all of its samplers with every request, each at the value that turns it off; what it
# has and Ladle honours is in ``SteeredFields``. Some are SGLang's and OpenRouter's.
_LLAMA_CPP: Defaults = {
    "adaptive_target": (-1,),
    "dry_multiplier": (0,),
    "ebnf": (),
    "grammar": ("",),
    "json_schema": (),
    "lora": ([],),
    "lora_path": (),
    "min_keep": (0, 1),
    "mirostat": (0,),
    "n_indent": (0,),
    "n_predict": (-1,),
    "n_probs": (0,),
    "no_stop_trim": (False,),
    "penalize_nl": (False,),
    "post_sampling_probs": (False,),
    "regex": (),
    "repeat_last_n": (-1,),
    "repeat_penalty": (1,),
    "response_fields": ([],),
    "return_hidden_states": (False,),
    "return_tokens": (False,),
    "samplers": (),
    "t_max_predict_ms": (0,),
    "tfs_z": (1,),
    "top_a": (0,),
    "top_n_sigma": (-1, 0),
    "transforms": ([],),
    "typ_p": (1,),
    "typical_p": (1,),
    "xtc_probability": (0,),
}
_BOTH = {**_BOTH, **_LLAMA_CPP}
CHAT: Defaults = {
    **_BOTH,
    "add_special_tokens": (False,),
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "context_management": ([], {}),
    "deferred": (False,),
    "documents": ([],),
    "echo": (False,),
    # A budget for thoughts is reasoning_effort or thinking here; a template's switch, one of chat_template_kwargs.
    "enable_thinking": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_reasoning": (True,),
    "mcp_servers": ([],),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "models": ([],),
    "moderation": (),
    "parse_tool_calls": (True,),
    "plugins": ([],),
    "prompt_mode": (),
    "random_seed": (),
    "reasoning": ({},),
    "reasoning_format": ("auto", "none"),
    "safe_prompt": (False,),
    "search_parameters": (),
    "separate_reasoning": (True,),
    "stream_reasoning": (True,),
    "thinking_forced_open": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
COMPLETIONS: Defaults = {**_BOTH, "prompt_embeds": (), "suffix": ("",)}
# The same of the endpoints of other APIs, which have fewer fields of their own to say how to sample.
OTHERS: Defaults = {
    **_BOTH,
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "logit_bias": ({},),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "n": (1,),
    "prompt_logprobs": (),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "structured_outputs": (),
}
TOKENIZE: Defaults = {"chat_template": (), "media_io_kwargs": ({},), "mm_processor_kwargs": ({},)}
# What official clients send back when an answer of theirs becomes part of the next question.
MESSAGE: Defaults = {"audio": (), "function_call": (), "images": ([],)}

# How a provider keeps, bills, routes, times or caches a request; spaces between special tokens are slow tokenizers'
# own. And what says more of a sampler of ``_LLAMA_CPP`` that is off, or of what is kept of a text that is too long.
_UNREAD_OF_BOTH = (
    "metadata", "priority", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "request_id",
    "safety_identifier", "service_tier", "session_id", "spaces_between_special_tokens", "store",
    "backend_sampling", "cache_prompt", "id_slot", "keep_alive", "n_cache_reuse", "provider", "return_progress", "rid",
    "sse_ping_interval", "stream_interval", "timings_per_token", "ttl", "usage",
    "adaptive_decay", "dry_allowed_length", "dry_base", "dry_penalty_last_n", "dry_sequence_breakers", "mirostat_eta",
    "mirostat_tau", "n_discard", "n_keep", "xtc_threshold",
)  # fmt: skip
UNREAD_CHAT = (*_UNREAD_OF_BOTH, "prediction", "route")
UNREAD_COMPLETIONS = _UNREAD_OF_BOTH
UNREAD_OTHERS = (*_UNREAD_OF_BOTH, "user")
# What comes with answers of one provider or another, and says nothing to a chat template.
UNREAD_MESSAGE = (
    "annotations", "cache_control", "citations", "id", "index", "metadata", "parsed", "provider_specific_fields",
    "reasoning_details", "refusal", "status", "thinking_blocks",
)  # fmt: skip
UNREAD_PART = ("annotations", "cache_control", "citations", "prompt_cache_breakpoint", "provider_specific_fields")


def only(*defaults: Any) -> Callable[[Any], Any]:
    """A validator that lets null and ``defaults`` pass; a number in either spelling, 1 and 1.0, and an object with or
    without what is unset in it."""

    def check(value: Any) -> Any:
        value = without_unset(value) if isinstance(value, dict) else value
        if value is None or any(_kind(value) is _kind(default) and value == default for default in defaults):
            return None
        allowed = ", ".join(repr(default) for default in (None, *defaults))
        raise ValueError(f"this server does not support it; allowed: {allowed}")

    return check


def _kind(value: Any) -> type[Any]:
    """The kind of a JSON value."""
    return float if type(value) is int else type(value)


def with_known(base: type[Any], name: str, known: Defaults, unread: tuple[str, ...]) -> type[Any]:
    """``base`` with the fields of ``known``, each accepted at its defaults only, and those that are ``unread``."""
    fields: dict[str, Any] = {
        field: (
            Annotated[Any, AfterValidator(only(*defaults)), WithJsonSchema({"enum": [None, *defaults]})],
            Field(None, description="not supported"),
        )
        for field, defaults in known.items()
    }
    fields |= {field: (Unread, UNREAD) for field in unread}
    return create_model(name, __base__=base, **fields)
