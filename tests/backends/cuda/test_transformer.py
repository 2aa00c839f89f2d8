"""The executor for CUDA on the CPU: the same code, its kernels in Triton's interpreter, its graphs run anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rerankd.backends.cuda import graphs
from rerankd.backends.cuda.backend import CudaBackend
from rerankd.backends.cuda.graphs import KEPT, ROWS, Size
from rerankd.backends.cuda.linear import Fp8Linear, PlainLinear
from rerankd.backends.cuda.transformer import CudaTransformer
from rerankd.backends.torch.backend import TorchBackend
from rerankd.core import PackedGroup, Span
from rerankd.layers.layout import causal_layout
from rerankd.layers.rotary import Rotary
from rerankd.layers.spec import Norm, TransformerSpec
from rerankd.layers.transformer import Additions, Tokens
from tests.backends.dense import VOCABULARY, RandomWeights, shapes
from tests.backends.test_transformers import QWEN, SPECS, Packed

CPU = torch.device("cpu")
LAST = [6, 7, 17, 20, 25]


class Recorder:
    """Runs what was recorded anew. `count` says how often something was recorded."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.count += 1
        return run


def executor(
    spec: TransformerSpec, dtype: torch.dtype = torch.float32, recorder: Recorder | None = None
) -> CudaTransformer:
    weights = RandomWeights(spec, dtype, positioned=spec.layers[0].rotary is None)
    return CudaTransformer(spec, weights, CPU, dtype, record=recorder)


# The interpreter is slow: each way through the layers once, and what only one specification has.
CHOSEN = [
    "bert",
    "qwen3",
    "qwen3-odd-heads",
    "vision",
    "modernbert",
    "gemma",
    "jina-bert",
    "new-bert",
    "partial-rotary",
]


@pytest.mark.parametrize("name", [*CHOSEN, "post-norm-decoder", "deberta"])
def test_specifications_run_as_defined(name: str) -> None:
    spec, packed = SPECS[name], Packed(SPECS[name].causal)
    lacking = CudaBackend(CPU, torch.float32).supports(spec)
    assert lacking == ("disentangled attention" if name.startswith("deberta") else None)
    if lacking:
        return
    rotated = any(layer.rotary is not None for layer in spec.layers)
    positions = packed.tokens.positions if rotated else None
    expected = packed.expected(spec, RandomWeights(spec, positioned=not rotated and spec.layers[0].rotary is None))
    transformer = executor(spec)
    for keep in (None, LAST):
        states = transformer(packed.tokens, packed.layout, positions, keep)
        rows = sorted(expected) if keep is None else keep
        wanted = torch.stack([expected[row] for row in rows])
        error = ((states[rows] if keep is None else states).double() - wanted).abs().max() / wanted.abs().max()
        assert error < 1e-5, (keep, error)


@pytest.mark.parametrize("qk_norm", [QWEN.layers[0].qk_norm, None], ids=["normed", "plain"])
def test_heads_turn_by_time_height_and_width(qk_norm: Norm | None) -> None:
    """Each pair of a head by the coordinate of its own, as a model that sees images has it."""
    spec, packed = shapes(QWEN, rotary=Rotary.plain(32, 1e4, axes=(0, 1, 2, 0) * 4), qk_norm=qk_norm), Packed(True)
    steps = torch.arange(len(packed.ids))
    positions = torch.stack([packed.tokens.positions, steps % 5, steps % 3])
    weights = RandomWeights(spec)
    expected = TorchBackend(CPU, torch.float32).transformer(spec, weights)(packed.tokens, packed.layout, positions)
    found = executor(spec)(packed.tokens, packed.layout, positions)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    other = executor(spec)(packed.tokens, packed.layout, positions.flip(0))
    assert (other - expected).abs().max() > 0.1


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_half_precision_lies_near(name: str) -> None:
    spec, packed = SPECS[name], Packed(SPECS[name].causal)
    positions = packed.tokens.positions if spec.layers[0].rotary is not None else None
    exact = executor(spec)(packed.tokens, packed.layout, positions, LAST)
    rough = executor(spec, torch.float16)(packed.tokens, packed.layout, positions, LAST)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.01 * exact.abs().max()


@pytest.mark.usefixtures("rounding")
def test_in_float8_keys_and_values_stay_plain_and_states_lie_near() -> None:
    spec = TransformerSpec(QWEN.layers[:2], final_norm=QWEN.final_norm)
    packed, weights = Packed(causal=True), RandomWeights(spec, torch.float16)
    rough = CudaTransformer(spec, weights, CPU, torch.float16, fp8=True)
    for layer in rough.layers:
        assert isinstance(layer.key_value, PlainLinear)
        assert all(isinstance(one, Fp8Linear) for one in (layer.query, layer.out, layer.up, layer.down))
    exact = executor(spec)(packed.tokens, packed.layout, packed.tokens.positions, LAST)
    states = rough(packed.tokens, packed.layout, packed.tokens.positions, LAST)
    assert 0.98 < torch.cosine_similarity(states, exact, dim=1).min() < 0.99999


