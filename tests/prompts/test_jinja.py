"""Chat templates in vLLM's and SGLang's dialects, against the authors' prompts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from rerankd.core import ModelError
from rerankd.models.recipes.qwen3 import QWEN3_RERANKER, QWEN3_VL_RERANKER
from rerankd.models.recipes.recipe import Recipe
from rerankd.prompts import LoadedPrompts, load_prompts
from rerankd.prompts.decoder import DecoderPrompts
from rerankd.prompts.jinja import JinjaTemplate
from tests import texts
from tests.prompts import authors
from tests.prompts.conftest import refusal, request, whole

UNKNOWN = Recipe("unknown", family="decoder", answers=("no", "yes"))
OPENING = f"<|im_start|>system\n{authors.JUDGE}<|im_end|>\n<|im_start|>user\n"

# As vLLM's guide to Qwen3-VL-Reranker has it: messages by role, and a blank line at the end of the file.
VLLM_VL = (
    OPENING
    + """<Instruct>: {{
    messages | selectattr("role", "eq", "system") | map(attribute="content") | first
    | default("Given a search query, retrieve relevant candidates that answer the query.")
}}<Query>:{{
    messages | selectattr("role", "eq", "query") | map(attribute="content") | first
}}
<Document>:{{
    messages | selectattr("role", "eq", "document") | map(attribute="content") | first
}}<|im_end|>
<|im_start|>assistant

