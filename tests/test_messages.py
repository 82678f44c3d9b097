"""What the errors of posthoc say: what, where, and what to do; each is on the page of the documentation that lists them."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
REMEDY = re.compile(
    r"; |\bneeds? |are needed|there (is|are)\b|found: |expected|must be|such as|‹(advice|hint|remedy|wanted)›"
    r"|[:.?] (download|extract|give|install|map|pass|pip install|run|save|say|the same|try|use|which)\b",
    re.IGNORECASE,
)
PLAIN = re.compile(
    r"Cannot (read|write|remove) .*|No such file.*|.* does not exist\.|.*: ‹reasons?›|.* could not .*"
    r"|.* not fit .*: ‹\w+›\..*|‹failure› .*",
)
"""What the system, or the user's code, says of itself, what is not there, and what ends with another message."""


@pytest.fixture(scope="module")
def messages():
    spec = importlib.util.spec_from_file_location("messages", DOCS / "messages.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["messages"] = module  # which dataclasses look for
    spec.loader.exec_module(module)
    yield module
    del sys.modules["messages"]


@pytest.fixture(scope="module")
def listed(messages):
    return list(messages.messages(values=False))


def test_every_error_says_what_to_do(listed):
    every = [message for message in listed if not message.passes_on]
    assert len(every) > 400
    assert [str(m) for m in every if not REMEDY.search(m.text) and not PLAIN.fullmatch(m.text)] == []
    assert [str(m) for m in every if not re.match(r"[A-Z‹`.\-\w]", m.text) or m.text.count("\n")] == []


def test_every_error_is_on_the_page(messages, listed):
    assert {message.module for message in listed if message.subject is None} == set()
    shown = re.findall(r'^of\("(.*)"\)$', (DOCS / "reference/errors.md").read_text(), re.MULTILINE)
    assert shown == list(messages.SUBJECTS)


@pytest.mark.slow
def test_fields_are_words_and_constants_their_values(messages):
    texts = {message.text: message.exit_code for message in messages.messages()}
    assert texts["‹path› exists already; pass --force to replace it."] == 1
    assert texts["estimator is ‹estimator›; give dfa, whittle, reml."] == 2
    assert texts["stopped‹kept›."] == 143
