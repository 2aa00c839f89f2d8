"""Where images and videos stand in a prompt: runs of placeholder tokens, one for each visual token.

Source: `replace_image_token` and `replace_video_token` of `Qwen3VLProcessor` in transformers.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

from rerankd import work
from rerankd.core import Content, InvalidRequest, PromptGroup, Segment, Side, Text, Tokens, Visual
from rerankd.models.recipes.template import Marks
from rerankd.prompts.added_tokens import AddedTokens
from rerankd.prompts.sharing import SharedIds
from rerankd.prompts.tokenizer import LoadedTokenizer, well_formed

QWEN = Marks()


def spell_visual(visual: Visual, marks: Marks) -> str:
    """An image as a run of placeholders; a video as such a run for each step in time, behind the step's time."""
    if not visual.seconds:
        return marks.start + marks.image * (visual.grid[0] * visual.tokens_per_step) + marks.end
    assert marks.video is not None, "the model is shown no videos"
    step = marks.start + marks.video * visual.tokens_per_step + marks.end
    return "".join(f"<{second:.1f} seconds>{step}" for second in visual.seconds)


def spell_seen(content: Content, visuals: Sequence[Visual], added: AddedTokens, marks: Marks = QWEN) -> str:
    """The parts of a content in their order, its texts escaped, its images and videos spelled."""
    spelled: list[str] = []
    text = ""
    remaining = iter(visuals)
    for part in content:
        if isinstance(part, Text):
            # Neighbouring texts are escaped as one, since a special token may stand across their seam.
            text += part.text
        elif not isinstance(part, Tokens):  # which only prompts with labels hold
            spelled += [added.escape(well_formed(text)), spell_visual(next(remaining), marks)]
            text = ""
    return "".join([*spelled, added.escape(well_formed(text))])


class SeenTexts:
    """Shortens texts, and keeps the images and videos that are spelled in them."""

    def __init__(self, tokenizer: LoadedTokenizer, marks: Marks = QWEN) -> None:
        self._tokenizer = tokenizer
        start, end, *pads = (re.escape(mark) for mark in (marks.start, marks.end, marks.image, marks.video) if mark)
        # An image, or a step of a video with its time. Nothing in escaped text looks like one.
        self._spelled = re.compile(rf"((?:<\d+\.\d seconds>)?{start}(?:{'|'.join(pads)})*{end})")

    def reach(self, text: str, tokens: int | None, side: Side) -> str:
        """`LoadedTokenizer.reach` for each text between images and videos."""
        return "".join(
            piece if place % 2 else self._tokenizer.reach(piece, tokens, side)
            for place, piece in enumerate(self._spelled.split(text))
        )

    def cut(self, text: str, tokens: int, side: Side) -> str:
        """`LoadedTokenizer.cut`; images and videos count, and of the texts around them the first go last.

        Where images and videos alone have more than `tokens`, so has the result.
        """
        pieces = self._spelled.split(text)
        if len(pieces) == 1:
            return self._tokenizer.cut(text, tokens, side)
        lengths = [len(ids) for ids in self._tokenizer.ids(pieces)]
        budget = tokens - sum(lengths[1::2])
        places = range(0, len(pieces), 2)
        for place in places if side == "right" else reversed(places):
            if lengths[place] > budget:
                pieces[place] = self._tokenizer.cut(pieces[place], budget, side)
                budget = 0
            else:
                budget -= lengths[place]
        return "".join(pieces)


class Placeholders:
    """Finds the placeholders of images and videos among token ids."""

    def __init__(self, tokenizer: LoadedTokenizer, marks: Marks = QWEN) -> None:
        self._pads = {tokenizer.token_id(mark) for mark in (marks.image, marks.video) if mark}
        self._end = tokenizer.token_id(marks.end)

    def group(self, ids: SharedIds, visuals: Sequence[tuple[Visual, ...]], fields: Sequence[str]) -> PromptGroup:
        """The prompts with the shared prefix laid once; `visuals` are each prompt's, in its order.

        fields: the name of each prompt in errors

        An image is shared where its pixels are the same in all prompts, and wholly or not at all.
        Raises InvalidRequest for a prompt in which a template writes images or videos otherwise than once each.
        """
        keyed = self._keyed(ids, visuals, fields)
        shared = keyed.common()
        inside = 0
        first = keyed.prompt(0) if fields else []
        for key in dict.fromkeys(key for key in first if key < 0):
            start = first.index(key)
            if start >= shared:
                break
            if key in first[shared:]:
                shared = start
                break
            inside += 1
        return PromptGroup(
            prefix=Segment(ids.prompt(0)[:shared], visuals=visuals[0][:inside]) if fields else Segment([]),
            suffixes=tuple(
                Segment(suffix, visuals=prompt_visuals[inside:])
                for suffix, prompt_visuals in zip(ids.behind(shared), visuals, strict=True)
            ),
            truncated=(),
        )

    def apart(self, ids: SharedIds, visuals: Sequence[tuple[Visual, ...]], fields: Sequence[str]) -> PromptGroup:
        """The prompts each by itself. See `group`."""
        self._keyed(ids, visuals, fields)
        segments = (
            Segment(prompt, visuals=prompt_visuals)
            for prompt, prompt_visuals in zip(ids.behind(0), visuals, strict=True)
        )
        return PromptGroup(Segment([]), tuple(segments), truncated=())

    def _keyed(self, ids: SharedIds, visuals: Sequence[tuple[Visual, ...]], fields: Sequence[str]) -> SharedIds:
        """`ids` with each placeholder as a negative number that stands for its place in the order and its pixels."""
        keys: dict[tuple[int, bytes], int] = {}
        pads = [place for place, token in enumerate(ids.base) if token in self._pads]
        ends = [place for place, token in enumerate(ids.base) if token == self._end]
        base = list(ids.base)
        keyed = SharedIds(base, ids.kept, [])
        for kept, rest, prompt_visuals, field in zip(ids.kept, ids.rest, visuals, fields, strict=True):
            owners = [
                -1 - keys.setdefault((order, visual.digest), len(keys))
                for order, visual in enumerate(prompt_visuals)
                for _ in range(visual.tokens_per_step * visual.grid[0])
            ]
            rest_pads = [place for place, token in enumerate(rest) if token in self._pads]
            before = bisect_left(pads, kept)
            steps = bisect_left(ends, kept) + rest.count(self._end)
            if before + len(rest_pads) != len(owners) or steps != sum(
                len(visual.seconds) or 1 for visual in prompt_visuals
            ):
                work.refuse(InvalidRequest(field, "the chat template does not write its images and videos once each"))
                keyed.rest.append(list(rest))
                continue
            # All prompts begin with the same placeholders, if with any: with the query's.
            for place, owner in zip(pads[:before], owners[:before], strict=True):
                base[place] = owner
            keyed.rest.append(list(rest))
            for place, owner in zip(rest_pads, owners[before:], strict=True):
                keyed.rest[-1][place] = owner
        return keyed
