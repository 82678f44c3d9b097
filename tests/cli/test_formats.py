"""Every form of a table escapes what comes from elsewhere in its own way, and says it whole."""

import csv
import re

import pytest

from posthoc.cli.output import print_tables
from posthoc.report.printing import Table, as_csv, as_latex, as_markdown, column

HOSTILE = [
    "a\n\\input{/etc/passwd}%",
    '=HYPERLINK("http://x";"y")',
    "@SUM(1)",
    "+1+cmd|' /C calc'!A0",
    "\t=1",
    "d[/e] [bold]x :smile:",
    "\x1b[2J\x07",
    "<img src=x onerror=alert(1)>",
    "`whoami` $(id) $x^2_3~{}",
    "a|b | c",
    "[best].pth",
    "*star*",
    b"caf\xe9".decode("utf-8", "surrogateescape"),
    "\u202egpj.exe\u2028",
]


def sheet(*names: str) -> Table:
    columns = [column("run"), column("H"), column("95 %", "H_low", "H_high"), column("by", "d", "d_low", "d_high")]
    rows = [[name, -0.25, (-1.0, float("nan")), (0.5, 0.25, 0.75)] for name in names]
    return Table("Runs", columns, rows, [f"{name}: said." for name in names])


def test_csv_holds_one_value_a_column_and_nothing_that_is_computed():
    header, *rows = csv.reader(as_csv(sheet(*HOSTILE)).splitlines())
    assert header == ["run", "H", "H_low", "H_high", "d", "d_low", "d_high"]
    assert len(rows) == len(HOSTILE)
    for row, name in zip(rows, HOSTILE, strict=True):
        assert row[1:] == ["-0.25", "-1.0", "", "0.5", "0.25", "0.75"]
        assert not re.match(r"[=+\-@\t\r]", row[0])
        assert row[0].isprintable()
        if name.isprintable():
            assert row[0].removeprefix("'") == name
    assert as_csv(sheet("-0.5")).splitlines()[1].startswith('"-0.5",')
    assert as_csv(sheet("-x")).splitlines()[1].startswith('"\'-x",')


@pytest.mark.parametrize("name", HOSTILE)
def test_latex_is_text(name):
    lines = as_latex(sheet(name)).splitlines()
    assert len(lines) == 10
    assert lines[5].count(" & ") == 3
    assert lines[-1].startswith("% ")
    for line in (lines[5], lines[-1][2:]):
        plain = re.sub(r"\\text[a-z]+\{\}|\\[_%&#${}]|\{\[\}|\{\*\}|\{''\}| & | \\\\$", "", line)
        assert not set(plain) & set('\\_%#$^~{}[*`<>|"'), line
        assert plain.isprintable()


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_is_text(name):
    lines = as_markdown(sheet(name)).splitlines()
    assert len(lines) == 7
    row = lines[4]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    for line in (row, lines[6]):
        assert not re.search(r"(?<!\\)[`*_<>\[\]$&]", re.sub(r"\\\\", "", line)), line
        assert line.isprintable()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_terminal_is_shown_names_whole_on_a_line(name, capsys):
    print_tables([sheet(name)])
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)
    if name.isprintable():
        assert lines[2].startswith(name)
        assert lines[3] == f"{name}: said."
