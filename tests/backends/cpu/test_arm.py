"""The kernels for ARM in an emulator, by the checks that the units of x86 pass: no ARM machine is at hand."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from benchmarks.arm.counting import Counter, Missing, Work
from benchmarks.arm.ours import Ours
from benchmarks.arm.peer import Peer, library_of

from rerankd.backends.cpu import runs
from rerankd.backends.cpu.linear import Linear, int8_linear
from rerankd.backends.cpu.native import Kernels
from rerankd.backends.cpu.native.library import load_library
from rerankd.backends.cpu.native.units import CAP, allowed, units_of
from rerankd.backends.cpu.rows import to_dense
from rerankd.backends.torch.reference import reference_attention
from rerankd.core import PackedGroup, Span
from rerankd.layers.layout import causal_layout, separate_layout
from rerankd.layers.spec import Activation
from tests.backends import test_attention, test_transformers
from tests.backends.cpu import test_embedding, test_linear, test_norm
from tests.backends.cpu.emulated_arm import ARM_UNITS, COMPILER, EMULATOR, Emulator, program
from tests.backends.cpu.test_units import exact_sums
from tests.backends.cpu.units import codes, threads

pytestmark = pytest.mark.emulator


def emulated(emulator: Emulator, unit: str) -> Kernels:
    found = load_library(torch.float32)
    if found is None:
        pytest.skip("no kernels were built")
    assert emulator.runs(ARM_UNITS[unit])
    return Kernels(emulator.library(found[0]), ARM_UNITS[unit])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program(tmp_path_factory.mktemp("arm"))


@pytest.fixture(scope="module")
def emulator(arm_program: Path) -> Iterator[Emulator]:
    emulator = Emulator(arm_program)
    yield emulator
    emulator.close()


@pytest.fixture(params=ARM_UNITS)
def kernels(request: pytest.FixtureRequest, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """The kernels of a unit, which the checks of x86's units find too."""
    kernels = emulated(emulator, request.param)
    for module in (test_attention, test_linear):
        monkeypatch.setattr(module, "UNITS", ARM_UNITS)
        monkeypatch.setattr(module, "kernels_by", lambda unit: kernels)
    return kernels


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [("cortex-a72", ["neon"]), ("neoverse-n1", ["neon", "neon_dotprod"]), ("max,sve=off", [*ARM_UNITS])],
)
def test_a_processor_runs_the_units_of_its_instructions(arm_program: Path, cpu: str, expected: list[str]) -> None:
    emulator = Emulator(arm_program, cpu)
    assert [name for name, unit in ARM_UNITS.items() if emulator.runs(unit)] == expected
    assert not any(emulator.runs(unit) for unit in units_of("x86_64"))
    emulator.close()


@pytest.mark.parametrize(
    ("team", "rows", "inputs", "outputs"), [(1, 1, 64, 32), (3, 17, 128, 96), (1, 7, 192, 64), (3, 19, 1088, 32)]
)
@pytest.mark.parametrize("make", [test_linear.own_linear, int8_linear], ids=["float", "int8"])
def test_gemms(kernels: Kernels, team: int, rows: int, inputs: int, outputs: int, make: Callable[..., Linear]) -> None:
    test_linear.test_own_gemms_of_many_shapes(kernels.unit.name, team, rows, inputs, outputs, True, make)


@pytest.mark.parametrize("epilogue", ["gelu", "gelu_tanh"])
def test_epilogues(kernels: Kernels, epilogue: Activation) -> None:
    near = 0.05 if kernels.dtype == torch.bfloat16 else 1e-5
    for make, close in ((test_linear.own_linear, near), (int8_linear, 0.1)):
        test_linear.test_epilogues(kernels.dtype, partial(make, kernels=kernels), close, epilogue, True)
    test_linear.test_activations_of_all_bfloat16_values(
        kernels.unit.name, epilogue, 1.5e-5 if epilogue == "gelu" else 1e-4
    )


def test_rows_in_8_bits(kernels: Kernels) -> None:
    backend = kernels.dtype, partial(int8_linear, kernels=kernels), codes(kernels.unit.name)
    test_linear.test_nan_and_inf_spoil_their_own_row_only_in_8_bits(backend)
    test_linear.test_a_row_of_zeros_stays_zero(backend)
    test_linear.test_the_largest_value_of_a_row_does_not_wrap_round(backend)
    for rows in (1, 7, 33):
        test_linear.test_int8_is_the_gemm_defined(backend, True, rows)
    exact_sums(kernels)


def test_codes_are_those_of_x86_less_a_constant(kernels: Kernels) -> None:
    here = Kernels.load(kernels.dtype)
    if here is None or codes(here.unit.name) != codes(kernels.unit.name):
        pytest.skip(f"no kernels for {kernels.dtype} with codes of 8 bits run here")
    x = (test_linear.matrix(13, 192, 1) + 1.5).to(kernels.dtype)
    x[5], x[7, 0] = 0.0, 300.0
    # Half a step at both ends rounds to one code more than there are.
    x[9:], x[9:, 0], x[9:, 1] = 0.5, torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([-1.0, -2.0, -3.0, -5.0])
    own, other = kernels.quantize(x), here.quantize(x)
    signed = to_dense(own.codes).view(torch.int8).int()
    assert torch.equal(signed + 128, to_dense(other.codes).int())
    assert torch.equal(own.zeros + 128, other.zeros)
    assert torch.equal(own.steps, other.steps)


