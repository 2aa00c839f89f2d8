"""The speed of a machine over time, as it was measured.

No machine has one speed: on a shared host it varies by the second, for all that runs there. So a `Clock` goes as fast
as a real machine went, in contiguous pieces of what was measured there (a moving block bootstrap: Künsch, "The
jackknife and the bootstrap for general stationary observations", 1989).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from random import Random

BLOCK = 5.0
"""Seconds of a contiguous piece of what was measured: as long as slow spells are, or longer."""


class Clock:
    """When work is done by a machine whose speed varies as it did in a trace: pieces of it, from random places."""

    def __init__(self, trace: Sequence[tuple[float, float]], random: Random) -> None:
        """trace: seconds that passed, and the work that was done in them, in seconds of the machine's usual speed"""
        self._trace = trace
        self._random = random
        self._usual = sum(work for _, work in trace) / sum(seconds for seconds, _ in trace)
        self._times, self._works = [0.0], [0.0]

    def end(self, start: float, work: float) -> float:
        """When so much work is done that begins at `start`."""
        if (idle := start - self._times[-1]) > BLOCK:
            # Nothing was done for so long that the speed meanwhile is all the same.
            self._pass(idle, idle * self._usual)
        while self._times[-1] <= start:
            self._extend()
        place = bisect_right(self._times, start) - 1
        speed = self._speed(place)
        done = self._works[place] + (start - self._times[place]) * speed + work
        while self._works[-1] < done:
            self._extend()
        place = max(bisect_left(self._works, done, place) - 1, place)
        return max(self._times[place] + (done - self._works[place]) / self._speed(place), start)

    def work(self, start: float, end: float) -> float:
        """The work that is done between two times, as long as something is done all the time."""
        while self._times[-1] <= end:
            self._extend()
        return self._done(end) - self._done(start)

    def _done(self, moment: float) -> float:
        place = bisect_right(self._times, moment) - 1
        return self._works[place] + (moment - self._times[place]) * self._speed(place)

    def _speed(self, place: int) -> float:
        times, works = self._times, self._works
        return (works[place + 1] - works[place]) / (times[place + 1] - times[place])

    def _extend(self) -> None:
        place, block = self._random.randrange(len(self._trace)), 0.0
        for number in range(len(self._trace)):
            seconds, work = self._trace[(place + number) % len(self._trace)]
            self._pass(seconds, work)
            block += seconds
            if block >= BLOCK:
                break

    def _pass(self, seconds: float, work: float) -> None:
        self._times.append(self._times[-1] + seconds)
        self._works.append(self._works[-1] + work)
