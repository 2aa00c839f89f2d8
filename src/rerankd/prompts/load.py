"""The prompt builder of a checkpoint, and the limit on its prompts."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rerankd.core import (
    MAX_CHARACTERS,
    Embeddings,
    InvalidRequest,
    Logits,
    ModelError,
    PromptBuilder,
    PromptGroup,
    RerankRequest,
    Visuals,
)
from rerankd.models.checkpoint.late_interaction import read_late_interaction
from rerankd.models.checkpoint.sentence_transformers import (
    MODULES,
    Kind,
    declared_length,
    read_settings,
    settings_apply,
    transformer_settings,
)
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.recipes.template import PieceTemplate, RenderError, Template
from rerankd.prompts.bi_encoder import BiEncoderPrompts, TextFormat, with_instruction
from rerankd.prompts.cross_encoder import CrossEncoderPrompts
from rerankd.prompts.decoder import DecoderPrompts
from rerankd.prompts.folder_template import expect_no_other_prompt, folder_template
from rerankd.prompts.jinja import JinjaTemplate
from rerankd.prompts.late_interaction import text_formats
from rerankd.prompts.limits import within_characters
from rerankd.prompts.listwise import ListwisePrompts
from rerankd.prompts.outputs import EmbeddingPrompts, LabelPrompts
from rerankd.prompts.pieces import PiecePrompts
from rerankd.prompts.sharing import alike
from rerankd.prompts.tokenizer import LoadedTokenizer, load_tokenizer, lower_case
from rerankd.prompts.verbatim import VerbatimPrompts
from rerankd.prompts.visuals import QWEN, Placeholders

log = logging.getLogger("rerankd")

SHOWN = 24
"""The number of characters to show on each side of a difference."""


@dataclass(frozen=True, slots=True)
class LoadedPrompts:
    """A checkpoint's prompt builder and tokenizer, with their limits.

    max_tokens: the most tokens of a prompt (of a bi-encoder: of a text)
    max_characters: the most characters of a text before it is tokenised
    template: the template of a decoder's prompts; None for an encoder
    default_instruction: for requests without one; None if the template has its own, or no place for one
    outputs: prompts of requests for outputs, by kind; empty for a model that gives only scores
    """

    builder: PromptBuilder
    max_tokens: int
    max_characters: int
    tokenizer: LoadedTokenizer
    template: Template | None = None
    default_instruction: str | None = None
    outputs: Mapping[type, PromptBuilder] = field(default_factory=dict)

    @property
    def takes_instruction(self) -> bool:
        """Whether an instruction changes the prompt."""
        return self.builder.takes_instruction

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The request's prompts; see `PromptBuilder.build`. InvalidRequest for a text of too many characters, too."""
        builder = self.builder if request.outputs is None else self.outputs.get(type(request.outputs))
        if builder is None:
            raise _gives_none(request)
        return builder.build(within_characters(request, self.max_characters), visuals)

    def verbatim(self, vocabulary: int, supports_vision: bool) -> VerbatimPrompts:
        """The prompts that a client writes whole, for a model of so many token ids."""
        visual = (
            {self.token_id(token) for token in (QWEN.image, QWEN.video) if token}
            if supports_vision
            else frozenset[int]()
        )
        return VerbatimPrompts(self.tokenizer, self.max_tokens, self.max_characters, vocabulary, visual)

    def token_id(self, token: str) -> int:
        """The id of a string that is one token of the vocabulary. Raises ModelError for any other string."""
        return self.tokenizer.token_id(token)


def _gives_none(request: RerankRequest) -> InvalidRequest:
    """The error for outputs that a model does not give."""
    if isinstance(request.outputs, Embeddings):
        return InvalidRequest("model", "is no embedding model; serve a bi-encoder, or use a rerank route")
    return InvalidRequest("model", "is no classifier of texts; serve a sequence classifier, or use a rerank route")


