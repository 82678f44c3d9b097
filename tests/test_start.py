"""A stranger's way through each page of docs/start: its files, its commands in order, and what it says they print."""

import re

import pages
import pytest

pytestmark = pytest.mark.slow


def words(text):
    """The lines that are printed without their numbers, which differ between processors, and without their widths."""
    return [re.sub(r"[-\d.,e+%]*\d[\d.,e+%-]*", "#", " ".join(line.split())) for line in text.splitlines()]


@pytest.mark.parametrize("page", sorted(pages.START.glob("*.md")), ids=lambda page: page.stem)
def test_the_commands_of_a_page_print_what_it_says(page, tmp_path):
    for (head, says), (_, prints) in zip(pages.parts(page.read_text()), pages.played(page, tmp_path), strict=True):
        if head is not None and not (head.endswith(".py") and " " not in head):
            assert words(says) == words(prints), head
    assert (tmp_path / "report.html").stat().st_size > 10_000