def test_additions_reach_the_layers_behind() -> None:
    packed, transformer = Packed(causal=True), executor(QWEN)
    rows = torch.tensor([1, 3, 9])
    additions = Additions(rows, [torch.ones(3, 64), torch.full((3, 64), -0.5)])
    plain = transformer(packed.tokens, packed.layout, packed.tokens.positions)
    added = transformer(packed.tokens, packed.layout, packed.tokens.positions, None, additions)
    assert (added - plain)[4:9].abs().max() > 0.1
    torch.testing.assert_close(added[20:], plain[20:])
    plainly = TorchBackend(CPU, torch.float32).transformer(QWEN, RandomWeights(QWEN))
    expected = plainly(packed.tokens, packed.layout, packed.tokens.positions, None, additions)
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-4)


def some_batch(lengths: tuple[int, ...], seed: int) -> tuple[Tokens, PackedGroup]:
    spans, row = [], 0
    for length in lengths:
        spans.append(Span(row, row + length))
        row += length
    ids = torch.randint(VOCABULARY, (row,), generator=torch.Generator().manual_seed(seed))
    positions = [*range(lengths[0])] + [lengths[0] + i for n in lengths[1:] for i in range(n)]
    return Tokens(ids, torch.tensor(positions)), PackedGroup(spans[0], tuple(spans[1:]))


def test_batches_of_one_size_share_a_recorded_forward() -> None:
    spec = TransformerSpec(QWEN.layers[:2], final_norm=QWEN.final_norm)
    recorder = Recorder()
    plain, recorded = executor(spec), executor(spec, recorder=recorder)
    # A larger batch first: what it leaves in the static tensors must not show in the ones behind it.
    for seed, lengths in enumerate([(9, 8, 7, 6), (5, 3, 9), (0, 15, 5), (2, 1, 1, 1, 1)]):
        tokens, group = some_batch(lengths, seed)
        layout, keep = causal_layout([group]), [span.stop - 1 for span in group.suffixes]
        found = recorded(tokens, layout, tokens.positions, keep)
        torch.testing.assert_close(found, plain(tokens, layout, tokens.positions, keep), rtol=1e-5, atol=1e-5)
    assert recorder.count == 1
    tokens, group = some_batch((9, 8, 7, 6), 0)
    layout = causal_layout([group])
    whole = recorded(tokens, layout, tokens.positions)
    assert whole.shape == (30, 64)
    torch.testing.assert_close(whole, plain(tokens, layout, tokens.positions), rtol=1e-5, atol=1e-5)
    assert recorder.count == 2
    # What was returned stays as it was when the next batch runs.
    before = whole.clone()
    tokens, group = some_batch((5, 8, 7, 6), 7)
    recorded(tokens, causal_layout([group]), tokens.positions)
    assert torch.equal(whole, before)


def test_types_of_one_batch_do_not_stay_for_the_next() -> None:
    spec = TransformerSpec(SPECS["bert"].layers[:1], embedding_norm=SPECS["bert"].embedding_norm)
    plain, recorded = executor(spec), executor(spec, recorder=Recorder())
    tokens, group = some_batch((0, 9, 8), 1)
    typed = Tokens(tokens.ids, tokens.positions, torch.tensor([0, 1] * 8 + [1]))
    layout = causal_layout([group])
    for one in (typed, tokens):
        torch.testing.assert_close(recorded(one, layout), plain(one, layout), rtol=1e-5, atol=1e-5)


def test_positions_of_three_coordinates_are_recorded_apart() -> None:
    recorder = Recorder()
    recorded = executor(QWEN, recorder=recorder)
    tokens, group = some_batch((3, 4), 1)
    recorded(tokens, causal_layout([group]), tokens.positions, [6])
    assert Size.of(7, 1, 3) != Size.of(7, 1, 1)
    assert recorder.count == 1


def test_sizes_are_rounded_up_and_large_batches_are_not_recorded() -> None:
    assert Size.of(1, 1, 1) == Size(ROWS[0], KEPT[0], 1)
    assert Size.of(ROWS[2], None, 0) == Size(ROWS[2], 0, 0)
    assert Size.of(ROWS[2] + 1, 2, 0) == Size(ROWS[3], KEPT[1], 0)
    assert Size.of(ROWS[-1] + 1, 1, 1) is None
    assert Size.of(5, KEPT[-1] + 1, 1) is None
    assert Size.of(0, 0, 1) is None


def test_a_batch_of_too_many_requests_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    recorded = executor(QWEN, recorder=recorder)
    groups, row = [], 0
    for _ in range(3):
        groups.append(PackedGroup(Span(row, row + 2), (Span(row + 2, row + 5),)))
        row += 5
    tokens = Tokens(torch.arange(row), torch.tensor([0, 1, 2, 3, 4] * 3))
    monkeypatch.setattr(graphs.Size, "tiles", 5)
    found = recorded(tokens, causal_layout(groups), tokens.positions, [4, 9, 14])
    assert recorder.count == 0
    expected = executor(QWEN)(tokens, causal_layout(groups), tokens.positions, [4, 9, 14])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("wrong", ["ids", "positions", "types"])
def test_an_index_beyond_a_table_spoils_its_own_document_only(wrong: str) -> None:
    spec = TransformerSpec(SPECS["bert"].layers[:1], embedding_norm=SPECS["bert"].embedding_norm)
    transformer = executor(spec)
    tokens, group = some_batch((0, 64, 5), 1)
    given = {"ids": tokens.ids.clone(), "positions": tokens.positions.clone(), "types": torch.zeros(69).long()}
    given[wrong][66] = 1000
    states = transformer(Tokens(**given), causal_layout([group]))
    assert states[64:].isnan().any()
    torch.testing.assert_close(states[:64], transformer(tokens, causal_layout([group]))[:64])
