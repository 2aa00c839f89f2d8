"""From the models of a command to a pool of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from rerankd.compute_thread import ComputeThread
from rerankd.core import ModelError
from rerankd.options import LoadOptions
from rerankd.server.pool import GIGABYTE, Model, Pool
from rerankd.server.settings import Residence

log = logging.getLogger("rerankd")


@dataclass(frozen=True, slots=True)
class Named:
    """A model to serve, by its names."""

    names: tuple[str, ...]
    options: LoadOptions


def open_pool(chosen: Sequence[Named], residence: Residence) -> Pool:
    """The models, each loaded unless it is to be loaded for its first request, or not all fit into memory.

    Raises ModelError for a model that cannot be found, read or served, and for models that cannot be served together.
    """
    _check(chosen)
    compute = ComputeThread() if len(chosen) > 1 else None
    pool = Pool([], residence.idle_unload, residence.memory)
    try:
        for one in chosen:
            pool.models = (*pool.models, _model(one, compute, residence, _left(pool.models, residence)))
    except BaseException:
        pool.close()
        raise
    return pool


def _model(one: Named, compute: ComputeThread | None, residence: Residence, left: int | None) -> Model:
    """left: bytes that are left for weights; None for any number"""
    # Here, since both bring torch: a command that is refused is refused at once.
    from rerankd.loading import plan
    from rerankd.reranker import Reranker

    def make() -> Reranker:
        return Reranker(one.options) if compute is None else Reranker(one.options, compute=compute.run)

    if left is None and not residence.first_use:
        made = make()
        model = Model(one.names, made.info, make)
        model.keep(made)
        return model
    # A model that cannot be served is refused now, not when the first request comes.
    planned = plan(one.options, weights=left is not None)
    model = Model(one.names, planned.info(), make, 0 if left is None else planned.weight_bytes())
    if residence.memory is not None and model.size > residence.memory:
        raise ModelError(
            f"The weights of {one.names[0]} take {model.size / GIGABYTE:.2f} GB, and --max-model-memory-gb allows "
            f"{residence.memory / GIGABYTE:.2f}."
        )
    if residence.first_use:
        log.info("%s is loaded for its first request.", one.names[0])
    elif left is not None and model.size > left:
        log.info("%s is loaded for its first request: others fill --max-model-memory-gb.", one.names[0])
    else:
        model.begin()
    return model


def _left(models: Sequence[Model], residence: Residence) -> int | None:
    if residence.memory is None:
        return None
    return residence.memory - sum(one.size for one in models if one.reranker is not None)


def _check(chosen: Sequence[Named]) -> None:
    names = [name for one in chosen for name in one.names]
    for name in names:
        if names.count(name) > 1:
            raise ModelError(f"Two models have the name {name}; give each a served-model-name under models:.")
