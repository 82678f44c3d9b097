"""The documentation as a site: built without a warning, complete, and whole without a network."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import posthoc
from posthoc.cli import COMMANDS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-P", "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(folder / "trees")]
    done = subprocess.run([*build, str(ROOT / "docs"), str(folder / "html")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_page_is_reached_from_the_first(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    reached, todo = set(), [Path("index.html")]
    while todo:
        page = todo.pop()
        if page in reached:
            continue
        reached.add(page)
        links = re.findall(r'href="([^"#:]+\.html)', (site / page).read_text())
        todo += [(site / page.parent / link).resolve().relative_to(site.resolve()) for link in links]
    assert pages <= reached


def test_every_command_and_public_name_is_there(site):
    commands = (site / "reference/command-line.html").read_text()
    assert all(f'id="posthoc-{name}"' in commands for name in COMMANDS)
    names = re.findall(r'id="posthoc\.([A-Za-z_]+)"', (site / "reference/python.html").read_text())
    assert sorted(names) == sorted(set(posthoc.__all__) - {"__version__"})


def test_nothing_is_loaded_from_elsewhere(site):
    loaded = []

    class Page(HTMLParser):
        def handle_starttag(self, tag, attrs):
            attributes = dict(attrs)
            if tag in ("script", "img", "iframe", "source"):
                loaded.append(attributes.get("src"))
            if tag == "link" and attributes.get("rel") in ("stylesheet", "preload"):
                loaded.append(attributes["href"])

    for page in site.rglob("*.html"):
        Page().feed(page.read_text())
    assert loaded
    assert not [place for place in loaded if place and re.match(r"(https?:)?//", place)]
