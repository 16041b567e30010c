"""Everything an operator may set about a server, from the environment (``LADLE_*``) or the command line."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ladle.merging.exceptions import InputError
from ladle.server.access.hosts import ANY, HostNames

if TYPE_CHECKING:
    from ladle.server.access.api_keys import ApiKeys
    from ladle.server.engine.engine_config import EngineConfig

_DRAFTS = re.compile(r"(ngram|model)(?::([1-9]\d?))?")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
_OWN_PATHS = frozenset(
    {"v1", "health", "ready", "metrics", "docs", "openapi.json", "playground", "tokenize", "detokenize"}
)
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def parse_bytes(value: object) -> object:
    """``"512MiB"``, ``"2g"``, ``"1000"`` or a number of bytes -> bytes; anything else is passed on to be refused."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise ValueError(f"{value!r} is no size; allowed: a number of bytes, or one with KiB, MiB, GiB, kB, MB, GB")
        unit = (match[2] or "").lower()
        return int(Decimal(match[1]) * _UNITS[unit])
    return value


_DRAFTED = 4
"""Tokens that are drafted in a step where nobody says how many."""


def _draft_tokens(speculate: str) -> dict[str, int]:
    """How many tokens are drafted, by who drafts: ``"ngram:2"`` is 2 and 0, ``"ngram,model:3"`` is 4 and 3, ``"none"``
    is 0 and 0. Raises ValueError for anything else."""
    if speculate == "none":
        return {"ngram": 0, "model": 0}
    from ladle.server.engine.engine_config import MOST_DRAFTED  # needs torch, which no other option asks for

    parts = [_DRAFTS.fullmatch(part) for part in speculate.split(",")]
    tokens = {match[1]: int(match[2] or _DRAFTED) for match in parts if match}
    if len(tokens) < len(parts) or list(tokens) == ["model", "ngram"] or max(tokens.values()) > MOST_DRAFTED:
        allowed = f"none, ngram:N, model:N, or ngram:N,model:N, each N of 1 to {MOST_DRAFTED} ({_DRAFTED} without one)"
        raise ValueError(f"{speculate!r} is not allowed; allowed: {allowed}")
    return {"ngram": 0, "model": 0, **tokens}


class Size(BeforeValidator):
    """Marks a field that is a number of bytes and may be written with a unit."""


Bytes = Annotated[int, Size(parse_bytes), Field(ge=1, le=1 << 50)]


