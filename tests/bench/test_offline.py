"""The offline benchmark: what it sends, what it counts as necessary work, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from rerankd.bench import limit
from rerankd.bench.limit import Kind, Lengths, Work, gemm_rate, work
from rerankd.bench.offline import measure
from rerankd.bench.rounds import Round, Summary
from rerankd.bench.workloads import KINDS, Corpus, Workload
from rerankd.cli.bench import app
from rerankd.core import RerankdError, RerankResult
from rerankd.engine.batcher import Slice
from rerankd.models.checkpoint.json_files import read_json
from rerankd.reranker import Reranker

lengths = st.builds(Lengths, st.integers(1, 9), st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple))


def weights(layer: torch.nn.Module, *names: str) -> int:
    """Multiply-adds of a row through the linear modules of a layer whose names end so."""
    return sum(
        module.weight.numel()
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear) and (not names or name.endswith(names))
    )


@given(lengths)
def test_a_decoders_work_is_its_weights_and_its_mask(request: Lengths) -> None:
    config = transformers.Qwen3Config(
        vocab_size=9,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    layer = transformers.Qwen3ForCausalLM(config).model.layers[0]
    tokens, documents = request.computed, len(request.suffixes)
    found = work(config.to_dict(), Kind(shares_prefix=True), request)
    for_every_row = weights(layer, "k_proj", "v_proj")
    assert found.gemms == 2 * tokens * weights(layer) + tokens * for_every_row + documents * (
        weights(layer) - for_every_row
    )

    # Pairs that may see each other, counted one by one: a suffix sees the prefix and itself up to each token.
    owner = [-1] * request.prefix + [i for i, n in enumerate(request.suffixes) for _ in range(n)]
    seen = [sum(owner[k] in (-1, owner[q]) for k in range(q + 1)) for q in range(tokens)]
    last = [max(q for q in range(tokens) if owner[q] == i) for i in range(documents)]
    heads, width = 4, 16
    assert found.attention == 2 * heads * width * (2 * sum(seen) + sum(seen[q] for q in last))


@given(lengths, st.booleans())
def test_an_encoders_work_is_its_weights_and_its_pairs(request: Lengths, pairs: bool) -> None:
    if pairs:
        request = Lengths(0, request.suffixes)
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4
    )
    layer = transformers.BertModel(config).encoder.layer[0]
    tokens, documents = request.computed, len(request.suffixes)
    found = work(config.to_dict(), Kind(shares_prefix=False, pairs=pairs), request)
    squares = sum(n * n for n in (request.prefix, *request.suffixes))
    if not pairs:
        assert found.gemms == 3 * tokens * weights(layer)
        assert found.attention == 2 * 24 * 3 * squares
    else:
        for_every_row = weights(layer, "key", "value")
        head = 24 * 24
        assert found.gemms == 2 * tokens * weights(layer) + tokens * for_every_row + documents * (
            weights(layer) - for_every_row + head
        )
        assert found.attention == 2 * 24 * (2 * squares + tokens)


@pytest.mark.parametrize(
    ("checkpoint", "head_rows"),
    [
        ("qwen3_checkpoint", 2),
        ("xlmr_checkpoint", 1),
        ("bert_two_labels_checkpoint", 2),
        ("xlmr_embedder_checkpoint", 0),
    ],
)
def test_the_engine_multiplies_no_more_than_that(
    checkpoint: str, head_rows: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of padding, or one too many in the last layer, would show here."""
    # torch counts its own GEMMs, not those of our kernels.
    with Reranker(request.getfixturevalue(checkpoint), dtype="float32", backend="torch") as reranker:
        engine, counter = reranker._engine, FlopCounterMode(display=False)
        forward = engine._forward

        def counted(batch: list[Slice]) -> list[float]:
            with counter:  # of the engine's own thread
                return forward(batch)

        monkeypatch.setattr(engine, "_forward", counted)
        result = reranker.rerank("what is panda?", ["hi", "The giant panda is a bear.", "one two three four five"])
        config, kind = read_json(reranker.info.path / "config.json"), Kind.of(reranker)
    found = work(config, kind, Lengths.of(result))
    counts = counter.get_flop_counts()["Global"]
    gemms = (counts.get(torch.ops.aten.mm, 0) + counts.get(torch.ops.aten.addmm, 0)) // 2
    assert gemms == found.gemms + 3 * head_rows * config["hidden_size"]


