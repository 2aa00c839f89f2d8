"""The models of a server: loaded for calls, and unloaded when they idle, sleep, or another model needs the memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from rerankd.core import EngineDead, EngineLoad, ModelError, TextToken
from rerankd.memory import exempt_from_collection, free_memory
from rerankd.server.problems import ASLEEP, Problem

if TYPE_CHECKING:
    from rerankd.options import ModelInfo
    from rerankd.server.service import Closes, Serves

log = logging.getLogger("rerankd")

IDLE = EngineLoad(waiting=0, batches=0, tokens=0, seconds=0.0)
LEAST_PAUSE = 1.0
"""Seconds before a model that could not be loaded is tried again; more where it had taken longer to fail."""
GIGABYTE = 1 << 30


class Model:
    """A model by its names, and its reranker while it is loaded. A `Pool` changes it, in its event loop.

    users: the tasks of the calls that it is lent to, or that wait for it
    used: the end of the last call, by `monotonic`
    close: unloads the reranker, if the model owns it
    asleep: whether calls are refused until the model is woken
    loads: the number of loads
    again: the time at which a failed load may be tried again, by `monotonic`
    """

    def __init__(
        self,
        names: tuple[str, ...],
        info: ModelInfo,
        make: Callable[[], Closes] | None = None,
        size: int = 0,
    ) -> None:
        """make: loads it, which takes its time; None for one that is its caller's, who has it loaded for good
        size: bytes of its weights
        """
        self.names = names
        self.info = info
        self.make = make
        self.size = size
        self.reranker: Serves | None = None
        self.close: Callable[[], None] | None = None
        self.users: list[asyncio.Task[object]] = []
        self.used = monotonic()
        self.asleep = False
        self.loads = 0
        self.loading: asyncio.Task[None] | None = None
        self.again = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self._before = IDLE

    @classmethod
    def of(cls, reranker: Serves, names: tuple[str, ...]) -> Model:
        """A model that is its caller's, loaded for good."""
        model = cls(names, reranker.info)
        model.reranker, model.loads = reranker, 1
        return model

    def begin(self) -> None:
        """Load it; this takes its time. Raises ModelError."""
        assert self.make is not None
        self.keep(self.make())
        log.info("%s is loaded.", self.names[0])

    def keep(self, reranker: Closes) -> None:
        """Take a reranker that was just loaded as the model's own."""
        self.close, self.reranker = reranker.close, reranker
        # An equal description stays the same object: `Hosted.served` compares by identity.
        self.info = self.info if self.info == reranker.info else reranker.info
        self.loads += 1

    def load(self) -> EngineLoad:
        """How busy its engine is, and what its engines have done since the start of the server."""
        return self._before if self.reranker is None else added((self._before, self.reranker.load()))

    def tokenize(self, text: str, special: bool) -> list[TextToken]:
        """`Serves.tokenize`, for a call that the model is lent to."""
        assert self.reranker is not None
        return self.reranker.tokenize(text, special)

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """`Serves.decode`, for a call that the model is lent to."""
        assert self.reranker is not None
        return self.reranker.decode(ids, skip_special)

    def end(self) -> Callable[[], None]:
        """Take its reranker away. The callable closes that, and has the only reference to it."""
        reranker, close = self.reranker, self.close
        assert reranker is not None
        assert close is not None
        load = reranker.load()
        self._before = added((self._before, EngineLoad(0, load.batches, load.tokens, load.seconds)))
        self.reranker = self.close = None
        return close


