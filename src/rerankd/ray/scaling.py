"""The number of replicas that Ray Serve runs: it follows the number of waiting tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

WAITING, RATE, BUSY = "queue_tokens", "tokens_per_second", "busy"
"""The reports of each replica: tokens to compute for waiting documents, the speed of its last batches, and the part of
the time in which its model computed."""
MOST_BUSY = 0.8
"""No replica is stopped where the others would be busier than that on average."""


class QueueTokens:
    """Ray's autoscaling policy: the replicas that the tokens that wait are shared out to, `tokens` for each.

    An empty queue says nothing of how busy replicas are. So fewer of them do not become too few: see MOST_BUSY. Ray
    keeps the number between `min_replicas` and `max_replicas`, and waits `upscale_delay_s` or `downscale_delay_s`.
    """

    def __init__(self, tokens: float | None = None) -> None:
        """tokens: None for as many as a replica computes in a second"""
        self._tokens = tokens

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The replicas that are wanted, and no state: Ray calls it for each decision."""
        running = context.current_num_replicas
        reports = context.aggregated_metrics or {}
        waiting = reports.get(WAITING, {})
        rates = [rate for rate in reports.get(RATE, {}).values() if rate > 0]
        target = self._tokens or (sum(rates) / len(rates) if rates else None)
        for_queue = sum(waiting.values()) / target if target else 0.0
        # A replica that has not reported yet may have any work.
        all_reported = len(waiting) >= running
        for_busy = sum(reports.get(BUSY, {}).values()) / MOST_BUSY if all_reported else running
        return max(for_queue, min(for_busy, running)), {}
