"""Blocked tensors hold the values of dense ones; buffers come from a pool and go back to it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rerankd.backends.cpu.buffers import Buffer, BufferPool
from rerankd.backends.cpu.rows import SPARE_ROWS, BlockedTensor, columns, index_add, to_dense


def blocked(x: Tensor) -> BlockedTensor:
    rows = BlockedTensor.empty(len(x), x.shape[1], x.dtype)
    rows.copy_(x)
    return rows


@pytest.mark.parametrize("count", [0, 1, 16, 33, 100])
@pytest.mark.parametrize("width", [32, 160])
def test_blocked_tensors_keep_values_and_order(count: int, width: int) -> None:
    x = torch.randn(count, width).bfloat16()
    rows = blocked(x)
    assert (len(rows), rows.width) == rows.shape == (count, width)
    assert torch.equal(to_dense(rows), x)
    for wanted in (slice(3, 17), slice(0, 0), slice(5, None)):
        assert torch.equal(to_dense(rows[wanted]), x[wanted])
    for wanted in (slice(32), slice(width - 32, width)):
        assert torch.equal(to_dense(columns(rows, wanted)), columns(x, wanted))


@pytest.mark.parametrize(("dtype", "values"), [(torch.bfloat16, 32), (torch.uint8, 64)])
def test_a_column_block_is_64_bytes_of_each_row(dtype: torch.dtype, values: int) -> None:
    x = torch.arange(5 * 192).remainder(251).view(5, 192).to(dtype)
    rows = blocked(x)
    block, *inner = rows.blocks.stride()
    assert inner == [values, 1]
    storage = torch.empty(0, dtype=dtype).set_(rows.blocks.untyped_storage())
    assert torch.equal(storage[block : block + 5 * values].view(5, values), x[:, values : 2 * values])
    # Spare rows follow the last block, and a row's blocks do not lie a power of two apart.
    assert len(storage) - (len(rows.blocks) - 1) * block >= (5 + SPARE_ROWS) * values
    assert block // values % 2 == 1


def test_parts_are_views() -> None:
    rows = blocked(torch.zeros(64, 96).bfloat16())
    rows[30:64].columns(slice(32, 96)).copy_(torch.ones(34, 64))
    expected = torch.zeros(64, 96)
    expected[30:, 32:] = 1
    assert torch.equal(rows.to_dense(), expected.bfloat16())


def test_columns_are_cut_between_blocks() -> None:
    with pytest.raises(ValueError, match="blocks of 32 columns cannot be cut at columns 16 and 64"):
        blocked(torch.zeros(4, 64).bfloat16()).columns(slice(16, 64))


def test_index_add_is_that_of_a_tensor() -> None:
    x, addend, wanted = torch.randn(9, 64).bfloat16(), torch.randn(3, 64).bfloat16(), torch.tensor([7, 0, 4])
    rows, expected = blocked(x), x.clone()
    index_add(rows, wanted, addend)
    index_add(expected, wanted, addend)
    assert torch.equal(to_dense(rows), expected)
    assert not torch.equal(expected, x)


@given(st.lists(st.tuples(st.sampled_from(["acquire", "drop", "trim"]), st.integers(1, 40_000)), max_size=80))
def test_a_pool_keeps_little_more_than_was_ever_in_use_at_a_time(steps: list[tuple[str, int]]) -> None:
    pool, used, most = BufferPool(), list[Buffer](), 0
    for step, number in steps:
        if step == "acquire":
            buffer = pool.acquire(number)
            assert number <= buffer.size < number + max(number / 4, 64)
            spans = sorted((one.address, one.address + one.size) for one in (*used, buffer))
            assert all(stop <= start for (_, stop), (start, _) in pairwise(spans)), "no two share memory"
            used.append(buffer)
            most = max(most, sum(one.size for one in used))
            del buffer
        elif step == "drop" and used:
            del used[number % len(used)]
        elif step == "trim":
            pool.trim()
            kept = sum(len(memory) for unused in pool._unused.values() for memory in unused)
            assert sum(one.size for one in used) + kept <= most * 5 / 4


def test_the_size_acquired_longest_ago_is_freed_first() -> None:
    pool = BufferPool()
    for size in (64_000, 6_400, 32_000):
        pool.acquire(size)
    at = pool.acquire(64_000).address
    pool.trim()
    assert [len(unused) for unused in pool._unused.values()] == [0, 0, 1]
    assert pool.acquire(64_000).address == at


def test_a_buffer_that_cannot_be_allocated_is_not_counted() -> None:
    pool = BufferPool()
    with pytest.raises(RuntimeError, match="memory"):
        pool.acquire(1 << 60)
    assert pool._used_bytes == pool._peak_bytes == 0


@pytest.mark.parametrize("width", [32, 96])
def test_a_view_outlives_the_buffer(width: int) -> None:
    pool, x = BufferPool(), torch.randn(9, width).bfloat16()
    rows = BlockedTensor.empty(9, width, allocate=pool.acquire)
    rows.copy_(x)
    copied, blocks = to_dense(rows), rows.blocks
    expected = blocks.clone()
    del rows
    for _ in range(3):
        BlockedTensor.empty(9, width, allocate=pool.acquire).copy_(torch.zeros_like(x))
    assert torch.equal(copied, x)
    assert torch.equal(blocks, expected)
    assert pool._used_bytes == 0


@pytest.mark.parametrize("width", [32, 96])
def test_to_dense_is_a_copy(width: int) -> None:
    rows = blocked(torch.zeros(9, width).bfloat16())
    to_dense(rows).fill_(1)
    assert not to_dense(rows).any()