class Pool:
    """Lends models to calls. Every method is for the one event loop that all calls have, but `close`.

    models: the first answers calls that name none
    """

    def __init__(self, models: Sequence[Model], idle_unload: float | None = None, memory: int | None = None) -> None:
        """idle_unload: seconds without a call after which a model is unloaded; None for never
        memory: bytes that the weights of all loaded models have at most; None for any number
        """
        self.models = tuple(models)
        self._idle_unload = idle_unload
        self._memory = memory
        self._changes = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def failure(self) -> EngineDead | None:
        """Why one of the engines has stopped answering; None while all answer."""
        return next(
            (model.reranker.failure for model in self.models if model.reranker and model.reranker.failure), None
        )

    @property
    def asleep(self) -> bool:
        """Whether all models are."""
        return all(model.asleep for model in self.models)

    def load(self) -> EngineLoad:
        """The load of all engines together."""
        return self.models[0].load() if len(self.models) == 1 else added(model.load() for model in self.models)

    def begin(self) -> None:
        """Count the idle time of models that are loaded already, in the running event loop."""
        for model in self.models:
            self._rest(model)

    @asynccontextmanager
    async def lend(self, model: Model) -> AsyncIterator[Serves]:
        """The model's reranker for one call, loaded first where it is not; it stays loaded until the context ends.

        Raises a 503 Problem while the model is asleep, for a call that waits when it is put to sleep, and where
        the model does not fit into memory; and a 500 Problem where it cannot be loaded.
        """
        if model.asleep:
            raise ASLEEP.anew()
        task = asyncio.current_task()
        assert task is not None
        model.users.append(task)
        if model.timer:
            model.timer.cancel()
            model.timer = None
        try:
            while (reranker := model.reranker) is None:
                await self._loaded(model)
            yield reranker
        except asyncio.CancelledError:
            if model.asleep:
                raise ASLEEP.anew() from None
            raise
        finally:
            # Whoever unloads the model next must find no reference to the reranker in this coroutine.
            reranker = None
            model.users.remove(task)
            model.used = monotonic()
            self._rest(model)

    async def sleep(self, models: Iterable[Model], patience: float | None = None) -> None:
        """Unload models, and refuse calls of them until they are woken.

        patience: seconds in which calls in progress are answered first; None to refuse them too

        Raises a 504 Problem, and puts no model to sleep, if calls are not answered in time.
        """
        chosen = list(models)
        before = [model for model in chosen if model.asleep]
        for model in chosen:
            model.asleep = True
        until = None if patience is None else monotonic() + patience
        for model in chosen:
            for task in () if patience is not None else tuple(model.users):
                task.cancel()
            while model.users:
                seconds_left = None if until is None else until - monotonic()
                if seconds_left is not None and seconds_left <= 0:
                    for member in chosen:
                        member.asleep = member.asleep and member in before
                    raise _still_busy(chosen, patience)
                await asyncio.wait(model.users, timeout=seconds_left)
        async with self._changes:
            await self._unload([member for member in chosen if member.asleep and member.close])

    async def wake(self, models: Iterable[Model]) -> None:
        """Load models, and take calls of them. Raises the first Problem of `lend`, once all models were tried."""
        problems: list[Problem] = []
        woken = list(models)
        # All at once: a model that someone puts to sleep while others are loaded stays asleep.
        for model in woken:
            model.asleep = False
        for model in woken:
            try:
                async with self.lend(model):
                    pass
            except Problem as problem:
                problems.append(problem)
        if problems:
            raise problems[0]

    def close(self) -> None:
        """Stop all engines; requests that still wait fail with EngineClosed. From any thread."""
        for model in self.models:
            if close := model.close:
                close()

    async def _loaded(self, model: Model) -> None:
        """Load a model once for all calls that wait for it. A call that leaves does not end the loading.

        After a failure, the pause until the next try is at least as long as the failure took, so that a model that
        cannot be loaded keeps others from being loaded for at most half of the time.
        """
        if model.loading is None:
            if monotonic() < model.again:
                raise _not_loaded(model)
            model.loading = asyncio.ensure_future(self._load(model))
        await asyncio.shield(model.loading)

    async def _load(self, model: Model) -> None:
        try:
            async with self._changes:
                if model.reranker is None:
                    await self._free_memory(model)
                    await self._begin(model)
                    exempt_from_collection()
        finally:
            model.loading = None
            self._rest(model)

    async def _begin(self, model: Model) -> None:
        began = monotonic()
        try:
            await asyncio.to_thread(model.begin)
        except Exception as error:
            now = monotonic()
            model.again = now + max(now - began, LEAST_PAUSE)
            unknown = not isinstance(error, ModelError)
            log.error("%s cannot be loaded: %s", model.names[0], error, exc_info=unknown)
            raise _not_loaded(model) from error

    async def _free_memory(self, model: Model) -> None:
        """Unload the models that were not used for longest, if the memory is needed and that is enough."""
        if self._memory is None:
            return
        loaded = [candidate for candidate in self.models if candidate.close]
        excess = sum(candidate.size for candidate in loaded) + model.size - self._memory
        chosen = []
        for candidate in sorted(loaded, key=lambda candidate: candidate.used):
            if excess > 0 and not candidate.users:
                chosen.append(candidate)
                excess -= candidate.size
        if excess > 0:
            busy = ", ".join(f"`{candidate.names[0]}`" for candidate in loaded if candidate.users)
            raise Problem(
                503,
                f"There is no memory for the model `{model.names[0]}` while {busy} answers requests; send this one "
                "again later, or start the server with a larger --max-model-memory-gb.",
            )
        await self._unload(chosen)

    def _rest(self, model: Model) -> None:
        """Unload a model after a while, if no call uses it."""
        if self._idle_unload is None or model.users or model.close is None or model.timer:
            return

        def unload() -> None:
            model.timer = None
            task = asyncio.ensure_future(self._unload_idle(model, model.used))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        model.timer = asyncio.get_running_loop().call_later(self._idle_unload, unload)

    async def _unload_idle(self, model: Model, used: float) -> None:
        """Unload a model, unless a call has come since."""
        async with self._changes:
            if model.reranker is not None and not model.users and model.used == used:
                await self._unload([model])

    async def _unload(self, models: Sequence[Model]) -> None:
        """Calls that come meanwhile wait, and load the model again."""
        if not models:
            return
        # All are taken before the first wait, in which a call could come.
        await asyncio.to_thread(partial(_close_all, [model.end() for model in models]))
        log.info("Unloaded: %s", ", ".join(model.names[0] for model in models))


