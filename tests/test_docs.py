"""What the documents say can be typed, called and followed: options, names and links are those of today."""

import ast
import inspect
import re
import shlex
from pathlib import Path

import click
import pages
import pytest

import posthoc
from posthoc.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "data/reproduction/README.md"]
OTHERS = {"--help", "--no-deps", "--resolution"}
"""Options of other programs that the documents name."""
CONTEXT = click.Context(main)


def spans(text):
    """The code within its sentences."""
    text = re.sub(r"^```.*?^```|^    .*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands(text):
    lines = [
        line.removeprefix("$ ") for block in pages.blocks(text) for line in block.replace("\\\n", " ").splitlines()
    ]
    return [line for line in (*lines, *spans(text)) if re.match(r"posthoc (--debug )?[a-z]+( |$)", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_the_options_that_a_page_gives_them(page):
    for line in commands(page.read_text()):
        words = shlex.split(re.split(r" [|>&]+ ", line)[0], comments=True)
        name, *words = [word for word in words[1:] if word not in ("--debug", "...")]
        assert name in COMMANDS, line
        command = main.get_command(CONTEXT, name)
        context = click.Context(command, CONTEXT, name)
        try:
            given, _, _ = command.make_parser(context).parse_args(words)
        except click.UsageError as error:
            if isinstance(error, click.BadOptionUsage) and f"`{line}`" in page.read_text():
                continue  # an option that is spoken of
            raise AssertionError(f"{line}: {error.format_message()}") from error
        for parameter in command.params:
            if isinstance(parameter.type, click.Choice) and (value := given.get(parameter.name)) is not None:
                parameter.type_cast_value(context, value)


def test_every_option_that_is_named_is_one():
    known = {
        option
        for name in COMMANDS
        for each in main.get_command(CONTEXT, name).params
        for option in (*each.opts, *each.secondary_opts)
    }
    known |= {option for parameter in main.params for option in parameter.opts} | OTHERS
    for script in (*(ROOT / "scripts").iterdir(), *(ROOT / "reproduction").rglob("*.py")):
        known |= set(re.findall(r"--[a-z][a-z0-9-]+", script.read_text())) if script.is_file() else set()
    named = {
        option: page.name
        for page in PAGES
        for span in spans(page.read_text())
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", span)
    }
    assert {option: page for option, page in named.items() if option not in known} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_calls_in_python_have_the_names_that_a_page_gives_them(page):
    for block in pages.blocks(page.read_text()):
        try:
            tree = ast.parse(block)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (function := _of_posthoc(node.func)) is not None:
                named = {each.arg: each.value for each in node.keywords if each.arg is not None}
                inspect.signature(function).bind_partial(*node.args, **named)


def _of_posthoc(node):
    if isinstance(node, ast.Name) and node.id == "posthoc":
        return posthoc
    if isinstance(node, ast.Attribute) and (holder := _of_posthoc(node.value)) is not None:
        return getattr(holder, node.attr)
    return None


def anchors(page):
    """What the headings of a page are called in addresses."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_what_is_there(page):
    text = re.sub(r"^```.*?^```|`[^`]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        place, _, anchor = "".join(link).partition("#")
        if ":" in place:
            continue
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{page}: {place}"
        assert not anchor or anchor in anchors(target), f"{page}: {place}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_and_modules_that_a_page_names_are_there(page):
    text = page.read_text()
    for name in re.findall(r"(?<![\w/])(?:scripts|tests|reproduction)/[\w./*-]*\w", "\n".join(spans(text))):
        assert list(ROOT.glob(name)), name
    for module in re.findall(r"-m ((?:scripts|reproduction)\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