class ServerSettings(BaseSettings):
    """Options of ``ladle serve``; each one is also an environment variable, e.g. ``LADLE_KV_MEMORY=2GiB``.

    Raises:
        pydantic.ValidationError: naming the option.
    """

    model_config = SettingsConfigDict(env_prefix="LADLE_", extra="ignore", frozen=True)

    family: str = Field(
        "demo",
        min_length=1,
        description="installed family, folder with family.toml, or hub id",
        json_schema_extra={"argument": True},
    )
    families_dir: Path | None = Field(
        None, description="folder of further families, which an administrator may load by the names of their folders"
    )
    chat_template: Path | None = Field(
        None,
        description="file with the chat template to use",
        json_schema_extra={"shown_default": "the base's, else a member's"},
    )
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    root_path: str = Field(
        "",
        pattern=r"^$|^(/[A-Za-z0-9._~-]+)+$",
        description="path under which a proxy publishes the server, e.g. /ladle",
    )
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    device: str = Field("auto", description="device to run on: auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="type of the weights")
    quantize: Literal["none", "int8"] = Field("none", description="on a CPU, hold the base's weights in int8")
    max_sequences: int = Field(64, ge=1, description="sequences that run at once")
    max_lanes: int | None = Field(
        None,
        ge=1,
        description="KV lanes at once; a traced or guided sequence has several",
        json_schema_extra={"shown_default": "4 x max-sequences"},
    )
    max_batch_tokens: int = Field(512, ge=1, description="token budget of one step")
    prefill_slowdown: float = Field(
        3.0,
        ge=0,
        description="how many times longer a step may take because prompts are read beside answers that are written; "
        "0: as long as max-batch-tokens lets it",
    )
    speculate: str = Field(
        "none",
        description="compute tokens ahead: ngram:4 for up to 4 a step that repeat earlier text, model:4 for what the "
        "family's draft model guesses, ngram:4,model:4 for its guesses where nothing repeats; the text stays the same",
    )
    kv_memory: Bytes = Field(1 << 30, description="size of the KV pool, e.g. 2GiB")
    weights_memory: Bytes = Field(4 << 30, description="size of the cache of merged full-weight members")
    max_context: int | None = Field(
        None,
        ge=2,
        description="longest prompt plus answer, in tokens",
        json_schema_extra={"shown_default": "the model's"},
    )
    max_queue: int = Field(256, ge=1, description="requests that may wait before new ones get 429")
    max_queue_tokens: int = Field(1 << 20, ge=1, description="prompt tokens that may wait before new requests get 429")
    prefix_cache: bool = Field(True, description="reuse the state of equal prefixes under equal weights")
    share_prefixes: bool = Field(
        False, description="reuse the state of equal prefixes among keys too, which lets them find out what others sent"
    )
    compiled_layers: bool = Field(
        True, description="on a CPU, compute the layers of a bfloat16 model as one compiled call"
    )
    quick_start: bool = Field(
        False,
        description="where loops have to be compiled for the processor first, answer meanwhile without them: slower, "
        "and from the change on with another system_fingerprint",
    )
    cuda_graphs: bool = Field(True, description="on a GPU, record decode steps and run the recordings")
    reproducible: bool = Field(
        False, description="on a CPU, let a request's tokens depend on the request alone, in bfloat16 too"
    )
    tensor_parallel: int = Field(1, ge=1, description="processes that share the models, each on a GPU of its own")
    expert_schedule: Literal["auto", "eager", "lazy"] = Field(
        "auto", description="whether routed experts compute every token, or what they missed once they are chosen"
    )
    default_max_tokens: int = Field(2048, ge=1, description="longest answer where a request sets no limit")
    max_choices: int = Field(128, ge=1, le=128, description="answers that one request may ask for")
    max_steering_changes: int = Field(
        64, ge=0, le=255, description="times that the steering of one answer may change, by a schedule and on the way"
    )
    min_verifier_tokens: int = Field(
        16, ge=1, le=4096, description="tokens of a thought at least, where a request says after how many to verify it"
    )
    max_search_draws: int = Field(16, ge=1, le=64, description="continuations that a search may draw of one text")
    max_search_beam: int = Field(4, ge=1, le=16, description="texts that a search may go on from at once")
    max_request_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens that one request may take, its prompts and all its answers at their longest",
        json_schema_extra={"shown_default": "no limit"},
    )
    kept_responses: int = Field(
        1000,
        ge=0,
        description="answers of /v1/responses that are kept for each key, to go on from",
    )
    kept_responses_bytes: Bytes = Field(32 << 20, description="size of the answers that are kept for each key")
    special_tokens_in_messages: bool = Field(
        False, description="read the names of special tokens in the texts of messages as these tokens"
    )
    allow_trace: bool = Field(
        True,
        description="allow per-token traces (a traced sequence costs a second lane)",
        json_schema_extra={"flag": "--trace"},
    )
    api_key_file: Path | None = Field(
        None,
        description="file with a line per key (see `ladle keys`), read again at SIGHUP; without it none is asked for",
    )
    key_concurrent: int | None = Field(
        None,
        ge=1,
        description="answers made at once for a key whose line does not say it",
        json_schema_extra={"shown_default": "no limit"},
    )
    key_tokens_per_minute: int | None = Field(
        None,
        ge=1,
        description="tokens a minute of prompts and answers for a key whose line does not say it",
        json_schema_extra={"shown_default": "no limit"},
    )
    max_body_bytes: Bytes = Field(4 << 20, description="largest request body")
    body_seconds: float = Field(30.0, gt=0, le=3600, description="how long a request's body may take to arrive")
    send_seconds: float = Field(30.0, gt=0, le=3600, description="how long a client may leave its answer unread")
    idle_connection_seconds: int = Field(
        75, ge=1, le=86400, description="how long a connection without a request is kept open"
    )
    trusted_hosts: list[str] = Field(
        [],
        description="name by which the server may be asked besides localhost and addresses: a name, *.NAME, or * for "
        "any; may be repeated",
        json_schema_extra={"flag": "--trusted-host"},
    )
    cors_origins: list[str] = Field(
        [],
        description="browser origin that may call the API; may be repeated",
        json_schema_extra={"flag": "--cors-origin"},
    )
    keep_alive_seconds: float = Field(15.0, gt=0, le=600, description="silence before a stream sends a comment")
    drain_seconds: float = Field(30.0, ge=0, description="how long SIGTERM lets running requests finish")
    cache_dir: Path | None = Field(None, description="where a converted base is kept")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe log lines shown")
    ray: bool = Field(
        False,
        description="serve with several replicas on Ray Serve; needs the extra [ray]",
        json_schema_extra={"only_on": True},
    )
    replicas: int = Field(1, ge=1, le=1000, description="replicas with ray, the fewest where there is a max_replicas")
    max_replicas: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="replicas there may be while requests queue",
        json_schema_extra={"shown_default": "replicas"},
    )
    replica_cpus: float = Field(1.0, ge=0, le=1000, description="CPU cores that a replica is counted with")
    playground: bool = Field(True, description="serve a page at / to try preferences on")
    log_format: Literal["text", "json"] = Field("text", description="log lines for people, or one JSON object a line")
    access_log: bool = Field(False, description="log a line for every HTTP request, and what it generated in numbers")
    log_prompts: bool = Field(False, description="put prompts and answers into those lines; needs access_log")
    otlp_traces_endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="URL that gets OpenTelemetry traces, e.g. http://localhost:4318/v1/traces",
    )

    @field_validator("speculate")
    @classmethod
    def _drafts(cls, value: str) -> str:
        _draft_tokens(value)
        return value

    @field_validator("families_dir")
    @classmethod
    def _folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError(f"{str(value)!r} is not allowed; allowed: a folder that is there")
        return value

    @field_validator("root_path")
    @classmethod
    def _not_one_of_ours(cls, value: str) -> str:
        if value.split("/")[1:2] and value.split("/")[1] in _OWN_PATHS:
            raise ValueError(
                f"{value!r} is not allowed; allowed: a path that does not begin like one of the server's own"
            )
        return value

    @field_validator("trusted_hosts")
    @classmethod
    def _host_names(cls, value: list[str]) -> list[str]:
        for host in value:
            if host != ANY and not _HOST.fullmatch(host):
                allowed = "a host name or address without port, *.NAME, or * for any"
                raise ValueError(f"{host!r} is not allowed; allowed: {allowed}")
        return value

    @model_validator(mode="after")
    def _limits_of_keys(self) -> ServerSettings:
        for name in ("key_concurrent", "key_tokens_per_minute"):
            if getattr(self, name) is not None and self.api_key_file is None:
                raise InputError(name, getattr(self, name), reason="it needs api_key_file")
        return self

    @model_validator(mode="after")
    def _nothing_to_start_with(self) -> ServerSettings:
        reasons = {
            "reproducible": self.reproducible and "what is computed with loops and without differs in the last bits",
            "quantize": self.quantize != "none" and "quantised products are compiled ones",
            "ray": self.ray and "replicas wait for compiled loops",
        }
        for name, reason in reasons.items():
            if self.quick_start and reason:
                raise InputError("quick_start", True, reason=f"not with {name}: {reason}")
        return self

    @property
    def host_names(self) -> HostNames:
        """The names by which a server with these settings may be asked."""
        return HostNames.of(self.host, self.trusted_hosts)

    def read_keys(self) -> ApiKeys | None:
        """The keys that are asked for; None: no keys. Raises InputError."""
        # Here, as below: what imports the web framework or torch is not for the list of options.
        from ladle.server.access.api_keys import ApiKeys
        from ladle.server.access.callers import Limits

        limits = Limits(self.key_concurrent, self.key_tokens_per_minute)
        return None if self.api_key_file is None else ApiKeys.read(self.api_key_file, limits)

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not _DEVICE.fullmatch(value):
            raise ValueError(f"{value!r} is not allowed; allowed: auto, cpu, cuda, cuda:N")
        return value

    @field_validator("max_replicas")
    @classmethod
    def _not_below_the_least(cls, value: int | None, info: ValidationInfo) -> int | None:
        least = info.data.get("replicas", 1)
        if value is not None and value < least:
            raise ValueError(f"{value} is not allowed; allowed: at least {least}, the value of replicas")
        return value

    @field_validator("log_prompts")
    @classmethod
    def _somewhere_to_log(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not info.data.get("access_log"):
            raise ValueError("true is not allowed without access_log, whose lines they are part of")
        return value

    def engine_config(self) -> EngineConfig:
        """The engine's share of the settings. Raises InputError."""
        from ladle.server.engine.engine_config import EngineConfig

        drafts = _draft_tokens(self.speculate)
        return EngineConfig(
            device=self.device,
            dtype=self.dtype,
            max_sequences=self.max_sequences,
            max_lanes=self.max_lanes,
            max_batch_tokens=self.max_batch_tokens,
            prefill_slowdown=self.prefill_slowdown,
            draft_tokens=drafts["ngram"],
            model_draft_tokens=drafts["model"],
            kv_memory=self.kv_memory,
            weights_memory=self.weights_memory,
            max_context=self.max_context,
            max_queue=self.max_queue,
            max_queue_tokens=self.max_queue_tokens,
            prefix_cache=self.prefix_cache,
            quantize=self.quantize,
            compiled_layers=self.compiled_layers,
            reproducible=self.reproducible,
            cuda_graphs=self.cuda_graphs,
            tensor_parallel=self.tensor_parallel,
            expert_schedule=self.expert_schedule,
        )
