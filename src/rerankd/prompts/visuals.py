"""Where images and videos stand in a prompt: runs of placeholder tokens, one for each visual token.

Source: `replace_image_token` and `replace_video_token` of `Qwen3VLProcessor` in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

from rerankd import work
from rerankd.core import Content, InvalidRequest, PromptGroup, Segment, Text, Visual
from rerankd.prompts.tokenizer import AddedTokens, LoadedTokenizer, well_formed

START, END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"


def spell_visual(visual: Visual) -> str:
    """An image as a run of placeholders; a video as such a run for each step in time, behind the time that it is."""
    if not visual.seconds:
        return START + IMAGE * visual.tokens_per_step + END
    step = START + VIDEO * visual.tokens_per_step + END
    return "".join(f"<{second:.1f} seconds>{step}" for second in visual.seconds)


def spell_seen(content: Content, visuals: Sequence[Visual], added: AddedTokens) -> str:
    """The parts of a content in their order, its texts neutralised, its images and videos spelled."""
    spelled: list[str] = []
    text = ""
    left = iter(visuals)
    for part in content:
        if isinstance(part, Text):
            # Neighbouring texts are neutralised as one, since a special token may stand across their seam.
            text += part.text
        else:
            spelled += [added.neutralise(well_formed(text)), spell_visual(next(left))]
            text = ""
    return "".join([*spelled, added.neutralise(well_formed(text))])


class Placeholders:
    """Finds the placeholders of images and videos among token ids."""

    def __init__(self, tokenizer: LoadedTokenizer) -> None:
        self._pads = {tokenizer.token_id(IMAGE), tokenizer.token_id(VIDEO)}
        self._end = tokenizer.token_id(END)

    def group(
        self,
        prompts: Sequence[list[int]],
        visuals: Sequence[tuple[Visual, ...]],
        fields: Sequence[str],
    ) -> PromptGroup:
        """The prompts with what all of them share laid once; `visuals` are each prompt's, in its order.

        fields: what errors call each prompt

        An image is shared where its pixels are the same in all prompts, and wholly or not at all.
        Raises InvalidRequest for a prompt whose images or videos were cut.
        """
        keys: dict[tuple[int, bytes], int] = {}
        keyed = [self._keyed(ids, own, keys, field) for ids, own, field in zip(prompts, visuals, fields, strict=True)]
        shared = common_prefix(keyed)
        inside = 0
        for key in dict.fromkeys(key for key in (keyed[0] if keyed else []) if key < 0):
            first = keyed[0].index(key)
            if first >= shared:
                break
            if key in keyed[0][shared:]:
                shared = first
                break
            inside += 1
        return PromptGroup(
            prefix=Segment(prompts[0][:shared], visuals=visuals[0][:inside]) if prompts else Segment([]),
            suffixes=tuple(
                Segment(ids[shared:], visuals=own[inside:]) for ids, own in zip(prompts, visuals, strict=True)
            ),
            truncated=(),
        )

    def _keyed(
        self, ids: list[int], visuals: Sequence[Visual], keys: dict[tuple[int, bytes], int], field: str
    ) -> list[int]:
        """`ids` with each placeholder as a negative number that stands for its place in the order and its pixels."""
        owners = [
            -1 - keys.setdefault((order, visual.digest), len(keys))
            for order, visual in enumerate(visuals)
            for _ in range(visual.tokens_per_step * visual.grid[0])
        ]
        places = [place for place, token in enumerate(ids) if token in self._pads]
        if len(places) != len(owners) or ids.count(self._end) != sum(visual.grid[0] for visual in visuals):
            work.refuse(
                InvalidRequest(
                    field,
                    f"the images and videos of its prompt take {len(owners)} tokens, which the limit on tokens would "
                    "cut into; send fewer or smaller ones (max_pixels, max_frames), or raise the limit",
                )
            )
            return ids
        keyed = list(ids)
        for place, owner in zip(places, owners, strict=True):
            keyed[place] = owner
        return keyed


def common_prefix(prompts: Sequence[list[int]]) -> int:
    """How many first tokens all prompts share, at least one less than the shortest has; none of a single one."""
    if len(prompts) < 2:
        return 0
    # All others lie between these two in lexical order, and so share what they share.
    low, high = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b or i == most), most)
