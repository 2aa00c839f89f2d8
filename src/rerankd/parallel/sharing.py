"""How much of a queue goes into one batch, where several replicas take batches of it."""

from __future__ import annotations

import math

LEAST_TOKENS = 512
"""The queue is cut into no smaller batches for idle replicas: a small batch costs more for each token, and is hardly
done sooner."""


def fair_budget(waiting: int, longest: int, batch_tokens: int, replicas: int) -> int:
    """The tokens of a batch with which all replicas get as many batches of the waiting documents, and as large ones.

    waiting: tokens to compute for the waiting documents
    longest: tokens of their longest prompt
    batch_tokens: the most tokens of a batch

    It depends on the queue alone, and not on which replica is idle: equal queues are cut into equal batches.
    """
    # Each batch but the last may lack as many tokens as the document that begins the next, and repeats its prefix.
    filled = max(batch_tokens - longest, 1)
    each = math.ceil(waiting / (replicas * math.ceil(waiting / (replicas * filled))))
    return min(max(each + longest, LEAST_TOKENS), batch_tokens)
