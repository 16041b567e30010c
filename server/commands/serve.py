"""``ladle serve``."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ladle.merging.family.place import local_manifest
from ladle.server.commands.output import clear_errors, complain, given, print_json, say
from ladle.server.commands.serve_options import with_server_options
from ladle.server.engine.device.early_code import begin_code
from ladle.server.settings import ServerSettings
from ladle.server.watch.logs import configure_logging

logger = logging.getLogger("ladle.serve")


@with_server_options
def command(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's address as JSON on stdout.")] = False,
    **options: Any,
) -> None:
    """Serve a family over HTTP until SIGTERM or Ctrl-C.

    Every option can also be set as an environment variable, e.g. LADLE_KV_MEMORY=2GiB.

    Example: ladle serve demo --port 8000 --kv-memory 2GiB
    """
    as_lines = (options["log_format"] or os.environ.get("LADLE_LOG_FORMAT", "")).lower() == "json"
    if as_lines:
        # From the first line to the last: what is said, what fails and what other packages show as bars.
        configure_logging("info", "json")
        os.environ.setdefault("TQDM_DISABLE", "1")
    tell, fail = (logger.info, logger.error) if as_lines else (say, complain)
    with clear_errors(fail):
        # Before anything heavy is imported: a slip is told at once.
        local_manifest(options["family"] or os.environ.get("LADLE_FAMILY") or "demo")
        settings = ServerSettings(**given(options))
    # torch's threads wait for each other by spinning, which takes the cores from requests being parsed and from other
    # processes. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A step has any number of rows, and oneDNN keeps what it compiles for each: half a megabyte a product and number,
    # up to 1024 of them. To compile one again takes less than a millisecond.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "96")
    # The engine's thread gives the interpreter away at every operation of a step. Whoever holds it then, say to refuse
    # a request, keeps it for this long, and steps have hundreds of operations; Python's own 5 ms are many steps.
    sys.setswitchinterval(0.0005)
    if not settings.ray and begin_code(
        settings.device,
        settings.dtype,
        settings.quantize,
        settings.compiled_layers,
        settings.tensor_parallel,
        settings.quick_start,
    ):
        meanwhile = "; the first answers do without them" if settings.quick_start else ""
        tell(f"compiling loops for this processor, which are kept for the next start{meanwhile}")
    # Here, so that other commands do not wait for torch to be imported.
    from ladle.server.engine.device.allocator import prepare, settle
    from ladle.server.run import Service, listen, url_of
    from ladle.server.serving import Serving

    prepare()
    with clear_errors(fail):
        configure_logging(settings.log_level, settings.log_format, settings.log_prompts)
        with listen(settings.host, settings.port) as listener:
            url = url_of(listener)
            tell(f"it is to be asked by these names: {settings.host_names} (--trusted-host adds others)")

            def ready(serving: Serving) -> None:
                settle()
                if as_json:
                    print_json({"url": url, "family": serving.family.name, "max_context": serving.engine.max_context})
                page = "open it in a browser for the playground; " if settings.playground else ""
                tell(f"{serving.family.name} is served at {url} ({page}API: {url}/docs; Ctrl-C stops)")

            if settings.ray:
                serve_on_ray(settings, listener, url, as_json, tell)
                return
            service = Service(settings, progress=tell, on_ready=ready)
            service.run(listener)
    if service.busy:
        # The interpreter cannot end under a thread that computes in torch: the process would abort. A load cannot be
        # interrupted either, and nobody waits for it any more.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def serve_on_ray(
    settings: ServerSettings, listener: socket.socket, url: str, as_json: bool, tell: Callable[[str], None] = say
) -> None:
    """Serve with replicas on Ray. Raises StartError where Ray is not installed."""
    from ladle.server.watch.start_error import StartError

    try:
        import ray  # noqa: F401
    except ImportError:
        raise StartError("--ray needs Ray: pip install 'ladle[ray]'") from None
    from ladle.server.scale_out.serve_ray import RayService

    def ready(about: dict[str, Any]) -> None:
        if as_json:
            print_json({"url": url, "family": about["family"], "max_context": about["max_context"]})
        tell(f"{about['family']} is served at {url} by {settings.replicas} replicas (Ctrl-C stops)")

    RayService(settings, on_ready=ready).run(listener)
