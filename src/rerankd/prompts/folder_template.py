"""The prompt that a sentence-transformers folder's own chat template writes.

Reference: `Transformer` and `InputFormatter` in sentence-transformers' `base`, which give a pair to a chat template as
messages of the roles query and document, behind one of the role system where there is a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from rerankd.core import ModelError
from rerankd.models.checkpoint.chat_template import chat_template
from rerankd.models.checkpoint.sentence_transformers import MODULES, section, transformer_settings
from rerankd.models.recipes.template import PieceTemplate, RenderError, Template
from rerankd.prompts.jinja import environment
from rerankd.prompts.visuals import QWEN

PAIRS = [("a query", "a document"), ("Größe?\n ", " two\n\nlines "), ("{{ x }}", "<Document>: y</s>")]
INSTRUCTIONS = [None, "Find what contradicts the query"]


@dataclass(frozen=True, slots=True)
class FolderTemplate:
    """A folder's template, rendered as sentence-transformers does."""

    renderer: _PairRenderer
    structured: bool
    takes_instruction: bool
    verbatim: bool = False
    default_instruction: None = None
    empty: str = ""

    def render(self, instruction: str | None, query: str, document: str) -> str:
        """See `Template.render`."""
        try:
            return self.renderer.render(instruction, query, document, self.structured)
        except Exception as error:  # an expression in a template can raise anything
            raise RenderError(f"{type(error).__name__}: {error}") from error


def folder_template(
    folder: Path, known: Template | None, special_tokens: dict[str, str], prompt: str | None, supports_vision: bool
) -> Template | None:
    """The template of the prompts that sentence-transformers writes for a folder with modules: `known` where it writes
    the same, else the folder's own.

    known: the template of the folder's recipe; None where there is none. It is used too where the folder's template
        leaves texts out, as a chat's template does: sentence-transformers makes no prompt of a pair with such a
        template
    prompt: the default prompt of the folder
    supports_vision: whether the prompts may have images

    Raises ModelError for prompts that cannot be written, and for a vision model's template that differs from `known`.
    """
    path, settings = transformer_settings(folder)
    forms = section(settings, "modality_config", path)
    text, source = chat_template(folder)
    if text is None or (forms and "message" not in forms):
        raise ModelError(
            f"{folder / MODULES}: sentence-transformers scores this folder's pairs without a prompt, which is not "
            "supported for a decoder; give the prompt that it was trained with as the chat template "
            "(--chat-template), or take modules.json away."
        )
    structured = section(forms, "message", path).get("format") == "structured"
    try:
        renderer = _PairRenderer(
            text, special_tokens, section(section(settings, "processing_kwargs", path), "chat_template", path)
        )
        if not renderer.carries_pairs(structured):
            return known
        instructions = (*INSTRUCTIONS, *([prompt] if prompt else []))
        # sentence-transformers tokenises a prompt whole, and not in pieces.
        whole = None if isinstance(known, PieceTemplate) else known
        same = whole is not None and all(
            renderer.render(instruction, query, document, structured) == whole.render(instruction, query, document)
            for instruction in instructions
            for query, document in PAIRS
        )
        if supports_vision and structured and known is not None:
            image = [{"type": "image", "image": ""}, {"type": "text", "text": "d"}]
            same = same and renderer.render_parts(None, "q", image) == known.render(
                None, "q", f"{QWEN.start}{QWEN.image}{QWEN.end}d"
            )
        plain, instructed = (renderer.render(instruction, "q", "d", structured) for instruction in INSTRUCTIONS)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ModelError(
            f"{source} cannot be rendered: {type(error).__name__}; give a template that can be with --chat-template."
        ) from None
    if same:
        return known
    if supports_vision:
        raise ModelError(
            f"{source} writes another prompt for sentence-transformers than the one built in for this model, so that "
            "the scores would differ; give it as the chat template (--chat-template) to have its prompt."
        )
    return FolderTemplate(renderer, structured, takes_instruction=plain != instructed)


def expect_no_other_prompt(folder: Path, known: Template, special_tokens: dict[str, str]) -> None:
    """ModelError where the chat template of a folder without modules writes another prompt for pairs than `known`.

    Such a template has the roles of queries and documents, and its model was trained with its prompt. The template of
    a chat, which ignores these roles or takes any role, says nothing of pairs.
    """
    text, source = chat_template(folder)
    if text is None:
        return
    try:
        # The file that would choose between these two is missing, as the list of modules is.
        templates = [_PairRenderer(text, special_tokens, {"add_generation_prompt": adds}) for adds in (False, True)]
    except jinja2.TemplateError:  # a template that nothing renders
        return
    forms = [
        (template, structured)
        for template in templates
        for structured in (False, True)
        if template.carries_pairs(structured)
    ]
    if (
        templates[0].takes_any_role()
        or not forms
        or any(template.writes(known, structured) for template, structured in forms)
    ):
        return
    raise ModelError(
        f"{source} writes another prompt for a query and a document than the one that is built in for this model, so "
        "that the scores would differ. Give it as the chat template (--chat-template) to have its prompt, or name the "
        "recipe (--recipe) to have the built-in one."
    )


class _PairRenderer:
    """The messages of a pair, rendered by a template."""

    def __init__(self, text: str, special_tokens: dict[str, str], settings: dict[str, Any]) -> None:
        self._template = environment().from_string(text)
        arguments = {name: value for name, value in settings.items() if name != "restore_suffix"}
        self._context = special_tokens | {"tools": None, "documents": None, "add_generation_prompt": False} | arguments

    def carries_pairs(self, structured: bool) -> bool:
        """Whether a query and a document reach the prompt; a chat's template may refuse their roles or pass them by."""
        try:
            prompt = self.render(None, "first probe", "second probe", structured)
        except Exception:  # a template may raise anything on messages that it was not written for
            return False
        return "first probe" in prompt and "second probe" in prompt

    def takes_any_role(self) -> bool:
        """Whether the template writes messages of any role, as a plain chat's does."""
        try:
            return "first probe" in self._render_messages([{"role": "first", "content": "first probe"}])
        except Exception:  # see `carries_pairs`
            return False

    def writes(self, known: Template, structured: bool) -> bool:
        """Whether texts without white space around them have the prompts of `known`, with an instruction where
        the template takes one."""
        try:
            plain, instructed = (self.render(instruction, "q", "d", structured) for instruction in INSTRUCTIONS)
            instruction = None if plain == instructed else INSTRUCTIONS[1]
            return all(
                self.render(instruction, *pair, structured) == known.render(instruction, *pair)
                for pair in ((query.strip(), document.strip()) for query, document in PAIRS)
            )
        except Exception:  # see `carries_pairs`
            return False

    def render(self, instruction: str | None, query: str, document: str, structured: bool) -> str:
        if structured:
            return self.render_parts(instruction, query, [{"type": "text", "text": document}])
        return self._render(instruction, query, document)

    def render_parts(self, instruction: str | None, query: str, document: Sequence[dict[str, str]]) -> str:
        system = None if instruction is None else [{"type": "text", "text": instruction}]
        return self._render(system, [{"type": "text", "text": query}], document)

    def _render(self, system: Any, query: Any, document: Any) -> str:
        contents = {"system": system, "query": query, "document": document}
        return self._render_messages(
            [{"role": role, "content": content} for role, content in contents.items() if content is not None]
        )

    def _render_messages(self, messages: Sequence[dict[str, Any]]) -> str:
        return self._template.render(self._context | {"messages": messages})
