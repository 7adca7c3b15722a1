"""docs/channels: each kind of channel has its page, the index leads to it, and what a page shows is there."""

import re
from pathlib import Path

import pytest

from channels_app import transport

PAGES = Path(__file__).resolve().parent.parent / "docs" / "channels"
INDEX = (PAGES / "README.md").read_text()
KINDS = sorted(kind for kind, style in transport.transports().items() if not style.demo)


@pytest.mark.parametrize("kind", KINDS)
def test_the_index_leads_to_a_page_of_each_kind(kind):
    rows = [line for line in INDEX.splitlines() if line.startswith("|") and f"`{kind}`" in line and "](" in line]
    pages = [page for row in rows for page in re.findall(r"\]\((\w+\.md)\)", row)]
    assert pages, f"no row of the index names {kind} and a page"
    words = {str(transport.get(kind).label), kind, kind.partition("_")[0]}
    assert any(any(word.lower() in (PAGES / page).read_text().lower() for word in words) for page in pages), (
        f"no page of {pages} speaks of {kind}"
    )


@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.glob("*.md")))
def test_what_a_page_leads_to_is_there(page):
    text = (PAGES / page).read_text()
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if not target.startswith("http")]
    assert [target for target in targets if not (PAGES / target).exists()] == []
    if page != "README.md":
        assert f"({page})" in INDEX and re.search(r"^## (What|The three things that) goe?s? wrong$", text, re.MULTILINE)
