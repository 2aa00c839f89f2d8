"""Chat templates of users: Jinja files written for vLLM or for SGLang."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import thread_time
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rerankd.core import ModelError
from rerankd.models.recipes.template import RenderError

SECONDS = 1.0
"""Processor time that a template may take for one prompt: chat templates take a thousandth of this."""
LARGEST = 10_000_000
"""Items or bits that a product or power in a template may have."""
_STEP = "rerankd_step"
"""The name of the function that a template calls in every round of a loop and in every macro."""


class PartList(list[dict[str, str]]):
    """A text as SGLang's templates read it, which other templates can print as one string."""

    def __init__(self, text: str) -> None:
        super().__init__([{"type": "text", "text": text}])
        self._text = text

    def __str__(self) -> str:
        return self._text


@dataclass(frozen=True, slots=True)
class JinjaTemplate:
    """A user's template. One context serves both dialects:

    - vLLM: `messages` with the roles query, document and, where there is an instruction, system; `instruction`
    - SGLang: `messages[0]` (query) and `messages[1]` (document); `query` and `document` as lists of parts;
      `instruct`

    The instruction's names are undefined where there is none, so that a template's own default applies. Blocks are
    trimmed and the file's last newline is dropped, as transformers does for vLLM; SGLang's own templates read the
    same either way.
    """

    template: jinja2.Template
    special_tokens: dict[str, str]
    takes_instruction: bool
    verbatim: bool = False
    default_instruction: None = None
    empty: str = ""

    @classmethod
    def load(cls, source: str | Path, special_tokens: dict[str, str]) -> JinjaTemplate:
        """Read a template from a file, or from text. Raises ModelError if it cannot be used.

        special_tokens: `bos_token`, `eos_token`, ... for templates that name them
        """
        try:
            template = environment().from_string(_read(source))
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"The chat template has an error in line {error.lineno}: {error.message}.") from error
        loaded = cls(template, special_tokens, takes_instruction=True)
        query, document = "first probe", "second probe"
        try:
            plain, instructed = (loaded.render(instruction, query, document) for instruction in (None, "third probe"))
        except RenderError as error:
            raise ModelError(f"The chat template cannot be used: {error}.") from error
        for name, text in (("query", query), ("document", document)):
            if text not in plain:
                raise ModelError(
                    f"The chat template leaves the {name} out. It may read it as the content of the message with the "
                    f"role {name} (vLLM), as messages[{int(name == 'document')}].content or as {name} (SGLang)."
                )
        return cls(template, special_tokens, takes_instruction=plain != instructed)

    def render(self, instruction: str | None, query: str, document: str) -> str:
        """The whole prompt. Raises RenderError if the template fails on query and document, or takes too long."""
        messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
        context: dict[str, Any] = {"query": PartList(query), "document": PartList(document), "messages": messages}
        context[_STEP] = _watch()
        if instruction:
            messages.append({"role": "system", "content": instruction})
            context |= {"instruction": instruction, "instruct": instruction}
        try:
            return self.template.render(self.special_tokens | context)
        except Exception as error:  # An expression in a template can raise anything.
            raise RenderError(f"{type(error).__name__}: {error}") from error


def _read(source: str | Path) -> str:
    if isinstance(source, str) and any(character in source for character in "{}\n"):
        return source
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"The chat template {source} cannot be read: {error}.") from error


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which templates also end: they call a function from their loops and macros.

    Only loops and macros can run for ever. All else takes time by the length of its input, but for products and powers,
    which are bounded.
    """

    intercepted_binops = frozenset(("*", "**"))

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        repeated: list[nodes.For | nodes.Macro] = [*source.find_all(nodes.For), *source.find_all(nodes.Macro)]
        for node in repeated:
            step = nodes.Call(nodes.Name(_STEP, "load"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(step, node.test).set_lineno(node.lineno)
        return super()._generate(source, *args, **options)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left * right` or `left ** right`; SecurityError where that is huge."""
        size = _size(left) * right if operator == "**" else _product(left, right)
        if isinstance(size, (int, float)) and size > LARGEST:
            raise SecurityError(f"{operator} makes too much here")
        return super().call_binop(context, operator, left, right)


def _size(value: Any) -> int:
    """Items of a sequence, bits of a number."""
    return value.bit_length() if isinstance(value, int) else len(value) if hasattr(value, "__len__") else 0


def _product(left: Any, right: Any) -> int:
    """The size of a product."""
    if isinstance(left, int) and isinstance(right, int):
        return _size(left) + _size(right)
    return max(_size(a) * b for a, b in ((left, right), (right, left), (0, 0)) if isinstance(b, int))


def _watch() -> Callable[[], bool]:
    """A function that raises once this thread has worked for SECONDS more."""
    end = thread_time() + SECONDS

    def step() -> bool:
        if thread_time() > end:
            raise jinja2.TemplateError(f"its loops or macros go on for more than {SECONDS:g} s; bound them")
        return True

    return step


def environment() -> jinja2.Environment:
    """The environment that transformers, and so vLLM, renders chat templates in."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    del environment.globals["lipsum"]  # Text of any length.
    environment.globals["raise_exception"] = _raise_exception
    environment.filters["tojson"] = _to_json
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own escapes the characters of HTML, which a prompt must not.
    return json.dumps(value, ensure_ascii=False, indent=indent)
