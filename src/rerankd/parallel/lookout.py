"""Distinguishes a replica that computes from a replica that was stopped or hangs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from rerankd.memory import Trimmer
from rerankd.parallel.places import Place

log = logging.getLogger("rerankd")

LOOKS = 6
"""The process of a replica is killed after this number of checks in a row without a sign of life."""
MOST_SECONDS_BETWEEN_LOOKS = 5.0


def look(places: Sequence[Place], changed: threading.Condition, stop: threading.Event, timeout: float) -> None:
    """Ask replicas for a sign of life until `stop`. A replica that gives none is killed, and others get its batches.

    Looks are counted and not seconds: a machine that sleeps wakes up with all its processes.

    changed: guards the places
    timeout: seconds in which a sign has to come, or sooner

    In a moment without a batch it gives back the memory that reading requests took: each replica has its own.
    """
    trimmer = Trimmer()
    while not stop.wait(min(timeout / LOOKS, MOST_SECONDS_BETWEEN_LOOKS)):
        with changed:
            for place in places:
                if place.replica is None:
                    continue
                if place.silent >= LOOKS:
                    log.error("Replica %d gives no sign of life, and its process is ended.", place.number)
                    place.replica.kill()
                place.silent += 1
                place.asked = True
            idle = not any(place.batches for place in places)
            changed.notify_all()
        if idle:
            trimmer.look()