def load_prompts(
    folder: Path,
    *,
    recipe: Recipe,
    positions: int,
    max_model_len: int | None = None,
    max_characters: int = MAX_CHARACTERS,
    chat_template: str | Path | None = None,
    default_instruction: str | None = None,
    tokenizer: LoadedTokenizer | None = None,
    named: bool = False,
) -> LoadedPrompts:
    """The prompt builder of the checkpoint in `folder`.

    recipe: has the template of the prompts
    positions: the number of the model's positions
    max_model_len: the most tokens of a prompt. None for the limit of the checkpoint (sentence-transformers' settings,
        else the tokenizer's `model_max_length` and the limit of the recipe's authors), at most `positions`. A number
        may exceed these limits, as `max_seq_length` does in sentence-transformers, but not `positions`
    max_characters: the most characters of a text, before it is cut and tokenised
    chat_template: a Jinja file or Jinja text in place of the recipe's template
    default_instruction: for requests without one; None for the template's own
    tokenizer: a loaded tokenizer; None to load it from the folder
    named: whether the user names the recipe; its template is then used, whatever a chat template in the folder writes

    A chat template that writes another prompt than the built-in one is used, and a warning shows the first difference.

    Raises ModelError for files that are missing or unreadable, a template that cannot be used, a limit out of
    range, and a template or instruction for a model that takes none.
    """
    if not recipe.answers:
        if chat_template is not None:
            raise _no_use("chat template", recipe)
        if recipe.listwise is not None:
            tokenizer = tokenizer or load_tokenizer(folder)
            max_tokens = _max_tokens(max_model_len, tokenizer.max_length, positions)
            listwise = ListwisePrompts(tokenizer, recipe.listwise, max_tokens, default_instruction)
            return LoadedPrompts(
                listwise, max_tokens, max_characters, tokenizer, default_instruction=default_instruction
            )
        if recipe.template is None:
            return _encoder(folder, recipe, positions, max_model_len, max_characters, default_instruction, tokenizer)
        if default_instruction is not None and not recipe.template.takes_instruction:
            raise _no_use("default instruction", recipe)
    tokenizer = tokenizer or load_tokenizer(folder)
    settings = read_settings(folder, "CrossEncoder")
    declared = _declared_length(folder, folder, "CrossEncoder")
    chained = (folder / MODULES).is_file() and not recipe.processor
    limits = (tokenizer.max_length, None if chained else recipe.max_tokens)
    if recipe.processor and recipe.max_tokens is not None:
        # The processor's limit counts in place of the tokenizer's, which may be lower.
        declared, limits = None, (recipe.max_tokens, None)
    max_tokens = _max_tokens(max_model_len, declared or min(filter(None, limits), default=None), positions)
    is_limited = max_model_len is not None or declared is not None
    template = recipe.template
    if chat_template is not None:
        template = JinjaTemplate.load(chat_template, tokenizer.special_tokens)
        if recipe.template is not None:
            _warn_of_difference(tokenizer, template, recipe.template, default_instruction)
    elif chained:
        prompt = settings.default_prompt
        template = folder_template(folder, recipe.template, tokenizer.special_tokens, prompt, recipe.supports_vision)
        default_instruction = default_instruction or prompt
    elif recipe.answers and recipe.template is not None and not named:
        expect_no_other_prompt(folder, recipe.template, tokenizer.special_tokens)
    if template is None:
        raise ModelError(f"There is no built-in prompt for {folder}; give one as the chat template (--chat-template).")
    builder: PromptBuilder
    if isinstance(template, PieceTemplate):
        pieces = PiecePrompts(tokenizer, template, max_tokens, default_instruction, is_limited, apart=recipe.compresses)
        builder, max_tokens = pieces, pieces.max_tokens
    else:
        builder = DecoderPrompts(
            tokenizer,
            template,
            max_tokens,
            default_instruction,
            Placeholders(tokenizer, recipe.marks) if recipe.supports_vision else None,
            shares=recipe.family == "decoder",
            end=[] if recipe.score_token is None else [recipe.score_token],
            document_tokens=None if is_limited else recipe.document_tokens,
            images=recipe.images,
            marks=recipe.marks,
        )
    if default_instruction is not None and not builder.takes_instruction:
        raise ModelError("A default instruction was given, but the chat template has no place for one; leave it out.")
    default_instruction = default_instruction or template.default_instruction
    return LoadedPrompts(builder, max_tokens, max_characters, tokenizer, template, default_instruction)


def _warn_of_difference(
    tokenizer: LoadedTokenizer, chat: Template, builtin: Template, default_instruction: str | None
) -> None:
    """Log the first difference of a chat template's prompt from the authors' prompt, if the token ids differ."""
    for instruction in (default_instruction, "An instruction."):
        try:
            texts = [template.render(instruction, "A query?", "A document.") for template in (chat, builtin)]
        except RenderError as error:
            raise ModelError(f"The chat template cannot be used: {error}.") from error
        ids = tokenizer.ids(texts)
        if ids[0] == ids[1]:
            continue
        place = alike(*texts)
        chat_text, authors_text = (repr(text[place : place + SHOWN]) if text[place:] else "nothing" for text in texts)
        log.warning(
            "The chat template writes another prompt than the one of the model's authors, so that scores differ. %s an "
            "instruction, behind %r it has %s where theirs has %s. The chat template is used; leave it out for theirs.",
            "With" if instruction else "Without",
            texts[0][max(place - SHOWN, 0) : place],
            chat_text,
            authors_text,
        )
        return


