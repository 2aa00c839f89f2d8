"""Ray Serve: `serve.run(rerankd.ray.deployment({...}))`, or `import_path: rerankd.ray:deployment` in a file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rerankd.compat.flags import UsageProblem

if TYPE_CHECKING:
    from ray.serve import Application

NAME = "rerankd"
POLICY = "rerankd.ray.scaling:QueueTokens"
TARGET = "target_queue_tokens"
OF_RAYS_POLICY = ("target_ongoing_requests", "target_num_ongoing_requests_per_replica")
"""Read by Ray's own policy alone, which counts requests."""


def deployment(args: Mapping[str, Any]) -> Application:
    """An application of Ray Serve. Each replica answers like `rerankd serve`.

    args: the flags of `rerankd serve`, as in a `--config` file, and under `deployment` the options of Ray's
        `serve.deployment`. Its `autoscaling_config` may have `target_queue_tokens`: the tokens that may wait for each
        replica; by default the tokens that a replica computes in a second.

    Raises UsageProblem for wrong arguments. No model is loaded here. The replicas read the RERANKD_* variables of their
    own processes.
    """
    try:
        from ray import serve
    except ImportError:
        raise UsageProblem("rerankd.ray needs an extra package: pip install 'rerankd[ray]'.") from None
    from rerankd.cli.replica import launch_of
    from rerankd.ray.replica import Replica

    flags = dict(args)
    options = _options(flags.pop("deployment", None), inspect.signature(serve.deployment).parameters)
    launch, _ = launch_of(flags)
    options = {
        "name": NAME,
        # Replicas refuse calls themselves, with 429, when too many wait; no call waits in Ray, which counts no tokens.
        "max_ongoing_requests": 2 * launch.settings["max_queued_calls"],
        "graceful_shutdown_timeout_s": launch.shutdown_timeout,
        **options,
    }
    application: Application = serve.deployment(**options)(serve.ingress()(Replica)).bind(flags)
    return application


def _options(entries: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Options of Ray's deployment, with the policy where the number of replicas is not fixed. Raises UsageProblem."""
    if entries is None:
        return {}
    if not isinstance(entries, Mapping):
        raise UsageProblem("args: deployment: the value has to be a mapping of options of Ray's serve.deployment.")
    options = dict(entries)
    for name in options:
        if name not in parameters or name.startswith("_"):
            raise UsageProblem(f"args: deployment: Ray's serve.deployment has no option {name}.")
    scaling = options.get("autoscaling_config")
    if scaling is None and options.get("num_replicas") != "auto":
        return options
    if not isinstance(scaling, Mapping | None):
        raise UsageProblem("args: deployment: autoscaling_config: the value has to be a mapping.")
    scaling = dict(scaling or {})
    tokens = scaling.pop(TARGET, None)
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int | float) or not tokens > 0):
        raise UsageProblem(f"args: deployment: autoscaling_config: {TARGET} has to be above 0, not {tokens!r}.")
    if "policy" not in scaling:
        for name in OF_RAYS_POLICY:
            if name in scaling:
                raise UsageProblem(
                    f"args: deployment: autoscaling_config: {name} has no effect, since tokens that wait are counted "
                    f"in place of requests; give {TARGET}, or a policy of your own."
                )
        scaling["policy"] = {"policy_function": POLICY, "policy_kwargs": {"tokens": tokens}}
    elif tokens is not None:
        raise UsageProblem(f"args: deployment: autoscaling_config: {TARGET} is for rerankd's own policy; give one.")
    return {**options, "autoscaling_config": scaling}