@given(lengths)
def test_lengths_are_read_off_an_answer(request: Lengths) -> None:
    prompts = [request.prefix + n for n in request.suffixes]
    assert Lengths.from_prompts(prompts, request.computed) == request
    assert request.whole == sum(prompts)


def test_one_document_shares_nothing() -> None:
    assert Lengths.from_prompts([12], 12) == Lengths(0, (12,))


def test_the_rate_is_the_works_own_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 rows through 10 x 20 at 1 ms a call, 50 through 20 x 10 at 4 ms: weighted by the work in each."""
    milliseconds = {(10, 20): 1, (20, 10): 4}
    shapes: list[tuple[int, int]] = []

    def a_gemm(device: torch.device, dtype: str, rows: int, inputs: int, outputs: int) -> Any:
        shapes.append((inputs, outputs))

    monkeypatch.setattr(limit, "a_gemm", a_gemm)
    monkeypatch.setattr(limit, "median_seconds", lambda *_: milliseconds[shapes[-1]] / 1000)
    rate = gemm_rate(Work({(10, 20): 100, (20, 10): 50}, attention=7), "float32")
    assert rate == pytest.approx((100 * 200 + 50 * 200) / 0.005)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_gemms_of_every_precision_run(dtype: str) -> None:
    assert limit.a_gemm(torch.device("cpu"), dtype, 5, 16, 8)().shape == (5, 8)  # type: ignore[attr-defined]


def test_a_summary_is_of_rounds() -> None:
    rounds = [
        Round((1.0, 3.0, 1.0), documents=10, tokens=100, multiply_adds=1000, gemm_rate=400.0),
        Round((2.0, 2.0, 6.0), documents=10, tokens=100, multiply_adds=1000, gemm_rate=200.0),
        Round((1.0, 1.0, 2.0), documents=10, tokens=100, multiply_adds=1000, gemm_rate=500.0),
    ]
    summary = Summary.of(rounds)
    assert (summary.documents.low, summary.documents.median, summary.documents.high) == (1.0, 2.0, 2.5)
    assert summary.tokens.median == 20
    assert (summary.latency.low, summary.latency.median, summary.latency.high) == (1.0, 1.0, 2.0)
    assert (summary.limit.low, summary.limit.median, summary.limit.high) == (2.0, 4.0, 5.0)
    assert (summary.share.low, summary.share.median, summary.share.high) == (0.5, 0.5, 0.5)
    assert summary.json()["latency_ms"] == {"median": 1000, "min": 1000, "max": 2000}


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_texts_begin_alike(kind: str) -> None:
    corpus = Corpus()
    texts = [text for _ in range(20) for request in [corpus.request(Workload(kind, 50))] for text in request[1]]
    assert len({tuple(text.split()[:8]) for text in texts}) == len(texts)
    counts = sorted(len(text.split()) for text in texts)
    if kind == "mixed":
        assert (counts[0], counts[-1]) >= (20, 20)
        assert counts[-1] <= 400
        assert 80 < counts[len(counts) // 2] < 100
        assert counts[len(counts) // 10] < 45
        assert counts[-len(counts) // 10] > 180
    else:
        assert set(counts) == {100 if kind == "uniform" else 30}


def test_a_seed_chooses_the_documents() -> None:
    first, again, other = (Corpus(seed).request(Workload("mixed", 5)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_used_up_corpus_says_so() -> None:
    corpus = Corpus()
    for _ in range(20):
        corpus.request(Workload("short", 2000))
    with pytest.raises(RerankdError, match="used up"):
        corpus.request(Workload("short", 20_000))


@pytest.mark.parametrize("name", ["long", "uniform:0", "uniform:x", "uniform:-1", "", ":3"])
def test_an_unknown_workload_is_refused(name: str) -> None:
    with pytest.raises(RerankdError, match="The workload"):
        Workload.parse(name)


def test_workload_names() -> None:
    assert Workload.parse("mixed") == Workload("mixed", 32)
    assert str(Workload.parse("uniform:200")) == "uniform:200"


class Recorder(Reranker):
    """A reranker that keeps what it was asked and what it said."""

    def rerank(self, query: Any, documents: Any, *rest: Any, **options: Any) -> RerankResult:
        result = super().rerank(query, documents, *rest, **options)
        self.__dict__.setdefault("calls", []).append((query, documents, result))
        return result


def test_every_round_is_cold_and_counted(qwen3_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerankd.bench.offline.gemm_rate", lambda one, dtype, device: 1e9)
    with Recorder(qwen3_checkpoint, dtype="float32") as reranker:
        rounds = measure(reranker, Workload("short", 3), 2, "float32")
        calls = reranker.__dict__["calls"]
    requests = KINDS["short"].requests
    assert len(calls) == 1 + 2 * requests
    assert len({query for query, _, _ in calls}) == len(calls)
    assert len({document for _, documents, _ in calls for document in documents}) == 3 * len(calls)
    for number, one in enumerate(rounds):
        results = [result for _, _, result in calls[1 + requests * number : 1 + requests * (number + 1)]]
        assert len(one.seconds) == requests
        assert one.documents == 3 * requests
        assert one.tokens == sum(result.prompt_tokens for result in results)
        config = json.loads((qwen3_checkpoint / "config.json").read_text())
        works = [work(config, Kind.of(reranker), Lengths.of(result)) for result in results]
        assert one.multiply_adds == sum(each.multiply_adds for each in works)
        assert Lengths.of(results[0]).prefix > 50, "the template and the query are shared"


@pytest.mark.parametrize(
    ("flags", "precision"), [(["--dtype", "float32"], "float32"), (["--quantization", "int8"], "int8")]
)
def test_the_command_prints_and_saves(bert_checkpoint: Path, tmp_path: Path, flags: list[str], precision: str) -> None:
    file = tmp_path / "new" / "figures.json"
    arguments = ["offline", str(bert_checkpoint), "--workload", "uniform:2", "--rounds", "2", *flags]
    result = CliRunner().invoke(app, [*arguments, "--save_result", str(file)])
    assert result.exit_code == 0, result.output
    assert "Share of the limit" in result.stdout
    saved = json.loads(file.read_text())
    assert saved["dtype"] == precision
    assert saved["workload"] == "uniform:2"
    rate = saved["documents_per_second"]
    assert 0 < rate["min"] <= rate["median"] <= rate["max"]
    shares = saved["share_of_limit"]
    assert shares["median"] == pytest.approx(rate["median"] / saved["limit_documents_per_second"]["median"], rel=1)


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    for arguments, problem in (
        (["offline", str(tmp_path / "none"), "--rounds", "1"], "none"),
        (["offline", "x", "--workload", "long"], "The workload 'long' is unknown"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1
        assert problem in result.stderr
        assert "Traceback" not in result.output


def test_compare_runs_engines_in_turn(qwen3_checkpoint: Path, tmp_path: Path) -> None:
    """The whole harness on a tiny checkpoint: rerankd and sentence-transformers agree, and all is written."""
    output = tmp_path / "results" / "run.json"
    (tmp_path / "qwen3-tiny").symlink_to(qwen3_checkpoint)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.compare", "--checkpoints", str(tmp_path), "--output", str(output)),
            *("--cases", "qwen3-tiny/uniform:3", "--engines", "rerankd:float32", "st:float32", "--rounds", "1"),
            "--no-service",
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    (case,) = results["cases"]
    ours, theirs = case["engines"]["rerankd:float32"], case["engines"]["st:float32"]
    assert ours["largest_score_difference"] < 1e-5
    assert ours["times_as_fast_as"]["st:float32"]["median"] > 0
    assert theirs["tokens_per_second"]["median"] > 0
    assert {about["engine"] for about in results["memory"]} == {"rerankd:float32", "st:float32"}
    assert all(about["memory_bytes"] for about in results["memory"])
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
