"""From a plan to a model that computes: in this process, or in the processes of its replicas."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from rerankd.backends.select import alone
from rerankd.compute_thread import Compute
from rerankd.core import EngineDead, EngineLoad, PromptGroup, Stage
from rerankd.engine.engine import Engine
from rerankd.loading import Plan
from rerankd.memory import trim_memory
from rerankd.models.facts import HeadFacts
from rerankd.parallel.leader import Followers, LeadingModel
from rerankd.parallel.processes import Home, Processes
from rerankd.parallel.replicas import Replicas
from rerankd.threads import Share, shares


class Scores(Protocol):
    """The methods that `Engine` and `Replicas` share; see there."""

    @property
    def failure(self) -> EngineDead | None: ...

    def load(self) -> EngineLoad: ...

    def submit(
        self,
        group: PromptGroup,
        on_progress: Callable[[int], object] | None = None,
        stages: list[Stage] | None = None,
    ) -> Future[list[float]]: ...

    def held(self) -> AbstractContextManager[None]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Started:
    """A model that computes."""

    engine: Scores
    head: HeadFacts
    followers: Followers | None = None

    def close(self) -> None:
        """Stop the engine. Waiting requests fail with EngineClosed."""
        self.engine.close()
        if self.followers:
            self.followers.close()


def start(planned: Plan, compute: Compute) -> Started:
    """Load the model and its engine, in as many processes as the options say. Raises ModelError.

    compute: runs the batches of an engine of this process; a replica has a process, and so a thread, of its own
    """
    options, placement = planned.options, planned.placement
    batch_tokens = options.max_batch_tokens or placement.batch_tokens
    if len(planned.devices) > 1:
        # Before processes are started that would all say it.
        planned.backend()
        replicas = Replicas(
            Processes(homes(planned), planned.forks),
            batch_tokens,
            placement.in_flight,
            options.max_queued_tokens,
            options.engine_timeout,
        )
        # Free the memory of planning: this process loads nothing more.
        trim_memory()
        return Started(replicas, replicas.head)
    model = planned.load()
    engine = Engine(
        model,
        placement.device,
        batch_tokens,
        options.engine_timeout,
        placement.in_flight,
        options.max_queued_tokens,
        compute,
    )
    followers = model.followers if isinstance(model, LeadingModel) else None
    if followers:
        followers.watch(engine.give_up)
    return Started(engine, HeadFacts.of(model.head), followers)


def homes(planned: Plan) -> list[Home]:
    """The device, the cores and the threads of each replica."""
    options, count = planned.resolved_options, len(planned.devices)
    on_cpu = planned.placement.device.type == "cpu"
    cpu_shares = shares(count, options.num_threads) if on_cpu else [Share(options.num_threads or 1)] * count
    homes = []
    for name, share in zip(planned.devices, cpu_shares, strict=True):
        device, environment = alone(name)
        threads = share.threads if on_cpu else options.num_threads
        loaded = replace(options, device=device, data_parallel_size=1, num_threads=threads)
        homes.append(Home(loaded, share, environment))
    return homes
