"""When the kernels compute operations, and the uses that they refuse."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
import weakref
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from rerankd.backends.cpu.native import UNITS, Kernels, KernelsError, descriptors, library
from rerankd.backends.cpu.rows import BlockedTensor, to_dense
from rerankd.backends.select import place
from rerankd.core import RerankdError

KERNELS = Kernels.load(torch.bfloat16)
SOURCES = Path(library.__file__).parent


@pytest.fixture
def kernels() -> Kernels:
    if KERNELS is None:
        pytest.skip("no kernels were built, or none for this processor")
    return KERNELS


def test_recorded_operations_are_computed_at_the_end_in_order(kernels: Kernels) -> None:
    x, weight, zeros = torch.randn(40, 64), torch.randn(64), torch.zeros(40, 64).bfloat16()
    outs = torch.zeros(2, 40, 64)
    rounded = torch.zeros(40, 64).bfloat16()
    with kernels.recorded():
        kernels.add_layer_norm(x, zeros, weight, weight, 1e-5, outs[0], rounded)
        kernels.add_layer_norm(outs[0], rounded, weight, weight, 1e-5, outs[1], rounded)
        outs_before = ctypes.string_at(outs.data_ptr(), outs.nbytes)
    assert not any(outs_before)
    first = torch.nn.functional.layer_norm(x, (64,), weight, weight, 1e-5)
    second = torch.nn.functional.layer_norm(first + first.bfloat16(), (64,), weight, weight, 1e-5)
    torch.testing.assert_close(outs, torch.stack([first, second]), rtol=1e-2, atol=1e-2)


def test_operations_recorded_before_an_error_are_never_computed(kernels: Kernels) -> None:
    x, weight, zeros = torch.randn(4, 64), torch.ones(64), torch.zeros(4, 64).bfloat16()
    out = torch.zeros(4, 64)

    def fail() -> None:
        with kernels.recorded():
            kernels.add_layer_norm(x, zeros, weight, weight, 1e-5, out, zeros)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with kernels.recorded():
        pass
    assert not out.any()
    kernels.add_layer_norm(x, zeros, weight, weight, 1e-5, out, zeros)
    assert out.any()


def test_a_buffer_is_used_again_when_nothing_refers_to_it(kernels: Kernels) -> None:
    x, weight = torch.randn(40, 64).bfloat16(), torch.ones(64).bfloat16()
    outside = kernels.empty_rows(40, 64)
    with kernels.recorded():
        first = kernels.rms_norm(x, weight, 1e-6)
        kept = kernels.rms_norm(first, weight, 1e-6)
        part = kept[10:20]
        freed = first.address
        del first, kept
        other = kernels.empty_rows(40, 64)
        assert other.address == freed
        assert kernels.empty_rows(40, 64).address not in (part.address - 10 * 64, other.address, outside.address)
    expected = to_dense(kernels.rms_norm(kernels.rms_norm(x, weight, 1e-6), weight, 1e-6))
    assert torch.equal(to_dense(part), expected[10:20])


def test_batches_use_the_same_memory_one_after_another(kernels: Kernels) -> None:
    x, weight = torch.randn(200, 64).bfloat16(), torch.ones(64).bfloat16()
    places = []
    for count in (200, 198, 10, 200):
        with kernels.recorded():
            normed = kernels.rms_norm(x[:count], weight, 1e-6)
            places.append((normed.address, kernels.rms_norm(normed, weight, 1e-6).address))
        del normed
    assert set(places[0]) == set(places[1]) == set(places[3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [40, 64, 320])
def test_index_select_is_recorded(kernels: Kernels, width: int, dtype: torch.dtype) -> None:
    x, rows = torch.randn(200, width).to(dtype), torch.tensor([199, 0, 7, 7, *range(20, 150, 3)])
    backwards = torch.arange(199, -1, -1)
    with kernels.recorded():
        selected = kernels.index_select(kernels.index_select(x, backwards), 199 - rows)
    assert torch.equal(to_dense(selected), x[rows])
    assert kernels.index_select(x, rows[:0]).shape == (0, width)


def test_index_select_of_a_blocked_tensor_is_recorded(kernels: Kernels) -> None:
    x, weight = torch.randn(200, 320).bfloat16(), torch.ones(320).bfloat16()
    rows = torch.tensor([199, 0, 7, 7, *range(20, 150, 3)])
    with kernels.recorded():
        normed = kernels.rms_norm(x, weight, 1e-6)
        selected = kernels.index_select(normed[1:200], rows - 1 + (rows == 0))
        again = kernels.rms_norm(selected, weight, 1e-6)
    expected = to_dense(normed)[rows + (rows == 0)]
    assert torch.equal(to_dense(selected), expected)
    assert torch.equal(to_dense(again), to_dense(kernels.rms_norm(expected, weight, 1e-6)))


def test_operands_stay_in_memory_until_they_are_read(kernels: Kernels) -> None:
    weight = torch.ones(64).bfloat16()
    with kernels.recorded():
        before = kernels.rms_norm(torch.randn(40, 64).bfloat16(), weight, 1e-6)
    expected = to_dense(kernels.rms_norm(before, weight, 1e-6))
    out = kernels.empty_rows(40, 64)
    eye = kernels.pack(torch.eye(64).bfloat16())
    with kernels.recorded():
        kernels.gemm(before, eye, None, out)
        last = kernels.rms_norm(out, weight, 1e-6)
        size = before.buffer.size
        del before, eye
        # Tensors that would get its memory, were the memory free.
        taken = [torch.full((size,), 255, dtype=torch.uint8) for _ in range(64)]
    torch.testing.assert_close(to_dense(last), expected, rtol=1e-2, atol=1e-2)
    assert len(taken) == 64


def norm(kernels: Kernels, x: Tensor | BlockedTensor) -> BlockedTensor:
    normed = kernels.rms_norm(x, torch.ones(x.shape[1]).bfloat16(), 1e-6)
    assert isinstance(normed, BlockedTensor)
    return normed


ROWS = torch.randn(40, 64).bfloat16()
USES: dict[str, Callable[[BlockedTensor], object]] = {
    "blocks": lambda rows: rows.blocks,
    "to_dense method": lambda rows: rows.to_dense(),
    "to_dense": to_dense,
    "copy_": lambda rows: rows.copy_(ROWS[: len(rows)]),
    "index_add_": lambda rows: rows.index_add_(torch.tensor([1]), ROWS[:1]),
    "a part": lambda rows: to_dense(rows[1:5]),
    "columns": lambda rows: to_dense(rows.columns(slice(32, 64))),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_rows_of_recorded_operations_are_not_to_be_used(
    kernels: Kernels, use: Callable[[BlockedTensor], object]
) -> None:
    own = BlockedTensor.empty(40, 64)
    own.copy_(ROWS)
    pooled, early = kernels.to_blocked(ROWS), kernels.empty_rows(40, 64)
    assert isinstance(early, BlockedTensor)
    eye = kernels.pack(torch.eye(64).bfloat16())
    with kernels.recorded():
        normed = norm(kernels, own)
        kernels.gemm(pooled, eye, None, early)
        fresh = cast(BlockedTensor, kernels.empty_rows(40, 64))
        for rows in (normed, own, pooled, early, fresh):
            with pytest.raises(RuntimeError, match="recorded and not computed yet"):
                use(rows)
    assert torch.equal(to_dense(own), ROWS)
    assert torch.equal(to_dense(early), ROWS)
    torch.testing.assert_close(to_dense(normed), to_dense(norm(kernels, ROWS)))
    for rows in (normed, own, pooled, early, fresh):
        use(rows)


def test_a_repeated_input_does_not_hide_that_rows_are_read_too_early(kernels: Kernels) -> None:
    for _ in range(2):
        with kernels.recorded():
            normed = norm(kernels, ROWS)
            with pytest.raises(RuntimeError, match="after the scope"):
                to_dense(normed)
        del normed


TENSOR_USES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "read": lambda x, out: out.sum(),
    "read a part": lambda x, out: out[3:5, 2].sum(),
    "copy": lambda x, out: torch.empty_like(out).copy_(out),
    "tolist": lambda x, out: out.tolist(),
    "numpy": lambda x, out: out.numpy(),
    "print": lambda x, out: str(out),
    "write": lambda x, out: out.zero_(),
    "write an input": lambda x, out: x[3].add_(1),
    "cast": lambda x, out: out.double(),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("use", TENSOR_USES.values(), ids=TENSOR_USES.keys())
def test_tensors_of_recorded_operations_are_watched(
    kernels: Kernels, use: Callable[[Tensor, Tensor], object], inference: bool
) -> None:
    with torch.inference_mode(inference):
        x, weight, out = torch.randn(40, 64), torch.ones(64), torch.zeros(40, 64)
        delta, rounded = torch.zeros(40, 64).bfloat16(), torch.zeros(40, 64).bfloat16()
        with kernels.recorded():
            kernels.add_layer_norm(x, delta, weight, weight, 1e-5, out, rounded)
            with pytest.raises(RuntimeError, match="an operation has yet to"):
                use(x, out)
            # Functions that read an input, or no value at all, are right.
            assert (x[1:3].sum() + weight.sum()).isfinite()
            assert torch.empty_like(out[2:9].view(-1, 32)).shape == (14, 32)
        use(x, out)


def test_nothing_is_computed_at_once_while_operations_are_recorded(kernels: Kernels) -> None:
    calls: list[Callable[[], object]] = [
        lambda: kernels.pack(ROWS[:32]),
        lambda: kernels.pack_int8(torch.ones(32, 64, dtype=torch.int8), torch.ones(32)),
    ]
    with kernels.recorded():
        for call in calls:
            with pytest.raises(RuntimeError, match=r"rerankd_pack\w*` computes at once"):
                call()
    for call in calls:
        call()


def test_rows_that_an_error_left_uncomputed_are_refused(kernels: Kernels) -> None:
    source = kernels.to_blocked(ROWS)

    def fail() -> None:
        with kernels.recorded():
            kept.append(norm(kernels, source))
            raise KeyError

    kept: list[BlockedTensor] = []
    with pytest.raises(KeyError):
        fail()
    uses: list[Callable[[BlockedTensor], object]] = [
        to_dense,
        lambda rows: norm(kernels, rows),
        lambda rows: rows.copy_(ROWS),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match="never computed"):
            use(kept[0][3:9])
    with kernels.recorded(), pytest.raises(RuntimeError, match="never computed"):
        norm(kernels, kept[0])
    # Rows that were only read are unchanged, and the kernels work.
    assert torch.equal(to_dense(source), ROWS)
    assert torch.equal(to_dense(norm(kernels, source)), to_dense(norm(kernels, ROWS)))


def test_an_error_gives_memory_back_and_keeps_none_alive(kernels: Kernels) -> None:
    own = Kernels(kernels.library, kernels.unit)
    x = own.to_blocked(ROWS)
    used = own._pool._used_bytes
    weights = []

    def fail() -> None:
        weight = torch.ones(64).bfloat16()
        weights.append(weakref.ref(weight))
        with own.recorded():
            own.rms_norm(x, weight, 1e-6)
            del weight
            assert weights[0]() is not None
            own._compute(struct.pack("q", -1), (), ())

    # The error is kept, as a log or a debugger keeps one, and with it the frames that it passed.
    with pytest.raises(KernelsError) as error:
        fail()
    assert error.traceback
    assert weights[0]() is None
    assert own._pool._used_bytes == used
    at = norm(own, x).address
    with own.recorded():
        assert norm(own, x).address == at


def test_memory_that_runs_out_half_way_leaves_no_rows_to_be_read(kernels: Kernels) -> None:
    runs, bounds, out = array("q", [0, 1]), array("q", [0, 1, 0, 0, 0, 1 << 42]), torch.zeros(1, 32).bfloat16()
    place_of = (out.data_ptr(), 32, 32)
    too_large = descriptors.attention(
        1, runs.buffer_info()[0], bounds.buffer_info()[0], 1, 1, 32, *place_of * 3, False, 1.0, *place_of
    )

    def run_out() -> None:
        with kernels.recorded():
            kept.append(norm(kernels, ROWS))
            kernels._compute(too_large, (), (out,))
            kept.append(norm(kernels, kept[0]))

    kept: list[BlockedTensor] = []
    with pytest.raises(MemoryError):
        run_out()
    for rows in kept:
        with pytest.raises(RuntimeError, match="never computed"):
            to_dense(rows)
    assert to_dense(norm(kernels, ROWS)).isfinite().all()


def test_scopes_do_not_nest(kernels: Kernels) -> None:
    with kernels.recorded():
        normed = norm(kernels, ROWS)
        with pytest.raises(RuntimeError, match="do not nest"), kernels.recorded():
            pass
    assert torch.equal(to_dense(normed), to_dense(norm(kernels, ROWS)))


def test_another_thread_is_refused_while_operations_are_recorded(kernels: Kernels) -> None:
    def open_scope() -> None:
        with kernels.recorded():
            pass

    calls: list[Callable[[], object]] = [
        open_scope,
        lambda: norm(kernels, ROWS),
        lambda: kernels.empty_rows(40, 64),
        lambda: kernels.index_select(torch.zeros(4, 40), torch.tensor([1])),
    ]
    with ThreadPoolExecutor(1) as pool:
        with kernels.recorded():
            normed = norm(kernels, ROWS)
            for call in calls:
                with pytest.raises(RuntimeError, match="Another thread"):
                    pool.submit(call).result()
            with pytest.raises(RuntimeError, match="not computed yet"):
                pool.submit(to_dense, normed).result()
        assert torch.equal(pool.submit(to_dense, normed).result(), to_dense(norm(kernels, ROWS)))
        for call in calls:
            pool.submit(call).result()


def test_another_thread_is_refused_while_operations_are_computed(kernels: Kernels) -> None:
    own = Kernels(kernels.library, kernels.unit)
    begun, go_on = Event(), Event()

    def slow(*arguments: object) -> int:
        begun.set()
        assert go_on.wait(60)
        return 0

    own.library = cast(ctypes.CDLL, SimpleNamespace(rerankd_run=slow, rerankd_pack=slow))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(norm, own, ROWS)
        assert begun.wait(60)
        for call in (lambda: norm(own, ROWS), lambda: own.pack(ROWS)):
            with pytest.raises(RuntimeError, match="Another thread"):
                call()
        go_on.set()
        running.result()
    norm(own, ROWS)


def test_rows_of_other_kernels_are_held_and_refused_as_ones_own_are(kernels: Kernels) -> None:
    other = Kernels(kernels.library, kernels.unit)
    expected = to_dense(norm(kernels, ROWS))
    with kernels.recorded():
        early = norm(kernels, ROWS)
        with pytest.raises(RuntimeError, match="not computed yet"):
            norm(other, early)
        theirs = other.to_blocked(ROWS)
        normed = norm(kernels, theirs)
        del theirs
        # Their buffer is not used again before it was read.
        assert to_dense(norm(other, torch.zeros(40, 64).bfloat16())).eq(0).all()
    assert torch.equal(to_dense(normed), expected)


def test_an_unknown_or_cut_operation_is_an_error_and_nothing_is_computed(kernels: Kernels) -> None:
    x, out = torch.randn(4, 64).bfloat16(), torch.zeros(4, 64).bfloat16()
    weight = torch.ones(64).bfloat16()
    good = descriptors.rms_norm(4, 64, x.data_ptr(), 64, 32, weight.data_ptr(), 1e-6, out.data_ptr(), 64, 32)
    unknown = descriptors.gemm(1, 1, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, len(descriptors.EPILOGUES), 0, 0, 0, 0, 0)
    for bad, problem in (
        (struct.pack("q", len(descriptors.OPERATIONS)), "unknown"),
        (struct.pack("q", -1), "unknown"),
        (unknown, "unknown"),
        (good[:-8], "ends within"),
        (good[:8], "ends within"),
        (b"1234", "ends within"),
    ):
        with pytest.raises(KernelsError, match=problem):
            kernels._run(good + bad)
        assert not out.any()
    kernels._run(good + good)
    assert out.any()


def test_structs_and_numbers_of_other_versions_are_refused(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    agreed = descriptors.AGREED
    swapped = {
        **{name: agreed[name] for name in ("abi", "matrix", "lookup", "block", "epilogue", "norm_rope")},
        **agreed,
    }
    for changed, named in (
        ({**agreed, "abi": agreed["abi"] + 1}, "differ in abi"),
        ({**agreed, "gemm": agreed["gemm"] + 8}, "differ in gemm"),
        ({**agreed, "another": 8}, "differ in another"),
        (swapped, "the order of operations"),
    ):
        monkeypatch.setattr(library, "AGREED", changed)
        with pytest.raises(KernelsError, match=named):
            Kernels(kernels.library, kernels.unit)
    monkeypatch.undo()
    with pytest.raises(KernelsError, match="differ in abi, add_layer_norm"):
        Kernels(ctypes.CDLL(None), kernels.unit)


@pytest.fixture
def compiler() -> str:
    found = shutil.which("gcc")
    if found is None:
        pytest.skip("no gcc")
    return found


def changed_sources(folder: Path, old: str, new: str) -> None:
    """Copies of the C files with another `operations.h`."""
    for file in (*SOURCES.glob("*.c"), *SOURCES.glob("*.h")):
        text = file.read_text()
        if file.name == "operations.h":
            assert old in text
            text = text.replace(old, new)
        (folder / file.name).write_text(text)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("matrix x, out;\n} to_blocked;", "matrix out, x;\n} to_blocked;", "to_blocked.x"),
        ("} quantize;", "int64_t more; } quantize;", "quantize"),
        ("float *steps, *zeros;", "float *steps; int32_t zeros;", "quantize.zeros"),
        ("double eps;\n    matrix out;\n} rms_norm;", "int64_t eps;\n    matrix out;\n} rms_norm;", "rms_norm.eps"),
    ],
)
def test_a_struct_that_changes_does_not_compile_unnoticed(
    kernels: Kernels, compiler: str, tmp_path: Path, old: str, new: str, named: str
) -> None:
    changed_sources(tmp_path, old, new)
    command = [compiler, "-fsyntax-only", "-fopenmp", tmp_path / "operations.c"]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "static assertion failed" in compiled.stderr
    assert f'"{named}"' in compiled.stderr


def test_a_library_with_another_struct_is_refused(kernels: Kernels, compiler: str, tmp_path: Path) -> None:
    changed_sources(tmp_path, "} to_blocked;", "int64_t more;\n} to_blocked;")
    header, rest = tmp_path / "operations.h", tmp_path / "rest.c"
    header.write_text(header.read_text().replace("LENGTH(to_blocked, 8)", "LENGTH(to_blocked, 9)"))
    rest.write_text("".join(f"const long rerankd_{unit.name}[99];\n" for unit in UNITS))
    command = [compiler, "-shared", "-fPIC", "-fopenmp", tmp_path / "operations.c", rest]
    command += ["-o", tmp_path / "changed.so"]
    subprocess.run(command, check=True)
    with pytest.raises(KernelsError, match="differ in to_blocked"):
        Kernels(ctypes.CDLL(str(tmp_path / "changed.so")), kernels.unit)


@pytest.fixture
def installed(kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the library and the sources that it was compiled from, from which kernels are loaded."""
    folder = tmp_path / "src" / "native"
    folder.mkdir(parents=True)
    for file in (*SOURCES.glob("*.c"), *SOURCES.glob("*.h"), *SOURCES.glob("_kernels*.so")):
        shutil.copy(file, folder)
    monkeypatch.setattr(library, "__file__", str(folder / "library.py"))
    assert Kernels.load(torch.bfloat16) is not None
    return folder


