"""A stranger's way through each page of docs/start: its files, its commands in order, and what it says they print."""

import pages
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("page", sorted(pages.START.glob("*.md")), ids=lambda page: page.stem)
def test_the_commands_of_a_page_print_what_it_says(page, tmp_path):
    for (head, says), (_, prints) in zip(pages.parts(page.read_text()), pages.played(page, tmp_path), strict=True):
        if head is not None and not (head.endswith(".py") and " " not in head):
            assert pages.words(says) == pages.words(prints), head
    assert (tmp_path / "report.html").stat().st_size > 10_000