def test_norms_and_embeddings(kernels: Kernels) -> None:
    for rows, width in ((1, 16), (61, 1024)):
        test_norm.test_rms_norm(kernels, rows, width)
    for heads, head_dim in ((3, 64), (2, 48)):
        test_norm.test_norm_and_rotation_of_heads(kernels, heads, head_dim, True)
    for width in (48, 384):
        test_norm.test_add_norm(kernels, width)
        test_embedding.test_embeddings_are_summed_and_normed(width, True, kernels)
    test_norm.test_parts_of_states_are_written_in_place(kernels)
    test_norm.test_nan_stays_nan(kernels)
    test_embedding.test_rows_that_a_table_lacks_are_an_error(1, 50, kernels)


@pytest.mark.parametrize(("heads", "head_dim", "own_per_shared"), [((4, 2), 64, 0), ((3, 3), 32, 1000)])
def test_attention_over_packed_documents(
    kernels: Kernels, heads: tuple[int, int], head_dim: int, own_per_shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "OWN_PER_SHARED", own_per_shared)
    spans = [Span(0, 37), Span(37, 38), Span(38, 75), Span(75, 146), Span(146, 149)]
    groups = [PackedGroup(spans[0], tuple(spans[1:4])), PackedGroup(Span(146, 146), (spans[4],))]
    for layout in (causal_layout(groups), separate_layout(spans)):
        q, k, v = (x.to(kernels.dtype) for x in test_attention.tensors(149, 149, *heads, head_dim=head_dim))
        expected = to_dense(reference_attention(q, k, v, layout, 0.4)).float()
        for is_blocked in (True, False):
            attended = test_attention.own_attention(kernels.unit.name, q, k, v, layout, 0.4, is_blocked)
            torch.testing.assert_close(attended.float(), expected, **test_attention.NEAR[kernels.dtype])


def test_attention_of_extremes(kernels: Kernels) -> None:
    test_attention.test_own_attention_bears_logits_that_lie_far_apart(kernels.unit.name, "prefix")
    test_attention.test_own_attention_keeps_what_is_not_a_number(kernels.unit.name)
    test_attention.test_own_attention_reads_no_value_behind_a_document(kernels.unit.name)


def test_whole_transformers(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    model = "bert" if kernels.unit.name in ("neon", "neon_i8mm") else "qwen3"
    monkeypatch.setattr(Kernels, "load", lambda dtype: kernels)
    test_transformers.test_backends_run_specifications_as_defined(model, kernels.dtype)


def test_the_cap_names_units_of_arm_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerankd.backends.cpu.native.units.UNITS", units_of("aarch64"))
    monkeypatch.setenv(CAP, "neon_dotprod")
    assert [name for name, unit in ARM_UNITS.items() if allowed(unit)] == ["neon", "neon_dotprod"]


LOOP = """
    .globl _start
_start:
    mov x1, #1000
1:  subs x1, x1, #1
    b.ne 1b
    mov x0, #0
    mov x8, #93
    svc #0
"""
"""2,004 instructions, the last of which ends the process."""


def test_all_instructions_are_counted(arm_program: Path, tmp_path: Path) -> None:
    source, loop = tmp_path / "loop.s", tmp_path / "loop"
    source.write_text(LOOP)
    subprocess.run([COMPILER, "-nostdlib", "-static", source, "-o", loop], check=True)
    counter = Counter(tmp_path)
    subprocess.run([EMULATOR, *counter.options, loop], check=True)
    assert counter.total() == 2004


def test_the_instructions_of_kernels_are_counted_without_what_surrounds_them(arm_program: Path, tmp_path: Path) -> None:
    with threads(1):  # a thread that waits for another one executes instructions too
        ours = Ours(tmp_path, arm_program, "neoverse-n1")
        found = {}
        for precision, inputs in (("float32", 128), ("float32", 256), ("int8", 256)):
            work = Work("linear", precision, inputs, 64)
            counted = ours.count(work)
            assert counted is not None
            found[precision, inputs] = counted[0] / work.multiply_adds
            assert counted[1] == "neon_dotprod"
        assert ours.count(Work("linear", "bfloat16", 128, 64)) is None
        layer = Work("layer", "float32", 64, 128)
        whole = ours.count(layer)
    ours.close()
    # An instruction of NEON does four multiply-adds in float32. These kernels are compiled with less optimisation.
    assert 0.25 < found["float32", 256] < found["float32", 128] < 1.2
    assert found["int8", 256] < 0.75 * found["float32", 256]
    assert whole is not None
    assert found["float32", 256] < whole[0] / layer.multiply_adds < 3 * found["float32", 256]


def test_the_library_that_computes_torchs_products_is_named(tmp_path: Path) -> None:
    told = [
        "onednn_verbose,v1,info,oneDNN v3.7.1",
        "onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:f32::blocked:ab,,,64x384,0.1",
        "onednn_verbose,v1,primitive,exec,cpu,matmul,gemm:acl,undef,src:f32::blocked:ab,,,64x384:384x384,0.5",
    ]
    assert library_of([*told, "open"]) == "oneDNN gemm:acl"
    assert library_of([*told[:2], "open"]) == "open"
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "lib" / "libtorch_cpu.so").write_bytes(b"\x7fELF" + bytes(14) + b"\x3e\x00")
    with pytest.raises(Missing, match=f"no torch for 64-bit ARM in {tmp_path}. Install it:\npip install"):
        Peer.compiled(tmp_path, tmp_path)