@pytest.mark.parametrize("file", ["avx2.c", "common.h", "added.h"])
def test_a_library_of_other_sources_is_refused_with_the_command_that_builds_it(installed: Path, file: str) -> None:
    with (installed / file).open("a") as text:
        text.write("/* more */\n")
    with pytest.raises(KernelsError, match=r"other sources.*Build them again: pip install --force-reinstall rerankd"):
        Kernels.load(torch.bfloat16)
    checkout = installed.parents[1]
    (checkout / "setup.py").touch()
    with pytest.raises(RerankdError, match=f"pip install -e {checkout}$"):
        place("cpu", "bfloat16")


def test_a_library_without_sources_beside_it_is_loaded(installed: Path) -> None:
    for file in (*installed.glob("*.c"), *installed.glob("*.h")):
        file.unlink()
    assert Kernels.load(torch.bfloat16) is not None


def test_a_library_that_does_not_say_its_sources_is_refused(installed: Path, compiler: str) -> None:
    (built,) = installed.glob("_kernels*.so")
    built.unlink()
    # Of another name, since a file that was loaded once is not loaded again.
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", installed / "_kernels.other.so"],
        input=b"int rerankd_runs(int unit) { return 1; } int rerankd_largest_weight(int unit) { return 1; }",
        check=True,
    )
    with pytest.raises(KernelsError, match="other sources"):
        Kernels.load(torch.bfloat16)
    for file in (*installed.glob("*.c"), *installed.glob("*.h")):
        file.unlink()
    with pytest.raises(KernelsError, match="of different versions"):
        Kernels.load(torch.bfloat16)


def test_no_library_is_no_kernels(installed: Path) -> None:
    for built in installed.glob("_kernels*.so"):
        built.unlink()
    assert Kernels.load(torch.bfloat16) is None
