"""``ladle serve``."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ladle.server.commands.output import clear_errors, given, print_json, say

if TYPE_CHECKING:
    from ladle.server.settings import ServerSettings


def command(
    family: Annotated[
        str | None,
        typer.Argument(help="A built-in family, a folder with family.toml, or a hub id.", show_default="demo"),
    ] = None,
    families_dir: Annotated[
        Path | None, typer.Option(help="Folder of families that an administrator may load while the server runs.")
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(help="File with the chat template to use.", show_default="the base's, else a member's"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one.", show_default="8000")] = None,
    root_path: Annotated[
        str | None, typer.Option(help="Path under which a proxy publishes the server, such as /ladle.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default="auto")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.", show_default="auto")] = None,
    max_sequences: Annotated[int | None, typer.Option(help="Sequences that run at once.", show_default="64")] = None,
    max_lanes: Annotated[
        int | None,
        typer.Option(help="KV lanes at once; guided sequences have several.", show_default="4 x max-sequences"),
    ] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(help="Token budget of a step.", show_default="512")] = None,
    kv_memory: Annotated[str | None, typer.Option(help="Size of the KV pool.", show_default="1GiB")] = None,
    weights_memory: Annotated[
        str | None, typer.Option(help="Size of the cache of merged full-weight members.", show_default="4GiB")
    ] = None,
    max_context: Annotated[
        int | None, typer.Option(help="Longest prompt plus answer in tokens.", show_default="the model's")
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(help="Requests that may wait before new ones get 429.", show_default="256")
    ] = None,
    max_queue_tokens: Annotated[
        int | None,
        typer.Option(help="Prompt tokens that may wait before requests get 429.", show_default="1048576"),
    ] = None,
    prefix_cache: Annotated[
        bool | None,
        typer.Option("--prefix-cache/--no-prefix-cache", help="Reuse the state of equal prefixes.", show_default="on"),
    ] = None,
    share_prefixes: Annotated[
        bool | None,
        typer.Option(
            "--share-prefixes/--no-share-prefixes",
            help="Reuse it among API keys too, which lets them find out what others sent.",
            show_default="off",
        ),
    ] = None,
    compiled_layers: Annotated[
        bool | None,
        typer.Option(
            "--compiled-layers/--no-compiled-layers",
            help="On a CPU, compile the layers of a small bfloat16 model.",
            show_default="on",
        ),
    ] = None,
    cuda_graphs: Annotated[
        bool | None,
        typer.Option(
            "--cuda-graphs/--no-cuda-graphs",
            help="On a GPU, record decode steps at the start, and run the recordings.",
            show_default="on",
        ),
    ] = None,
    reproducible: Annotated[
        bool | None,
        typer.Option(
            "--reproducible/--no-reproducible",
            help="On a CPU, let a request's tokens depend on the request alone, in bfloat16 too.",
            show_default="off",
        ),
    ] = None,
    tensor_parallel: Annotated[
        int | None,
        typer.Option(help="Processes that share the models, each on a GPU of its own.", show_default="1"),
    ] = None,
    expert_schedule: Annotated[
        Literal["auto", "eager", "lazy"] | None,
        typer.Option(
            help="Routed experts compute every token (eager), or what they missed once chosen (lazy).",
            show_default="auto",
        ),
    ] = None,
    default_max_tokens: Annotated[
        int | None, typer.Option(help="Longest answer where a request sets no limit.", show_default="2048")
    ] = None,
    max_choices: Annotated[
        int | None, typer.Option(help="Answers that one request may ask for.", show_default="128")
    ] = None,
    max_steering_changes: Annotated[
        int | None,
        typer.Option(help="Times that the steering of one answer may change on the way.", show_default="64"),
    ] = None,
    max_request_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of one request, prompts and answers at their longest.", show_default="no limit"),
    ] = None,
    kept_responses: Annotated[
        int | None,
        typer.Option(help="Answers of /v1/responses that are kept for each key.", show_default="1000"),
    ] = None,
    kept_responses_bytes: Annotated[
        str | None, typer.Option(help="Size of the answers that are kept for each key.", show_default="32MiB")
    ] = None,
    special_tokens_in_messages: Annotated[
        bool | None,
        typer.Option(
            "--special-tokens-in-messages/--no-special-tokens-in-messages",
            help="Read the names of special tokens in the texts of messages as these tokens.",
            show_default="off",
        ),
    ] = None,
    allow_trace: Annotated[
        bool | None, typer.Option("--trace/--no-trace", help="Allow per-token traces.", show_default="on")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with a line a key, from `ladle keys`; without it no key is asked for."),
    ] = None,
    key_concurrent: Annotated[
        int | None, typer.Option(help="Answers at once for a key whose line does not say.", show_default="no limit")
    ] = None,
    key_tokens_per_minute: Annotated[
        int | None, typer.Option(help="Tokens a minute for a key whose line does not say.", show_default="no limit")
    ] = None,
    max_body_bytes: Annotated[str | None, typer.Option(help="Largest request body.", show_default="4MiB")] = None,
    body_seconds: Annotated[
        float | None, typer.Option(help="How long a request's body may take to arrive.", show_default="30")
    ] = None,
    send_seconds: Annotated[
        float | None, typer.Option(help="How long a client may leave its answer unread.", show_default="30")
    ] = None,
    idle_connection_seconds: Annotated[
        int | None,
        typer.Option(help="How long a connection without a request is kept open.", show_default="75"),
    ] = None,
    trusted_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name by which the server may be asked besides localhost and addresses: a name, *.NAME, or * for any; "
            "may be repeated."
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Browser origin that may call the API; may be repeated.")
    ] = None,
    playground: Annotated[
        bool | None, typer.Option("--playground/--no-playground", help="Serve a page at /.", show_default="on")
    ] = None,
    drain_seconds: Annotated[
        float | None, typer.Option(help="How long SIGTERM lets running requests finish.", show_default="30")
    ] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Where a converted base is kept.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.", show_default="info")] = None,
    access_log: Annotated[
        bool | None, typer.Option("--access-log/--no-access-log", help="Log every request.", show_default="off")
    ] = None,
    ray: Annotated[bool | None, typer.Option("--ray", help="Serve with several replicas on Ray Serve.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Replicas, with --ray.", show_default="1")] = None,
    max_replicas: Annotated[
        int | None, typer.Option(help="Replicas there may be while requests queue.", show_default="replicas")
    ] = None,
    replica_cpus: Annotated[
        float | None, typer.Option(help="CPU cores that a replica is counted with.", show_default="1")
    ] = None,
    log_format: Annotated[
        Literal["text", "json"] | None, typer.Option(help="Log lines for people or programs.", show_default="text")
    ] = None,
    log_prompts: Annotated[
        bool | None,
        typer.Option(
            "--log-prompts/--no-log-prompts", help="Put prompts and answers into --access-log.", show_default="off"
        ),
    ] = None,
    otlp_traces_endpoint: Annotated[
        str | None, typer.Option(help="URL that gets OpenTelemetry traces (extra [otel]).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say in JSON, on stdout, where it serves.")] = False,
) -> None:
    """Serve a family over HTTP until SIGTERM or Ctrl-C.

    Every option can also be set as an environment variable, e.g. LADLE_KV_MEMORY=2GiB.

    Example: ladle serve demo --port 8000 --kv-memory 2GiB
    """
    # torch's threads wait for each other by spinning, which takes the cores from requests being parsed and from other
    # processes. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A step has any number of rows, and oneDNN keeps what it compiles for each: half a megabyte a product and number,
    # up to 1024 of them. To compile one again takes less than a millisecond.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "96")
    # The engine's thread gives the interpreter away at every operation of a step. Whoever holds it then, say to refuse
    # a request, keeps it for this long, and steps have hundreds of operations; Python's own 5 ms are many steps.
    sys.setswitchinterval(0.0005)
    # Here, so that other commands do not wait for torch to be imported.
    from ladle.server.engine.device.allocator import prepare
    from ladle.server.run import Service, listen, url_of
    from ladle.server.serving import Serving
    from ladle.server.settings import ServerSettings
    from ladle.server.watch.logs import configure_logging

    prepare()
    options = {
        "family": family,
        "families_dir": families_dir,
        "chat_template": chat_template,
        "host": host,
        "port": port,
        "root_path": root_path,
        "device": device,
        "dtype": dtype,
        "max_sequences": max_sequences,
        "max_lanes": max_lanes,
        "max_batch_tokens": max_batch_tokens,
        "kv_memory": kv_memory,
        "weights_memory": weights_memory,
        "max_context": max_context,
        "max_queue": max_queue,
        "max_queue_tokens": max_queue_tokens,
        "prefix_cache": prefix_cache,
        "share_prefixes": share_prefixes,
        "compiled_layers": compiled_layers,
        "reproducible": reproducible,
        "cuda_graphs": cuda_graphs,
        "tensor_parallel": tensor_parallel,
        "expert_schedule": expert_schedule,
        "default_max_tokens": default_max_tokens,
        "max_choices": max_choices,
        "max_steering_changes": max_steering_changes,
        "max_request_tokens": max_request_tokens,
        "kept_responses": kept_responses,
        "kept_responses_bytes": kept_responses_bytes,
        "special_tokens_in_messages": special_tokens_in_messages,
        "allow_trace": allow_trace,
        "api_key_file": api_key_file,
        "key_concurrent": key_concurrent,
        "key_tokens_per_minute": key_tokens_per_minute,
        "max_body_bytes": max_body_bytes,
        "body_seconds": body_seconds,
        "send_seconds": send_seconds,
        "idle_connection_seconds": idle_connection_seconds,
        "trusted_hosts": trusted_host,
        "cors_origins": cors_origin,
        "playground": playground,
        "drain_seconds": drain_seconds,
        "cache_dir": cache_dir,
        "log_level": log_level,
        "ray": ray,
        "replicas": replicas,
        "max_replicas": max_replicas,
        "replica_cpus": replica_cpus,
        "log_format": log_format,
        "access_log": access_log,
        "log_prompts": log_prompts,
        "otlp_traces_endpoint": otlp_traces_endpoint,
    }
    with clear_errors():
        settings = ServerSettings(**given(options))
        configure_logging(settings.log_level, settings.log_format, settings.log_prompts)
        with listen(settings.host, settings.port) as listener:
            url = url_of(listener)
            say(f"it is to be asked by these names: {settings.host_names} (--trusted-host adds others)")

            def ready(serving: Serving) -> None:
                if as_json:
                    print_json({"url": url, "family": serving.family.name, "max_context": serving.engine.max_context})
                say(f"{serving.family.name} is served at {url} (documentation: {url}/docs; Ctrl-C stops)")

            if settings.ray:
                serve_on_ray(settings, listener, url, as_json)
                return
            service = Service(settings, progress=say, on_ready=ready)
            service.run(listener)
    if service.busy:
        # The interpreter cannot end under a thread that computes in torch: the process would abort. A load cannot be
        # interrupted either, and nobody waits for it any more.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def serve_on_ray(settings: ServerSettings, listener: socket.socket, url: str, as_json: bool) -> None:
    """The same with replicas. Raises StartError where Ray is not installed."""
    from ladle.server.start_error import StartError

    try:
        import ray  # noqa: F401
    except ImportError:
        raise StartError("--ray needs Ray: pip install 'ladle[ray]'") from None
    from ladle.server.scale_out.run import RayService

    def ready(about: dict[str, Any]) -> None:
        if as_json:
            print_json({"url": url, "family": about["family"], "max_context": about["max_context"]})
        say(f"{about['family']} is served at {url} by {settings.replicas} replicas (Ctrl-C stops)")

    RayService(settings, on_ready=ready).run(listener)
