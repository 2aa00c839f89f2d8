"""vLLM's offline interface: its documented script, and the forms that its `score` takes."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tqdm.auto import tqdm

from rerankd import LLM, InvalidRequest, ModelError, PoolingParams, Reranker, ScoringRequestOutput, Truncation
from rerankd.options import LoadOptions
from tests.references import Pair
from tests.texts import DOCUMENTS, QUERIES

SCRIPT = Path(__file__).parent / "server" / "clients" / "vllm_offline.py.txt"
PLAIN = [
    ("What is the capital of China?", "The capital of China is Beijing."),
    (
        "What is the capital of China?",
        "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects and is "
        "responsible for the movement of planets around the sun.",
    ),
]


def test_vllms_offline_script_prints_the_plain_texts_scores_behind_two_bars(
    qwen3_vl_checkpoint: Path, tmp_path: Path
) -> None:
    script = tmp_path / "offline.py"
    script.write_text(SCRIPT.read_text().replace("{model}", str(qwen3_vl_checkpoint)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True)
    with Reranker(qwen3_vl_checkpoint) as reranker:
        assert ast.literal_eval(done.stdout) == pytest.approx(reranker.score(PLAIN), abs=1e-5)
    first, second = done.stderr.find("Adding requests: 100%"), done.stderr.find("Processed prompts: 100%")
    assert 0 <= first < second
    assert re.search(r"2/2 .*est\. speed input: \d+\.\d\d toks/s, output: 0\.00 toks/s", done.stderr)


@pytest.fixture(scope="module")
def llm(qwen3_checkpoint: Path) -> Iterator[LLM]:
    with LLM(str(qwen3_checkpoint), runner="pooling", dtype="float32") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def reranker(qwen3_checkpoint: Path) -> Iterator[Reranker]:
    with Reranker(qwen3_checkpoint, dtype="float32") as loaded:
        yield loaded


Q, D = QUERIES[0], list(DOCUMENTS[:3])


@pytest.mark.parametrize(
    ("data_1", "data_2", "pairs"),
    [
        (Q, D[0], [(Q, D[0])]),
        (Q, D, [(Q, d) for d in D]),
        ([Q], D, [(Q, d) for d in D]),
        (list(QUERIES[:3]), D, list(zip(QUERIES[:3], D, strict=True))),
        ({"content": [{"type": "text", "text": Q}]}, {"content": [{"type": "text", "text": D[0]}]}, [(Q, D[0])]),
        (Q, [D[0], {"content": [{"type": "text", "text": D[1]}]}], [(Q, D[0]), (Q, D[1])]),
        (Q, [], []),
    ],
)
def test_pairs_are_one_to_one_one_to_many_or_many_to_many(
    llm: LLM, reranker: Reranker, data_1: Any, data_2: Any, pairs: list[Pair]
) -> None:
    outputs = llm.score(data_1, data_2, use_tqdm=False)
    assert [output.outputs.score for output in outputs] == pytest.approx(reranker.score(pairs), abs=1e-5)
    assert all(output.finished for output in outputs)


def test_outputs_carry_the_whole_prompt_and_ids_of_their_own(llm: LLM, reranker: Reranker) -> None:
    outputs = llm.score(Q, D, use_tqdm=False)
    lengths = [document.prompt_tokens for document in reranker.rerank(Q, D).in_request_order()]
    assert [len(output.prompt_token_ids) for output in outputs] == lengths
    assert outputs[0].prompt_token_ids[:2] == [151644, 8948]  # <|im_start|>system
    assert [bool(output.num_cached_tokens) for output in outputs] == [False, True, True]
    assert len({output.request_id for output in outputs + llm.score(Q, D, use_tqdm=False)}) == 6


def test_a_chat_template_of_a_call(llm: LLM, reranker: Reranker) -> None:
    template = "{{ query[0].text }} -> {{ document[0].text }}"
    templated = scores(llm.score(Q, D, chat_template=template, use_tqdm=False))
    assert templated != pytest.approx(reranker.score([(Q, d) for d in D]), abs=1e-3)
    assert scores(llm.score(Q, D, chat_template=template, use_tqdm=False)) == pytest.approx(templated, abs=1e-6)


def test_a_limit_on_tokens_cuts_and_says_so(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    (output,) = llm.score("q", DOCUMENTS[-1], truncate_prompt_tokens=100, use_tqdm=False)
    assert len(output.prompt_token_ids) == 100
    assert "cut to fit" in caplog.text
    (whole,) = llm.score("q", DOCUMENTS[-1], truncate_prompt_tokens=-1, use_tqdm=False)
    assert len(whole.prompt_token_ids) > 300


@pytest.mark.parametrize(
    ("data_1", "data_2", "problem"),
    [
        ([Q, Q], D, "data_1: has 2 queries for 3 documents"),
        (Q, [D[0], 3], r"data_2\[1\]"),
        ({"x": 1}, D, r"data_1\[0\]"),
    ],
)
def test_what_cannot_be_scored_names_its_argument(llm: LLM, data_1: Any, data_2: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        llm.score(data_1, data_2, use_tqdm=False)


def test_other_runners_and_arguments(qwen3_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="'generate' does not score"):
        LLM(str(qwen3_checkpoint), runner="generate")
    with LLM(
        str(qwen3_checkpoint),
        pipeline_parallel_size=1,
        enforce_eager=True,
        pooler_config=None,
        override_pooler_config={"pooling_type": "LAST", "use_activation": True},
        enable_lora=False,
        foo=1,
    ):
        ignored = "enable_lora, enforce_eager, foo, override_pooler_config, pipeline_parallel_size"
        assert f"arguments without effect here: {ignored}" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size 2 is not supported"),
        (
            {"override_pooler_config": {"use_activation": False}},
            "send `use_activation` in requests, or in the PoolingPar",
        ),
        ({"pooler_config": {"pooling_type": "LAST", "softmax": False}}, "pooler_config .* is not supported"),
        ({"enable_lora": True}, "enable_lora is not supported: adapters are not supported"),
        ({"tokenizer": "another/one"}, "tokenizer another/one is not supported"),
        ({"hf_overrides": lambda config: config}, "hf_overrides: a function"),
        ({"max_modle_len": 512}, "there is no argument 'max_modle_len'; the nearest is 'max_model_len'"),
        ({"enforce_eagr": True}, "the nearest is 'enforce_eager'"),
    ],
)
def test_arguments_whose_loss_would_change_something_are_refused(
    qwen3_checkpoint: Path, arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        LLM(str(qwen3_checkpoint), **arguments)
    with pytest.raises(ModelError, match="fp8"):
        LLM(str(qwen3_checkpoint), quantization="fp8")


def scores(outputs: list[ScoringRequestOutput]) -> list[float]:
    return [output.outputs.score for output in outputs]


def test_a_chat_template_of_the_model_is_that_of_every_call(qwen3_checkpoint: Path, llm: LLM) -> None:
    template = "{{ query[0].text }} -> {{ document[0].text }}"
    with LLM(str(qwen3_checkpoint), dtype="float32", chat_template=template) as templated:
        expected = scores(llm.score(Q, D, chat_template=template, use_tqdm=False))
        assert scores(templated.score(Q, D, use_tqdm=False)) == pytest.approx(expected, abs=1e-6)
        assert expected != pytest.approx(scores(llm.score(Q, D, use_tqdm=False)), abs=1e-3)


@pytest.mark.parametrize(
    ("params", "activated"),
    [
        (PoolingParams(), True),
        (PoolingParams(use_activation=True), True),
        (PoolingParams(use_activation=False), False),
        (PoolingParams(activation=False), False),
        (PoolingParams(softmax=False), False),
        (PoolingParams(use_activation=True, activation=False), True),
    ],
)
def test_pooling_params_ask_for_scores_or_logits(
    llm: LLM, reranker: Reranker, params: PoolingParams, activated: bool
) -> None:
    expected = [one.score for one in reranker.rerank(Q, D, activation=activated).in_request_order()]
    assert scores(llm.score(Q, D, pooling_params=params, use_tqdm=False)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"truncate_prompt_tokens": 100},
        {"pooling_params": PoolingParams(truncate_prompt_tokens=100)},
        {"tokenization_kwargs": {"truncate_prompt_tokens": 100}},
        {"tokenization_kwargs": {"max_length": 100}},
        {"tokenization_kwargs": {"truncation": True, "max_length": 100}},
        {"tokenization_kwargs": {"truncation": "longest_first", "max_length": 100, "padding": None}},
        {"truncate_prompt_tokens": 100, "tokenization_kwargs": {"truncate_prompt_tokens": 90, "max_length": 80}},
    ],
)
def test_each_way_to_limit_a_prompt_does(llm: LLM, arguments: Mapping[str, Any]) -> None:
    (expected,) = llm.score("q", DOCUMENTS[-1], truncate_prompt_tokens=100, use_tqdm=False)
    (output,) = llm.score("q", DOCUMENTS[-1], use_tqdm=False, **arguments)
    assert output.prompt_token_ids == expected.prompt_token_ids
    assert len(output.prompt_token_ids) == 100


def test_the_side_is_the_tokenizers_if_none_is_named(bert_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "left"
    shutil.copytree(bert_checkpoint, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "truncation_side": "left"}))
    text = " ".join(DOCUMENTS[:12])
    with LLM(str(folder), dtype="float32") as llm, Reranker(folder, dtype="float32") as reranker:
        (output,) = llm.score("q", text, truncate_prompt_tokens=40, use_tqdm=False)
        assert output.outputs.score == pytest.approx(
            reranker.score([("q", text)], truncation=Truncation(max_tokens=40))[0], abs=1e-6
        )
        (right,) = llm.score(
            "q", text, truncate_prompt_tokens=40, tokenization_kwargs={"truncation_side": "right"}, use_tqdm=False
        )
        assert abs(right.outputs.score - output.outputs.score) > 1e-4


def test_a_side_is_heard_and_cutting_can_be_forbidden(llm: LLM) -> None:
    limit: dict[str, Any] = {"max_length": 100}
    (right,) = llm.score("q", DOCUMENTS[-1], tokenization_kwargs=limit, use_tqdm=False)
    (left,) = llm.score("q", DOCUMENTS[-1], tokenization_kwargs={**limit, "truncation_side": "left"}, use_tqdm=False)
    assert len(left.prompt_token_ids) == len(right.prompt_token_ids) == 100
    assert left.prompt_token_ids != right.prompt_token_ids
    forbidden = {"truncation": False}
    with pytest.raises(InvalidRequest, match=r"documents\[0\]"):
        llm.score("q", "word " * 50_000, tokenization_kwargs=forbidden, use_tqdm=False)
    whole = llm.score("q", DOCUMENTS[-1], tokenization_kwargs={**limit, **forbidden}, use_tqdm=False)
    assert len(whole[0].prompt_token_ids) > 300


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 10_000_000}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"tokenization_kwargs": {"max_length": "8"}}, "tokenization_kwargs.max_length"),
        ({"tokenization_kwargs": {"truncation": "only_first"}}, "tokenization_kwargs.truncation"),
        ({"tokenization_kwargs": {"truncation_side": "middle"}}, "tokenization_kwargs.truncation_side"),
        ({"pooling_params": PoolingParams(truncate_prompt_tokens=-3)}, "pooling_params.truncate_prompt_tokens"),
        ({"pooling_params": PoolingParams(dimensions=64)}, "pooling_params.dimensions"),
        ({"pooling_params": {"use_activation": False}}, "pooling_params"),
        ({"lora_request": object()}, "lora_request"),
        ({"lora_request": [None, object()]}, "lora_request"),
    ],
)
def test_what_cannot_hold_is_refused_by_its_name(llm: LLM, arguments: Mapping[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        llm.score(Q, D, use_tqdm=False, **arguments)
    assert refused.value.field == field


def test_none_is_taken_and_what_has_no_effect_is_warned_of_once(
    llm: LLM, reranker: Reranker, caplog: pytest.LogCaptureFixture
) -> None:
    expected = pytest.approx(reranker.score([(Q, d) for d in D]), abs=1e-5)
    nothing: dict[str, Any] = {"lora_request": None, "pooling_params": None, "tokenization_kwargs": None}
    assert scores(llm.score(Q, D, use_tqdm=False, chat_template=None, **nothing)) == expected
    assert scores(llm.score(Q, D, use_tqdm=False, lora_request=[None, None, None])) == expected
    assert "no effect" not in caplog.text
    params, kwargs = PoolingParams(task="classify", normalize=True), {"do_lower_case": True}
    for _ in range(2):
        assert scores(llm.score(Q, D, use_tqdm=False, pooling_params=params, tokenization_kwargs=kwargs)) == expected
    for name in ("pooling_params.task", "pooling_params.normalize", "tokenization_kwargs.do_lower_case"):
        assert caplog.text.count(f"argument without effect here: {name}\n") == 1


def test_extra_kwargs_hold_limits_of_texts_and_an_instruction(
    llm: LLM, reranker: Reranker, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {
        "max_tokens_per_doc": 4,
        "max_tokens_per_query": 2,
        "chat_template_kwargs": {"instruction": "Find the opposite", "tone": "kind"},
        "compressed": True,
    }
    limits = Truncation(max_tokens_per_doc=4, max_tokens_per_query=2)
    expected = reranker.rerank(Q, D, "Find the opposite", truncation=limits).in_request_order()
    outputs = llm.score(Q, D, pooling_params=PoolingParams(extra_kwargs=extra), use_tqdm=False)
    assert scores(outputs) == pytest.approx([one.score for one in expected], abs=1e-5)
    assert [len(output.prompt_token_ids) for output in outputs] == [one.prompt_tokens for one in expected]
    assert scores(outputs) != pytest.approx(reranker.score([(Q, d) for d in D]), abs=1e-4)
    assert "argument without effect here: pooling_params.extra_kwargs.compressed\n" in caplog.text
    assert "argument without effect here: pooling_params.extra_kwargs.chat_template_kwargs.tone\n" in caplog.text
    with pytest.raises(InvalidRequest, match=r"extra_kwargs\.max_tokens_per_doc"):
        llm.score(Q, D, pooling_params=PoolingParams(extra_kwargs={"max_tokens_per_doc": -1}), use_tqdm=False)


def test_a_bar_of_the_callers_own(llm: LLM) -> None:
    made = []

    def bar(**options: Any) -> tqdm[Any]:
        made.append(options["desc"])
        return tqdm(**options, disable=True)

    llm.score(Q, D, use_tqdm=bar)
    assert made == ["Adding requests", "Processed prompts"]


@pytest.mark.parametrize("name", ["encode", "embed", "classify", "reward", "generate", "get_tokenizer"])
def test_what_is_not_there_says_what_is(llm: LLM, name: str) -> None:
    assert not hasattr(llm, name)
    with pytest.raises(AttributeError, match=rf"LLM\.{name} .*LLM\.score"):
        getattr(llm, name)


def test_modelscope_is_asked_where_vllms_variable_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    asked = []

    def resolve(model: str, hub: str, revision: str | None, weights: bool) -> Path:
        asked.append((model, hub))
        raise ModelError("not there")

    monkeypatch.setattr("rerankd.loading.resolve", resolve)
    with pytest.raises(ModelError):
        LLM("a/b")
    assert asked == [("a/b", "modelscope")]


def test_pictures_come_from_the_allowed_folder_alone(qwen3_vl_checkpoint: Path, tmp_path: Path) -> None:
    inside, outside = tmp_path / "in" / "a.png", tmp_path / "out" / "a.png"
    for path in (inside, outside):
        path.parent.mkdir()
        Image.new("RGB", (64, 64), (200, 30, 90)).save(path)

    def shown(path: Path) -> dict[str, Any]:
        return {"content": [{"type": "image_url", "image_url": {"url": path.as_uri()}}]}

    with LLM(str(qwen3_vl_checkpoint), allowed_local_media_path=str(inside.parent)) as llm:
        assert len(llm.score("a cat", shown(inside), use_tqdm=False)) == 1
        with pytest.raises(InvalidRequest, match=r"documents\[0\]"):
            llm.score("a cat", shown(outside), use_tqdm=False)


def test_options_of_loading_are_passed_on_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever `LLM` takes of them reaches `LoadOptions` under its own name; None asks for nothing."""
    made: list[LoadOptions] = []
    monkeypatch.setattr("rerankd.llm.Reranker", made.append)
    given = {
        "revision": "main", "dtype": "float32", "quantization": "int8", "gpu_memory_utilization": 0.5,
        "tensor_parallel_size": 2, "data_parallel_size": 2, "max_model_len": 9, "hf_overrides": {"a": 1},
        "recipe": "cross-encoder", "label": "entailment", "cutoff_layers": 3,
        "chat_template": "x", "device": "cpu", "backend": "torch", "hub": "modelscope", "default_instruction": "find",
    }  # fmt: skip
    LLM("a/b", **given, max_num_batched_tokens=7)
    LLM("a/b", **dict.fromkeys(given))
    full, plain = made
    assert {name: getattr(full, name) for name in given} == given
    assert full.max_batch_tokens == 7
    defaults = LoadOptions("a/b")
    assert {name: getattr(plain, name) for name in given} == {name: getattr(defaults, name) for name in given}