"""
)

# As vLLM's later templates have it: the instruction as a variable.
VLLM_TEXT = (
    OPENING
    + """<Instruct>: {{ instruction | default("Given a web search query, retrieve relevant passages that answer """
    + """the query", true) }}
<Query>: {{ (messages | selectattr("role", "eq", "query") | first).content }}
<Document>: {{ (messages | selectattr("role", "eq", "document") | first).content }}<|im_end|>
<|im_start|>assistant
<think>

</think>


"""
)

# As SGLang's text template has it: messages by place, and no think block.
SGLANG_TEXT = (
    OPENING
    + """<Instruct>: {{ instruct | default("Given a web search query, retrieve relevant passages that answer """
    + """the query.") }}
<Query>: {{ messages[0]["content"] }}
<Document>: {{ messages[1]["content"] }}<|im_end|>
<|im_start|>assistant{{ '\\n' }}"""
)


Load: TypeAlias = Callable[[str | Path], DecoderPrompts]


def sglang_parts(name: str) -> str:
    return (
        f"{{%- for content in {name} -%}}\n"
        "    {%- if content.type == 'image' or 'image_url' in content -%}\n"
        "        <|vision_start|><|image_pad|><|vision_end|>\n"
        "    {%- elif content.type == 'video' -%}\n"
        "        <|vision_start|><|video_pad|><|vision_end|>\n"
        "    {%- elif 'text' in content -%}\n"
        "        {{ content.text }}\n"
        "    {%- endif -%}\n"
        "{%- endfor %}"
    )


# As SGLang's multimodal template has it: lists of parts, comments and white space control.
SGLANG_VL = (
    "{#- Pairs of query and document, judged yes or no -#}\n"
    + OPENING
    + '<Instruct>: {{ instruct | default("Given a search query, retrieve relevant candidates that answer '
    + 'the query.") }}\n'
    + "{#- The query -#}\n<Query>: "
    + sglang_parts("query")
    + "\n{#- The document -#}\n{{ '\\n' }}<Document>: "
    + sglang_parts("document")
    + "<|im_end|>\n<|im_start|>assistant{{ '\\n' }}\n"
)


@pytest.fixture(scope="module")
def load(qwen3: LoadedPrompts) -> Load:
    """Builders over one tokenizer, which takes longer to read than all these tests."""

    def load(source: str | Path) -> DecoderPrompts:
        template = JinjaTemplate.load(source, qwen3.tokenizer.special_tokens)
        return DecoderPrompts(qwen3.tokenizer, template, 40960, None)

    return load


class TestDialects:
    @pytest.mark.parametrize("source", [VLLM_VL, SGLANG_VL], ids=["vllm", "sglang"])
    @pytest.mark.parametrize("instruction", [None, "Find the capital."])
    def test_vl_templates_write_the_authors_prompt(
        self, source: str, instruction: str | None, load: Load, qwen3_vl: LoadedPrompts
    ) -> None:
        asked = request("What is the capital of China?", list(texts.DOCUMENTS), instruction)
        assert load(source).build(asked) == qwen3_vl.build(asked)

    @pytest.mark.parametrize("instruction", [None, "Find the capital."])
    def test_vllms_text_template_writes_the_authors_prompt(
        self, instruction: str | None, load: Load, qwen3: LoadedPrompts
    ) -> None:
        asked = request("What is the capital of China?", list(texts.DOCUMENTS), instruction)
        assert load(VLLM_TEXT).build(asked) == qwen3.build(asked)

    @pytest.mark.parametrize("instruction", [None, "Find the capital."])
    def test_sglangs_text_template_writes_its_own(
        self, instruction: str | None, load: Load, qwen_reference: Any
    ) -> None:
        group = load(SGLANG_TEXT).build(request("hat wer?", list(texts.DOCUMENTS), instruction))
        task = instruction or authors.QWEN3_TASK + "."
        before = f"{OPENING}<Instruct>: {task}\n<Query>: hat wer?\n<Document>: "
        assert whole(group) == [
            qwen_reference.encode(f"{before}{document}<|im_end|>\n<|im_start|>assistant\n")
            for document in texts.DOCUMENTS
        ]

    def test_one_newline_is_lost_at_the_end_as_in_vllm(self, load: Load, qwen_reference: Any) -> None:
        group = load("{{ messages[0].content }} {{ messages[1].content }}\n\n").build(request("q", ["d"]))
        assert whole(group) == [qwen_reference.encode("q d\n")]

    def test_a_template_that_prints_the_lists(self, load: Load, qwen_reference: Any) -> None:
        group = load("{{ query }}|{{ document }}").build(request("q", ["d"]))
        assert whole(group) == [qwen_reference.encode("q|d")]

    def test_blocks_are_trimmed_and_special_tokens_named(self, load: Load, qwen_reference: Any) -> None:
        source = "{{ eos_token }}\n  {% if true %}\n{{ messages[0].content }}\n  {% endif %}\n{{ messages[1].content }}"
        group = load(source).build(request("q", ["d"]))
        assert whole(group) == [qwen_reference.encode("<|im_end|>\nq\nd")]

    def test_json_is_not_escaped_for_html(self, load: Load, qwen_reference: Any) -> None:
        source = "{{ messages[0].content | tojson }} {{ messages[1].content }}"
        assert whole(load(source).build(request("<é>", ["d"]))) == [qwen_reference.encode('"<é>" d')]

    def test_a_file(self, tmp_path: Path, load: Load, qwen3_vl: LoadedPrompts) -> None:
        path = tmp_path / "reranker.jinja"
        path.write_bytes(VLLM_VL.replace("\n", "\r\n").encode())
        asked = request("q", ["a", "b"])
        for source in (path, str(path)):
            assert load(source).build(asked) == qwen3_vl.build(asked)


class TestTooLong:
    @pytest.mark.parametrize("source", [VLLM_VL, SGLANG_VL], ids=["vllm", "sglang"])
    def test_documents_and_queries_are_cut_as_the_built_in_template_cuts(
        self, source: str, load: Load, qwen3_vl: LoadedPrompts
    ) -> None:
        documents = [texts.words(500, 3), "short", "中文" * 300]
        loaded = load(source)
        for query in ("q", texts.words(400, 4)):
            asked = request(query, documents, max_tokens=100)
            assert loaded.build(asked) == qwen3_vl.build(asked)

    def test_a_query_behind_the_document_stays(self, load: Load, qwen_reference: Any) -> None:
        loaded = load("A: {{ messages[1].content }}\nB: {{ messages[0].content }}\nRelevant?")
        document = texts.words(300, 5)
        ids = whole(loaded.build(request("the query", [document], max_tokens=50)))[0]
        tail = qwen_reference.encode("\nB: the query\nRelevant?")
        head = qwen_reference.encode(f"A: {document}")
        assert ids == head[: 50 - len(tail)] + tail

    def test_a_filter_on_the_document(self, load: Load, qwen_reference: Any) -> None:
        loaded = load("{{ messages[0].content }} {{ messages[1].content | trim }} ok")
        document = "  " + texts.words(300, 5) + "  "
        ids = whole(loaded.build(request("q", [document], max_tokens=50)))[0]
        tail = qwen_reference.encode(" ok")
        assert ids == qwen_reference.encode(f"q {document.strip()}")[: 50 - len(tail)] + tail

    def test_a_tail_that_depends_on_the_document_is_never_cut(self, load: Load) -> None:
        source = "{{ messages[0].content }} {{ messages[1].content }} {{ messages[1].content | length }}"
        error = refusal(load(source), request("q", ["d", texts.words(300, 5)], max_tokens=50))
        assert (error.field, "chat template" in error.problem) == ("documents[1]", True)


class TestRefused:
    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("{{ messages[0].content }", "line 1"),
            ("\n{% if %}", "line 2"),
            ("{{ messages[0].content }}", "leaves the document out"),
            ("{{ document }}", "leaves the query out"),
            ("{{ messages[7].content + 'x' }}", "UndefinedError"),
            ("{{ raise_exception('only for chats') }}", "only for chats"),
            ("{{ query }}{{ document }}{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
            ("{% set _ = messages.append(1) %}{{ query }}{{ document }}", "SecurityError"),
            ("no/such/file.jinja", "no/such/file.jinja"),
        ],
    )
    def test_at_load(self, source: str, said: str, load: Load) -> None:
        with pytest.raises(ModelError, match="chat template") as caught:
            load(source)
        assert said in str(caught.value)

    def test_at_render(self, load: Load) -> None:
        source = (
            "{% if 'bad' in messages[1].content %}{{ raise_exception('too bad') }}{% endif %}{{ query }}{{ document }}"
        )
        error = refusal(load(source), request("q", ["good", "bad"]))
        assert (error.field, "too bad" in error.problem) == ("documents[1]", True)


CLIENTS = Path(__file__).parent.parent / "server" / "clients"


class TestDifference:
    """A template that writes another prompt than the model's authors is used, and the first difference is shown."""

    # As vLLM's own example for Qwen3-Reranker has it: Jinja drops the file's last newline, which the authors' has.
    SHORT = VLLM_TEXT.removesuffix("\n")

    def said(
        self, caplog: pytest.LogCaptureFixture, folder: Path, source: str | Path, recipe: Recipe, **options: Any
    ) -> str:
        caplog.clear()
        load_prompts(folder, recipe=recipe, positions=40960, chat_template=source, **options)
        return "\n".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")

    @pytest.mark.parametrize(
        ("source", "recipe"),
        [
            (CLIENTS / "sglang_qwen3_reranker.jinja", QWEN3_RERANKER),
            (CLIENTS / "sglang_qwen3_vl_reranker.jinja", QWEN3_VL_RERANKER),
            (CLIENTS / "vllm_qwen3_vl_reranker.jinja", QWEN3_VL_RERANKER),
            (VLLM_TEXT, QWEN3_RERANKER),
            (VLLM_VL, QWEN3_VL_RERANKER),
        ],
    )
    def test_the_authors_prompt_is_no_matter(
        self, source: str | Path, recipe: Recipe, qwen_folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert not self.said(caplog, qwen_folder, source, recipe)

    def test_a_lost_newline(
        self, qwen_folder: Path, qwen3: LoadedPrompts, load: Load, caplog: pytest.LogCaptureFixture
    ) -> None:
        asked = request("q", ["d"])
        assert load(self.SHORT).build(asked) != qwen3.build(asked)
        said = self.said(caplog, qwen_folder, self.SHORT, QWEN3_RERANKER)
        assert "Without an instruction, behind 'stant\\n<think>\\n\\n</think>\\n' it has nothing where theirs" in said
        assert "has '\\n'. The chat template is used" in said

    def test_a_default_instruction_that_differs(self, qwen_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        other = VLLM_TEXT.replace("retrieve relevant", "find relevant")
        said = self.said(caplog, qwen_folder, other, QWEN3_RERANKER)
        assert "it has 'find relevant passages t' where theirs has 'retrieve relevant passag'" in said
        # It is never used where the server has one.
        assert not self.said(caplog, qwen_folder, other, QWEN3_RERANKER, default_instruction="Served.")

    def test_only_what_an_instruction_changes(self, qwen_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        other = VLLM_TEXT.replace("{{ instruction |", "{{ (instruction ~ '!' if instruction) |")
        said = self.said(caplog, qwen_folder, other, QWEN3_RERANKER)
        assert "With an instruction, behind" in said
        assert "it has '!" in said

    def test_a_model_without_a_known_prompt(self, qwen_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert not self.said(caplog, qwen_folder, self.SHORT, UNKNOWN)

    def test_a_template_of_another_kind(self, qwen_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        said = self.said(caplog, qwen_folder, SGLANG_TEXT, QWEN3_RERANKER)
        assert said.count("\n") == 0
        assert "'nswer the query'" in said or "it has '." in said
        failing = VLLM_TEXT + "{{ raise_exception('no') if '?' in messages[0].content }}"
        with pytest.raises(ModelError, match="cannot be used"):
            self.said(caplog, qwen_folder, failing, QWEN3_RERANKER)


NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.slow
class TestEndless:
    """Templates that would go on for ever, or as good as that."""

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            (NESTED, "go on"),
            ("{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}", "go on"),
            ("{% for a in range(99999) %}{% set b = range(99999) | list %}{% endfor %}", "go on"),
            ("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}", "go on"),
            (
                "{% macro m() %}{{ caller() }}{% endmacro %}"
                "{% for a in range(99999) recursive %}{% call m() %}{{ loop(range(99999)) }}{% endcall %}{% endfor %}",
                "",
            ),
            ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
            ("{{ 7 ** (10 ** 9) }}", "too much"),
            ("{{ 'x' * 10 ** 12 }}", "too much"),
            ("{{ 10 ** 12 * 'x' }}", "too much"),
            # Too much, or more than a second: whichever comes first.
            (
                "{% set n = namespace(x=7) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
                "too much|go on",
            ),
            ("{{ lipsum(10 ** 12) }}", "undefined"),
        ],
    )
    def test_at_load(self, source: str, said: str, load: Load) -> None:
        with pytest.raises(ModelError, match="chat template cannot be used") as caught:
            load("{{ query }}{{ document }}" + source)
        assert re.search(said, str(caught.value))

    def test_at_render(self, load: Load) -> None:
        loaded = load("{{ query }}{{ document }}{% if 'bad' in messages[1].content %}" + NESTED + "{% endif %}")
        error = refusal(loaded, request("q", ["good", "bad"]))
        assert (error.field, "chat template" in error.problem, "go on" in error.problem) == ("documents[1]", True, True)
        assert len(loaded.build(request("q", ["good", "better"])).suffixes) == 2

    def test_loops_that_end(self, load: Load, qwen_reference: Any) -> None:
        source = (
            "{% for c in messages[0].content if c != ' ' %}{{ c * 2 }}{% endfor %}{{ 2 ** 10 }}{{ 3 * 4 }}{{ 0.5 * 2 }}"
            "{% macro m(n) %}{% if n %}{{ n }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(3) }}{{ 2 ** 0.5 > 1 }}"
            "{% for m in messages %}{{ loop.index }}{{ m.content }}{% else %}none{% endfor %}"
        )
        expected = qwen_reference.encode("ffiirrsstt1024121.0321True1first2a document")
        assert whole(load(source + "{{ 'first probe second probe'[:0] }}").build(request("first", ["a document"]))) == [
            expected
        ]


class TestInstruction:
    def test_a_template_without_one_takes_none(self, load: Load, qwen_folder: Path) -> None:
        loaded = load("{{ query }}|{{ document }}")
        assert not loaded.takes_instruction
        assert loaded.build(request("q", ["d"], "i")) == loaded.build(request("q", ["d"]))
        with pytest.raises(ModelError, match="default instruction"):
            load_prompts(
                qwen_folder,
                recipe=UNKNOWN,
                positions=40960,
                chat_template="{{ query }}|{{ document }}",
                default_instruction="i",
            )

    def test_a_default_one_is_used_where_a_request_brings_none(self, load: Load, qwen_folder: Path) -> None:
        plain = load(SGLANG_TEXT)
        served = load_prompts(
            qwen_folder, recipe=UNKNOWN, positions=40960, chat_template=SGLANG_TEXT, default_instruction="served"
        )
        assert served.takes_instruction
        assert served.build(request("q", ["d"])) == plain.build(request("q", ["d"], "served"))
        assert served.build(request("q", ["d"], "own")) == plain.build(request("q", ["d"], "own"))

    @pytest.mark.parametrize("source", [VLLM_VL, VLLM_TEXT, SGLANG_TEXT, SGLANG_VL])
    def test_both_dialects_take_one(self, source: str, load: Load) -> None:
        loaded = load(source)
        assert loaded.takes_instruction
        assert loaded.build(request("q", ["d"], "i")) != loaded.build(request("q", ["d"]))
