"""Ray Serve's choice of a replica: the one that knows the request's prefix, unless it has much more to do."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from ladle.server.scale_out.affinity import AffinityTable


class AffinityRouter(RequestRouter):
    """Requests come with ``affinity=``, names of their prefixes (see ``affinity_keys``).

    The replica that has the longest of them is asked first, as long as it has at most ``slack`` requests more than the
    one with the fewest; else, and where nobody has any, the shorter queue of two drawn at random.
    """

    def initialize_state(self, slack: int = 8) -> None:
        """Called by Ray with ``request_router_kwargs``."""
        self._slack = slack
        self._table = AffinityTable()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._table.keep({replica.replica_id.unique_id for replica in replicas})

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of candidates, the ones to try first in front."""
        others = list(candidate_replicas)
        random.shuffle(others)
        ranks = [others[:2], others[2:]]
        best = None if pending_request is None else self._table.best(_keys(pending_request))
        known = next((replica for replica in others if replica.replica_id.unique_id == best), None)
        if known is not None and self._waiting(known) <= min(map(self._waiting, others)) + self._slack:
            ranks.insert(0, [known])
        return [rank for rank in ranks if rank]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        self._table.note(_keys(pending_request), replica_id.unique_id)

    def _waiting(self, replica: RunningReplica) -> int:
        """What it had to do when it was last heard of."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0


def _keys(request: PendingRequest) -> list[Any]:
    keys: list[Any] = request.kwargs.get("affinity", [])
    return keys
