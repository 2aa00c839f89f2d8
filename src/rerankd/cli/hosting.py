"""From the models of a command to a pool of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from rerankd.compat.flags import UsageProblem
from rerankd.compute_thread import ComputeThread
from rerankd.core import ModelError
from rerankd.options import LoadOptions
from rerankd.server.pool import GIGABYTE, Model, Pool
from rerankd.server.settings import Residence
from rerankd.server.tls import Tls

log = logging.getLogger("rerankd")


@dataclass(frozen=True, slots=True)
class Named:
    """A model to serve, by its names."""

    names: tuple[str, ...]
    options: LoadOptions


def check_grpc(host: str, port: int, tls: Tls | None) -> None:
    """Find what would stop the start of the gRPC server. Raises UsageProblem, and ListenError."""
    try:
        from rerankd.server.tei_grpc.server import check
    except ImportError as error:
        raise UsageProblem(
            f"--grpc-port needs gRPC's packages, which are not installed ({error}): pip install 'rerankd[grpc]'"
        ) from None
    check(host, port, tls)


def open_pool(models: Sequence[Named], residence: Residence) -> Pool:
    """The models, each loaded unless it is to be loaded for its first request, or not all fit into memory.

    Raises ModelError for a model that cannot be found, read or served, and for models that cannot be served together.
    """
    _check(models)
    compute = ComputeThread() if len(models) > 1 else None
    pool = Pool([], residence.idle_unload, residence.memory)
    try:
        for named in models:
            pool.models = (*pool.models, _model(named, compute, residence, _bytes_left(pool.models, residence)))
    except BaseException:
        pool.close()
        raise
    return pool


def _model(named: Named, compute: ComputeThread | None, residence: Residence, bytes_left: int | None) -> Model:
    """bytes_left: bytes that are left for weights; None for any number"""
    # Here, since both bring torch: a command that is refused is refused at once.
    from rerankd.loading import plan
    from rerankd.reranker import Reranker

    def make() -> Reranker:
        return Reranker(named.options) if compute is None else Reranker(named.options, compute=compute.run)

    if bytes_left is None and not residence.first_use:
        reranker = make()
        model = Model(named.names, reranker.info, make)
        model.keep(reranker)
        return model
    # A model that cannot be served is refused now, not when the first request comes.
    planned = plan(named.options, weights=bytes_left is not None)
    model = Model(named.names, planned.info(), make, 0 if bytes_left is None else planned.weight_bytes())
    if residence.memory is not None and model.size > residence.memory:
        raise ModelError(
            f"The weights of {named.names[0]} take {model.size / GIGABYTE:.2f} GB, and --max-model-memory-gb allows "
            f"{residence.memory / GIGABYTE:.2f}."
        )
    if residence.first_use:
        log.info("%s is loaded for its first request.", named.names[0])
    elif bytes_left is not None and model.size > bytes_left:
        log.info("%s is loaded for its first request: others fill --max-model-memory-gb.", named.names[0])
    else:
        model.begin()
    return model


def _bytes_left(models: Sequence[Model], residence: Residence) -> int | None:
    if residence.memory is None:
        return None
    return residence.memory - sum(model.size for model in models if model.reranker is not None)


def _check(models: Sequence[Named]) -> None:
    names = [name for named in models for name in named.names]
    for name in names:
        if names.count(name) > 1:
            raise ModelError(f"Two models have the name {name}; give each a served-model-name under models:.")
