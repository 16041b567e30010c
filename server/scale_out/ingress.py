"""The front as a deployment of its own, behind Ray's proxies: for clusters that run applications by their import path,
such as KubeRay's.

    serve run ladle.server.scale_out.ingress:build family=demo replicas=2

``ladle serve --ray`` has its front in its own process instead, where no replica's death can take it along.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Receive, Scope, Send

from ladle.server.access.hosts import HostNames
from ladle.server.access.security import BodyLimit, TrustedHosts
from ladle.server.http.request_shape import Failures, WithoutPrefix
from ladle.server.scale_out.front import Front
from ladle.server.scale_out.ray_replicas import RayReplicas, application
from ladle.server.settings import ServerSettings
from ladle.server.watch.logs import configure_logging


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await serve.get_replica_context().servable_object.limited(scope, receive, send)


def _build() -> ASGIApp:
    return _app


@serve.ingress(_build)  # Ray takes a plain function for one that makes an application
class Entry:
    """What Ray's proxies send requests to."""

    def __init__(self, replicas: DeploymentHandle, options: dict[str, Any]) -> None:
        settings = ServerSettings(**options)
        configure_logging(settings.log_level, settings.log_format, settings.log_prompts)
        front = Front(lambda: None)
        front.replicas = RayReplicas(replicas)
        limited = BodyLimit(Failures(front), limit=settings.max_body_bytes, seconds=settings.body_seconds)
        # Ray's proxies listen on all addresses, whatever ``host`` says.
        known = TrustedHosts(limited, HostNames.of("0.0.0.0", settings.trusted_hosts))
        self.limited = WithoutPrefix(known, settings.root_path)


def build(options: dict[str, Any]) -> serve.Application:
    """The application with ``options`` of ServerSettings; ``fronts`` is how many fronts there are (1)."""
    rest = {name: value for name, value in options.items() if name != "fronts"}
    settings = ServerSettings(**rest)
    entry = serve.deployment(
        Entry,
        name="Front",
        num_replicas=int(options.get("fronts", 1)),
        max_ongoing_requests=10_000,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        ray_actor_options={"num_cpus": 0},
    )
    return entry.bind(application(settings), settings.model_dump(mode="json"))
