"""Varied texts, the same on every run: one word to 300, several scripts, emoji, odd spacing."""

from __future__ import annotations

import re
from random import Random

WORDS = re.findall(
    r"\w+",
    """
time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work government number night point home water room
mother area money story fact month lot right study book eye job word business issue side kind head house
service friend father power hour game line end member law car city community name president team minute idea
kid body information back parent face others level office door health person art war history party result
change morning reason research girl guy moment air teacher force education foot boy age policy process music
market sense nation plan college interest death experience effect use class control care field development
role effort rate heart drug show leader light voice wife police mind price report decision view relation
town road arm difference value building action season society tax director position player record paper
space ground form event official matter center couple site project activity star table need court oil
situation cost industry figure street image phone data picture practice piece land product doctor wall
worker news test movie north love the of and to a in is it that was for on are as with his they at be this
from have or by
""",
)

SENTENCES = (
    "What is the capital of China?",
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects and is "
    "responsible for the movement of planets around the sun.",
    "法国首都是哪里？",
    "法国的首都是巴黎。它位于塞纳河畔，是欧洲重要的政治、经济和文化中心。",
    "東京タワーの高さは333メートルです。",
    "서울은 대한민국의 수도이다.",
    "ما هي عاصمة فرنسا؟ باريس هي العاصمة وأكبر المدن.",
    "שלום עולם, מה שלומך היום?",
    "Ünïcödé çafé naïve – “quotes” … and a ﬁgure of ½ × ²",
    "👩‍👩‍👧‍👦🏳️‍🌈 party 🎉🎉 at 7 pm 🕖!",
    "def add(a: int, b: int) -> int:\n    return a + b\n",
    "  leading and trailing spaces  ",
    "tabs\tand\r\nline ends\n\n\nblank lines",
    "a",
    "12345 67,890.12 -3e-7 0xFF",
    "e\u0301 (decomposed) and \u00e9 (composed)",
)


def words(count: int, seed: int) -> str:
    """`count` English words, some with punctuation, in an order that `seed` decides."""
    random = Random(seed)
    chosen = [random.choice(WORDS) + random.choice(("", "", "", "", ",", ".")) for _ in range(count)]
    return " ".join(chosen)


QUERIES: tuple[str, ...] = (
    *SENTENCES[::3],
    *(words(count, seed) for seed, count in enumerate((1, 2, 4, 7, 12, 20, 40, 80))),
)
DOCUMENTS: tuple[str, ...] = (
    *SENTENCES,
    *(
        words(count, 100 + seed)
        for seed, count in enumerate((1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 120, 144, 180, 233, 300))
    ),
)


def pairs(count: int) -> list[tuple[str, str]]:
    """`count` (query, document) pairs that go round both lists out of step."""
    return [(QUERIES[i % len(QUERIES)], DOCUMENTS[(i * 7) % len(DOCUMENTS)]) for i in range(count)]