def _not_loaded(model: Model) -> Problem:
    return Problem(500, f"The model `{model.names[0]}` cannot be loaded; the server's log says why.")


def _still_busy(models: Iterable[Model], seconds: float | None) -> Problem:
    busy = ", ".join(f"`{model.names[0]}`" for model in models if model.users)
    return Problem(
        504,
        f"Calls of {busy} were not all answered within {seconds:g} seconds (--shutdown-timeout), so that no model was "
        "put to sleep; try again later, or refuse these calls with mode=abort.",
    )


def added(loads: Iterable[EngineLoad]) -> EngineLoad:
    """The loads of several engines, added up."""
    engine_loads = tuple(loads)
    return EngineLoad(
        waiting=sum(load.waiting for load in engine_loads),
        batches=sum(load.batches for load in engine_loads),
        tokens=sum(load.tokens for load in engine_loads),
        seconds=sum(load.seconds for load in engine_loads),
        waiting_requests=sum(load.waiting_requests for load in engine_loads),
        waiting_tokens=sum(load.waiting_tokens for load in engine_loads),
        running=sum(load.running for load in engine_loads),
        rate=sum(load.rate for load in engine_loads),
        most=max((load.most for load in engine_loads), default=0),
        threads=sum(load.threads for load in engine_loads),
        replicas=tuple(replica for load in engine_loads for replica in load.replicas),
    )


def _close_all(closes: list[Callable[[], None]]) -> None:
    """Unload models, and free their memory. The list is emptied: its caller has it too."""
    while closes:
        closes.pop()()
    free_memory()
