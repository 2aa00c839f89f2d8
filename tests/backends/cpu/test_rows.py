"""Rows in strips hold what rows in lines hold."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rerankd.backends.cpu.rows import SPARE_ROWS, Room, Rooms, StripRows, add, columns, plain


def in_strips(x: Tensor) -> StripRows:
    rows = StripRows.empty(len(x), x.shape[1], x.dtype)
    rows.copy_(x)
    return rows


@pytest.mark.parametrize("count", [0, 1, 16, 33, 100])
@pytest.mark.parametrize("width", [32, 160])
def test_rows_in_strips_keep_values_and_order(count: int, width: int) -> None:
    x = torch.randn(count, width).bfloat16()
    rows = in_strips(x)
    assert (len(rows), rows.width) == rows.shape == (count, width)
    assert torch.equal(plain(rows), x)
    for wanted in (slice(3, 17), slice(0, 0), slice(5, None)):
        assert torch.equal(plain(rows[wanted]), x[wanted])
    for wanted in (slice(32), slice(width - 32, width)):
        assert torch.equal(plain(columns(rows, wanted)), columns(x, wanted))


@pytest.mark.parametrize(("dtype", "values"), [(torch.bfloat16, 32), (torch.uint8, 64)])
def test_a_strip_is_64_bytes_of_each_row_on_end(dtype: torch.dtype, values: int) -> None:
    x = torch.arange(5 * 192).remainder(251).view(5, 192).to(dtype)
    rows = in_strips(x)
    strip, *inner = rows.strips.stride()
    assert inner == [values, 1]
    storage = torch.empty(0, dtype=dtype).set_(rows.strips.untyped_storage())
    assert torch.equal(storage[strip : strip + 5 * values].view(5, values), x[:, values : 2 * values])
    # Behind the last strip is room to read on, and a row's strips do not lie a power of two apart.
    assert len(storage) - (len(rows.strips) - 1) * strip >= (5 + SPARE_ROWS) * values
    assert strip // values % 2 == 1


def test_parts_are_views() -> None:
    rows = in_strips(torch.zeros(64, 96).bfloat16())
    rows[30:64].columns(slice(32, 96)).copy_(torch.ones(34, 64))
    expected = torch.zeros(64, 96)
    expected[30:, 32:] = 1
    assert torch.equal(rows.tensor(), expected.bfloat16())


def test_columns_are_cut_where_strips_are() -> None:
    with pytest.raises(ValueError, match="strips of 32 columns cannot be cut at columns 16 and 64"):
        in_strips(torch.zeros(4, 64).bfloat16()).columns(slice(16, 64))


def test_rows_are_chosen_and_added_to_as_a_tensors_are() -> None:
    x, addend, wanted = torch.randn(9, 64).bfloat16(), torch.randn(3, 64).bfloat16(), torch.tensor([7, 0, 4])
    rows, expected = in_strips(x), x.clone()
    add(rows, wanted, addend)
    add(expected, wanted, addend)
    assert torch.equal(plain(rows), expected)
    assert not torch.equal(expected, x)


@given(st.lists(st.tuples(st.sampled_from(["lend", "drop", "trim"]), st.integers(1, 40_000)), max_size=80))
def test_rooms_keep_little_more_than_was_ever_lent_at_a_time(steps: list[tuple[str, int]]) -> None:
    rooms, lent, most = Rooms(), list[Room](), 0
    for step, number in steps:
        if step == "lend":
            room = rooms.lend(number)
            assert number <= room.size < number + max(number / 4, 64)
            spans = sorted((one.at, one.at + one.size) for one in (*lent, room))
            assert all(stop <= start for (_, stop), (start, _) in pairwise(spans)), "no two share memory"
            lent.append(room)
            most = max(most, sum(one.size for one in lent))
            del room
        elif step == "drop" and lent:
            del lent[number % len(lent)]
        elif step == "trim":
            rooms.trim()
            kept = sum(len(memory) for unused in rooms._free.values() for memory in unused)
            assert sum(one.size for one in lent) + kept <= most * 5 / 4


def test_what_was_asked_for_the_longest_ago_is_let_go_of() -> None:
    rooms = Rooms()
    for size in (64_000, 6_400, 32_000):
        rooms.lend(size)
    at = rooms.lend(64_000).at
    rooms.trim()
    assert [len(unused) for unused in rooms._free.values()] == [0, 0, 1]
    assert rooms.lend(64_000).at == at


def test_room_that_is_not_to_be_had_is_not_counted() -> None:
    rooms = Rooms()
    with pytest.raises(RuntimeError, match="memory"):
        rooms.lend(1 << 60)
    assert rooms._lent == rooms._most == 0


@pytest.mark.parametrize("width", [32, 96])
def test_a_tensor_of_rows_outlives_their_room(width: int) -> None:
    rooms, x = Rooms(), torch.randn(9, width).bfloat16()
    rows = StripRows.empty(9, width, room_of=rooms.lend)
    rows.copy_(x)
    copied, strips = plain(rows), rows.strips
    expected = strips.clone()
    del rows
    for _ in range(3):
        StripRows.empty(9, width, room_of=rooms.lend).copy_(torch.zeros_like(x))
    assert torch.equal(copied, x)
    assert torch.equal(strips, expected)
    assert rooms._lent == 0


@pytest.mark.parametrize("width", [32, 96])
def test_rows_as_a_tensor_are_a_copy(width: int) -> None:
    rows = in_strips(torch.zeros(9, width).bfloat16())
    plain(rows).fill_(1)
    assert not plain(rows).any()
