"""How many replicas the tokens that wait ask for, and how Ray's own rules go on from there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.ray.scaling import BUSY, MOST_BUSY, RATE, WAITING, QueueTokens


def context(running: int, waiting: list[float], busy: list[float], rates: list[float] | None = None) -> Any:
    """Ray's context, as far as the policy reads it: what some of the running replicas have reported."""
    reports = {WAITING: waiting, BUSY: busy, RATE: rates or [0.0] * len(waiting)}
    by_replica = {name: dict(enumerate(values)) for name, values in reports.items()}
    return SimpleNamespace(current_num_replicas=running, aggregated_metrics=by_replica)


@pytest.mark.parametrize(
    ("running", "waiting", "busy", "wanted"),
    [
        (1, [4500.0], [1.0], 4.5),
        (2, [4500.0, 500.0], [1.0, 1.0], 5.0),
        (1, [900.0], [0.1], 0.9),
        # An empty queue, and replicas that are too busy for one fewer.
        (2, [0.0, 0.0], [0.6, 0.6], 1.2 / MOST_BUSY),
        (3, [0.0, 0.0, 0.0], [0.5, 0.5, 0.5], 1.5 / MOST_BUSY),
        (4, [0.0] * 4, [0.05] * 4, 0.2 / MOST_BUSY),
        # How busy they are never asks for more of them: batches grow first.
        (2, [10.0, 10.0], [1.0, 1.0], 2.0),
        (2, [0.0, 0.0], [0.0, 0.0], 0.0),
        # One of three has not reported.
        (3, [0.0, 0.0], [0.0, 0.0], 3.0),
        (2, [], [], 2.0),
        (0, [], [], 0.0),
    ],
)
def test_the_tokens_that_wait_are_shared_out(
    running: int, waiting: list[float], busy: list[float], wanted: float
) -> None:
    found, state = QueueTokens(tokens=1000)(context(running, waiting, busy))
    assert found == pytest.approx(wanted)
    assert state == {}


def test_by_default_as_many_wait_as_a_replica_computes_in_a_second() -> None:
    policy = QueueTokens()
    assert policy(context(2, [3000.0, 0.0], [1.0, 1.0], [400.0, 600.0]))[0] == pytest.approx(6.0)
    # One replica has computed nothing yet; where none has, nobody knows how much is much.
    assert policy(context(2, [3000.0, 0.0], [1.0, 0.0], [500.0, 0.0]))[0] == pytest.approx(6.0)
    assert policy(context(1, [3000.0], [0.0]))[0] == 0.0
    assert policy(SimpleNamespace(current_num_replicas=1, aggregated_metrics=None))[0] == 1.0  # type: ignore[arg-type]


@given(
    st.lists(
        st.tuples(st.floats(0, 1e9), st.floats(0, 1), st.floats(0, 1e6)),
        max_size=20,
    ),
    st.integers(0, 20),
    st.one_of(st.none(), st.floats(1, 1e9)),
)
def test_no_fewer_than_the_work_needs_nor_more_than_the_queue_asks(
    reports: list[tuple[float, float, float]], unknown: int, tokens: float | None
) -> None:
    waiting, busy, rates = ([report[at] for report in reports] for at in range(3))
    running = len(reports) + unknown
    found, _ = QueueTokens(tokens)(context(running, waiting, busy, rates))
    assert found >= min(sum(busy), running) if not unknown else found >= running
    if found > running:
        known = [rate for rate in rates if rate > 0]
        target = tokens or sum(known) / len(known)
        assert found == pytest.approx(sum(waiting) / target)


def test_ray_applies_its_delays_and_factors_to_what_is_wanted() -> None:
    pytest.importorskip("ray", reason="ray is not installed: make test-ray")
    from ray.serve.autoscaling_policy import _apply_autoscaling_config
    from ray.serve.config import AutoscalingConfig

    config = AutoscalingConfig(min_replicas=1, max_replicas=9, upscale_delay_s=0, downscale_delay_s=3600)
    policy = _apply_autoscaling_config(QueueTokens(tokens=1000))

    def decided(running: int, waiting: float) -> int:
        given = context(running, [waiting / running] * running, [0.0] * running)
        given.__dict__.update(config=config, target_num_replicas=running, policy_state={}, total_num_requests=1.0)
        return policy(given)[0]

    assert decided(2, 4100.0) == 5
    assert decided(2, 100.0) == 2
