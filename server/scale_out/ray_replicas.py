"""Replicas that Ray Serve keeps: as many as the load asks for, new ones for those that die."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import Message

from ladle.server.scale_out.front import ReplicaLost
from ladle.server.scale_out.replica import Replica
from ladle.server.scale_out.replica_router import AffinityRouter
from ladle.server.settings import ServerSettings

NAME = "ladle"
# Of the requests that a replica can run at once, how many it should have on average: more asks for another replica.
_LOAD = 0.75
_PATIENCE_S = 10.0  # how long it must have had more before there is another one


def application(settings: ServerSettings) -> serve.Application:
    """Replicas of a server with ``settings``: ``replicas`` of them, up to ``max_replicas`` while requests queue."""
    scaling: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas is not None and settings.max_replicas > settings.replicas:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=settings.replicas,
                max_replicas=settings.max_replicas,
                target_ongoing_requests=max(1.0, _LOAD * settings.max_sequences),
                upscale_delay_s=_PATIENCE_S,
            )
        }
    deployment = serve.deployment(
        Replica,
        name="Replica",
        # What waits, waits in the replica's own queue, which refuses honestly when it is full.
        max_ongoing_requests=settings.max_sequences + settings.max_queue + 16,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        health_check_timeout_s=30,
        ray_actor_options={
            "num_cpus": settings.replica_cpus,
            "num_gpus": settings.tensor_parallel if settings.device.startswith("cuda") else 0,
        },
        request_router_config=RequestRouterConfig(
            request_router_class=AffinityRouter,
            request_router_kwargs={"slack": max(1, settings.max_sequences // 4)},
        ),
        **scaling,
    )
    return deployment.bind(settings.model_dump(mode="json"))


class RayReplicas:
    """The replicas behind ``handle``."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)

    async def answer(
        self, scope: Mapping[str, Any], body: bytes, affinity: list[bytes]
    ) -> AsyncGenerator[list[Message]]:
        """See ``front.Replicas``."""
        batches = self._streaming.answer.remote(scope, body, affinity=affinity)
        ended = False
        try:
            async for batch in batches:
                yield batch
            ended = True
        except (RayActorError, RayTaskError, RayServeException, TaskCancelledError) as error:
            ended = True
            raise ReplicaLost(type(error).__name__) from error
        finally:
            if not ended:
                batches.cancel()

    async def about(self) -> dict[str, Any]:
        """See ``front.Replicas``."""
        try:
            facts: dict[str, Any] = await self._handle.about.remote()
        except (RayActorError, RayTaskError, RayServeException, TaskCancelledError) as error:
            raise ReplicaLost(type(error).__name__) from error
        return facts

    async def metrics(self) -> list[tuple[str, bytes]]:
        """See ``front.Replicas``."""
        results = await self._handle.broadcast("metrics").results_async(return_exceptions=True)
        return [entry for entry in results if not isinstance(entry, BaseException)]
