"""Links of the documentation lead to files that exist, and to headings in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT)
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("bench*/*.md"))
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown's readers make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        if name.startswith(("http:", "https:")):
            continue
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_names_every_page() -> None:
    docs = ROOT / "docs"
    named = {(docs / link).resolve() for link in LINK.findall((docs / "README.md").read_text(encoding="utf-8"))}
    for page in docs.glob("**/*.md"):
        assert page == docs / "README.md" or {page, page.parent} & named, page


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs/dev").glob("add-*.md")))
def test_files_to_touch_exist(page: str) -> None:
    """Names in capitals stand for the reader's own files."""
    text = (ROOT / "docs/dev" / page).read_text(encoding="utf-8")
    for name in re.findall(r"`((?:src|tests|docs)/[\w./-]+)`", text):
        assert (ROOT / name).exists() or re.search(r"[A-Z]{3}", name), name


def test_pages_are_found() -> None:
    assert {Path("README.md"), Path("docs/models.md"), Path("examples/README.md")} <= {*PAGES}
