"""Whether a sentence-transformers folder's own chat template writes the prompt that is built in for its model.

Reference: `Transformer` and `InputFormatter` in sentence-transformers' `base`, which give a pair to a chat template as
messages of the roles query and document, behind one of the role system where there is a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from rerankd.core import ModelError
from rerankd.models.recipes.template import Template
from rerankd.prompts.jinja import environment
from rerankd.prompts.tokenizer import read_json
from rerankd.prompts.visuals import END, IMAGE, START

PAIRS = [("a query", "a document"), ("Größe?\n ", " two\n\nlines "), ("{{ x }}", "<Document>: y</s>")]
INSTRUCTIONS = [None, "Find what contradicts the query"]


def folder_instruction(folder: Path, built_in: Template, special_tokens: dict[str, str], sees: bool) -> str | None:
    """The instruction that a sentence-transformers folder sets for requests without one; None for the template's.

    Raises ModelError where sentence-transformers would write another prompt than `built_in`, and so score otherwise. A
    template that leaves texts out is one for chats: it makes no prompt of a pair there either.

    sees: whether the prompts may have images
    """
    if not (folder / "modules.json").is_file():
        return None
    settings = read_json(folder / "sentence_bert_config.json")
    forms = _section(settings, "modality_config", folder)
    text, source = _chat_template(folder)
    if text is None or (forms and "message" not in forms):
        raise ModelError(
            f"{folder / 'modules.json'}: sentence-transformers scores this folder's pairs without a prompt, other than "
            "the one built in for this model; give the prompt that it was trained with as the chat template "
            "(--chat-template), or take modules.json away."
        )
    structured = _section(forms, "message", folder).get("format") == "structured"
    prompt = _default_prompt(folder)
    try:
        own = _Own(
            text, special_tokens, _section(_section(settings, "processing_kwargs", folder), "chat_template", folder)
        )
        if not own.carries_pairs(structured):
            return prompt
        same = all(
            own.render(instruction, query, document, structured) == built_in.render(instruction, query, document)
            for instruction in (*INSTRUCTIONS, *([prompt] if prompt else []))
            for query, document in PAIRS
        )
        if sees and structured:
            image = [{"type": "image", "image": ""}, {"type": "text", "text": "d"}]
            same = same and own.render_parts(None, "q", image) == built_in.render(None, "q", f"{START}{IMAGE}{END}d")
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ModelError(
            f"{source} cannot be rendered: {type(error).__name__}; give a template that can be with --chat-template."
        ) from None
    if not same:
        raise ModelError(
            f"{source} writes another prompt for sentence-transformers than the one built in for this model, so that "
            "the scores would differ; give it as the chat template (--chat-template) to have its prompt."
        )
    return prompt


class _Own:
    """A folder's template, rendered as sentence-transformers does."""

    def __init__(self, text: str, special_tokens: dict[str, str], settings: dict[str, Any]) -> None:
        self._template = environment().from_string(text)
        known = {name: value for name, value in settings.items() if name != "restore_suffix"}
        self._context = special_tokens | {"tools": None, "documents": None, "add_generation_prompt": False} | known

    def carries_pairs(self, structured: bool) -> bool:
        """Whether a query and a document reach the prompt; a chat's template may refuse their roles or pass them by."""
        try:
            prompt = self.render(None, "first probe", "second probe", structured)
        except Exception:  # what a template raises on messages that it was not written for
            return False
        return "first probe" in prompt and "second probe" in prompt

    def render(self, instruction: str | None, query: str, document: str, structured: bool) -> str:
        if structured:
            return self.render_parts(instruction, query, [{"type": "text", "text": document}])
        return self._render(instruction, query, document)

    def render_parts(self, instruction: str | None, query: str, document: Sequence[dict[str, str]]) -> str:
        system = None if instruction is None else [{"type": "text", "text": instruction}]
        return self._render(system, [{"type": "text", "text": query}], document)

    def _render(self, system: Any, query: Any, document: Any) -> str:
        contents = {"system": system, "query": query, "document": document}
        messages = [{"role": role, "content": content} for role, content in contents.items() if content is not None]
        return self._template.render(self._context | {"messages": messages})


def _chat_template(folder: Path) -> tuple[str | None, Path]:
    """The text of the folder's template, and the file that it is from; None where it has none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), path
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}.") from None
    path = folder / "tokenizer_config.json"
    found = read_json(path).get("chat_template")
    if isinstance(found, list):
        named = {str(one.get("name")): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None, path


def _default_prompt(folder: Path) -> str | None:
    path = folder / "config_sentence_transformers.json"
    settings = read_json(path)
    name = settings.get("default_prompt_name")
    if name is None:
        return None
    prompt = _section(settings, "prompts", folder).get(name) if isinstance(name, str) else None
    if not isinstance(prompt, str):
        raise ModelError(f"{path}: `default_prompt_name` must be one of `prompts`, each of which is a string.")
    return prompt or None


def _section(settings: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    value = settings.get(name)
    if value is not None and not isinstance(value, dict):
        raise ModelError(f"`{name}` in the sentence-transformers configuration of {folder} must be an object.")
    return value or {}
