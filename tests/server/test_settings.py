"""Settings from the environment and from options."""

import pytest
from pydantic import ValidationError

from ladle.server.settings import ServerSettings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000", 1000),
        ("2GiB", 2 << 30),
        ("512 MiB", 512 << 20),
        ("1.5g", 1_500_000_000),
        ("3kB", 3000),
        ("4ki", 4096),
        ("1125899906842623", 1125899906842623),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert ServerSettings(kv_memory=text).kv_memory == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"kv_memory": "much"},
        {"kv_memory": "-1"},
        {"kv_memory": "0"},
        {"kv_memory": "1PiB"},
        {"kv_memory": ""},
        {"kv_memory": "9" * 500},
        {"speculate": "ngram:0"},
        {"speculate": "ngram:17"},
        {"speculate": "small"},
        {"speculate": "model:0"},
        {"speculate": "model:17"},
        {"speculate": "model:4,ngram:4"},
        {"speculate": "ngram:4,ngram:2"},
        {"speculate": "ngram,"},
        {"speculate": "none,model"},
        {"speculate": ""},
        {"port": 65536},
        {"port": -1},
        {"port": "http"},
        {"device": "tpu"},
        {"device": "cuda:x"},
        {"dtype": "float16"},
        {"max_sequences": 0},
        {"max_queue": 0},
        {"max_queue_tokens": 0},
        {"max_choices": 129},
        {"families_dir": "/no/such/folder"},
        {"key_concurrent": 0},
        {"max_context": 1},
        {"log_level": "loud"},
        {"keep_alive_seconds": 0},
        {"drain_seconds": -1},
        {"drain_seconds": "nan"},
        {"family": ""},
    ],
)
def test_refusals_name_the_option(options: dict) -> None:
    with pytest.raises(ValidationError) as caught:
        ServerSettings(**options)
    assert caught.value.errors()[0]["loc"] == (next(iter(options)),)


def test_the_environment_and_what_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADLE_KV_MEMORY", "64MiB")
    monkeypatch.setenv("LADLE_PORT", "9000")
    monkeypatch.setenv("LADLE_PREFIX_CACHE", "false")
    monkeypatch.setenv("LADLE_CORS_ORIGINS", '["https://example.org"]')
    monkeypatch.setenv("LADLE_URL", "http://somewhere.else")  # the client's
    settings = ServerSettings(port=9001)
    assert settings.kv_memory == 64 << 20 and settings.port == 9001 and not settings.prefix_cache
    assert settings.cors_origins == ["https://example.org"]


def test_the_engine_gets_its_share() -> None:
    settings = ServerSettings(
        device="cpu", dtype="float32", max_sequences=3, max_lanes=5, max_batch_tokens=77, kv_memory=1 << 20,
        weights_memory=2 << 20, max_context=99, max_queue=4, max_queue_tokens=5,
        prefix_cache=False,
    )  # fmt: skip
    config = settings.engine_config()
    drafts = {"draft_tokens", "model_draft_tokens"}  # ``speculate`` says how
    assert config.compiled_products  # but for a quick start
    for name, value in vars(config).items():
        if name != "compiled_products":
            assert value == (0 if name in drafts else getattr(settings, name)), name


@pytest.mark.parametrize("other", [{"reproducible": True}, {"quantize": "int8"}, {"ray": True}])
def test_what_a_quick_start_cannot_begin_with(other: dict) -> None:
    assert not ServerSettings(**other).quick_start
    with pytest.raises(ValidationError, match=f"quick_start: not with {next(iter(other))}: "):
        ServerSettings(quick_start=True, **other)


def test_by_default_nobody_outside_is_served() -> None:
    settings = ServerSettings()
    assert settings.host == "127.0.0.1" and settings.cors_origins == [] and settings.api_key_file is None


@pytest.mark.parametrize(
    ("text", "repeated", "guessed"),
    [
        ("none", 0, 0),
        ("ngram", 4, 0),
        ("ngram:1", 1, 0),
        ("ngram:16", 16, 0),
        ("model", 0, 4),
        ("model:16", 0, 16),
        ("ngram:3,model:2", 3, 2),
        ("ngram,model", 4, 4),
    ],
)
def test_drafts(text: str, repeated: int, guessed: int) -> None:
    config = ServerSettings(speculate=text).engine_config()
    assert (config.draft_tokens, config.model_draft_tokens) == (repeated, guessed)