def _no_use(option: str, recipe: Recipe) -> ModelError:
    return ModelError(f"A {option} was given, but a {recipe.family} has no use for one; leave it out.")


def _encoder(
    folder: Path,
    recipe: Recipe,
    positions: int,
    max_model_len: int | None,
    max_characters: int,
    default_instruction: str | None,
    tokenizer: LoadedTokenizer | None,
) -> LoadedPrompts:
    """The prompts of a model that reads texts without a template."""
    late = read_late_interaction(folder) if recipe.family == "late-interaction" else None
    inner = folder if recipe.pairs or not (folder / MODULES).is_file() else _encoder_folder(folder)
    kind: Kind = "CrossEncoder" if recipe.pairs else "SentenceTransformer" if late is None else "MultiVectorEncoder"
    tokenizer = tokenizer or load_tokenizer(inner)
    if settings_apply(folder, kind):
        path, inner_settings = transformer_settings(inner)
        if inner_settings.get("do_lower_case") not in (None, True, False):
            raise ModelError(
                f"{path}: `do_lower_case` must be true or false, not {inner_settings['do_lower_case']!r:.60}."
            )
        if inner_settings.get("do_lower_case"):
            lower_case(tokenizer.tokenizer)
    declared = _declared_length(folder, inner, kind) or tokenizer.max_length
    max_tokens = _max_tokens(max_model_len, declared if late is None else late.document_length or declared, positions)
    settings = read_settings(folder, kind)
    if recipe.pairs:
        if default_instruction is not None:
            raise _no_use("default instruction", recipe)
        pairs = CrossEncoderPrompts(tokenizer, max_tokens, settings.default_prompt or "")
        labels: dict[type, PromptBuilder] = {Logits: LabelPrompts(tokenizer, max_tokens)}
        return LoadedPrompts(pairs, max_tokens, max_characters, tokenizer, outputs=labels)
    if late is not None:
        if default_instruction is not None:
            raise _no_use("default instruction", recipe)
        tokens = BiEncoderPrompts(tokenizer, max_tokens, *text_formats(late, tokenizer))
        return LoadedPrompts(tokens, max_tokens, max_characters, tokenizer)
    # sentence-transformers' encode_query and encode_document read these two names alone: it fills in both as
    # empty when they are missing, so that neither `passage` nor the default prompt is ever reached.
    query, document = (settings.prompts.get(name) or "" for name in ("query", "document"))
    if not query and not document:
        query, document = recipe.query_prompt, recipe.document_prompt
    if default_instruction is not None:
        query = with_instruction(query, default_instruction) or query
    prompts = {**settings.prompts, "query": query, "document": document}
    texts = BiEncoderPrompts(tokenizer, max_tokens, TextFormat(query), TextFormat(document))
    if default_instruction is not None and not texts.takes_instruction:
        raise _no_use("default instruction", recipe)
    return LoadedPrompts(
        texts,
        max_tokens,
        max_characters,
        tokenizer,
        default_instruction=texts.default_instruction,
        outputs={Embeddings: EmbeddingPrompts(texts, prompts, settings.default_prompt or "")},
    )


def _declared_length(folder: Path, inner: Path, kind: Kind) -> int | None:
    return declared_length(inner) if settings_apply(folder, kind) else None


def _encoder_folder(folder: Path) -> Path:
    """The folder of the first module, the encoder with its tokenizer: in most checkpoints the folder itself."""
    path = folder / "modules.json"
    try:
        first: Path = folder / json.loads(path.read_text(encoding="utf-8"))[0]["path"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read as sentence-transformers' list of modules: {type(error).__name__}: {error}."
        ) from error
    return first


def _max_tokens(requested: int | None, declared: int | None, positions: int) -> int:
    if requested is None:
        return positions if declared is None else min(declared, positions)
    if not 1 <= requested <= positions:
        raise ModelError(
            f"A maximum length of {requested} tokens was asked for, but the model has positions for {positions}; "
            f"choose one from 1 to {positions}, or none."
        )
    return requested
