"""What a forge and a package index read: built, and held against their own schemas."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import readme_renderer.markdown

import posthoc

ROOT = Path(__file__).parents[1]
SCHEMAS = {
    "vendor.github-workflows": ".github/workflows/*.yml",
    "vendor.github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "vendor.citation-file-format": "CITATION.cff",
}
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_for_the_forge_are_of_its_schemas(schema):
    files = sorted(map(str, ROOT.glob(SCHEMAS[schema])))
    assert files
    check = [sys.executable, "-P", "-m", "check_jsonschema", "--builtin-schema", schema, *files]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_package_is_whole(tmp_path):
    build = [sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    forge = {"GITHUB_SERVER_URL": "https://forge.example", "GITHUB_REPOSITORY": "us/posthoc", "GITHUB_REF_NAME": "v9"}
    subprocess.run(build, capture_output=True, text=True, check=True, env=os.environ | forge)
    files = sorted(tmp_path.iterdir())
    subprocess.run([sys.executable, "-P", "-m", "twine", "check", "--strict", *map(str, files)], check=True)
    with zipfile.ZipFile(tmp_path / f"posthoc-{posthoc.__version__}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"posthoc-{posthoc.__version__}.dist-info/METADATA").decode()
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "posthoc").rglob("*.py")}
    assert sources | {"posthoc/py.typed", "posthoc/data/digits.npz"} <= names
    head = HeaderParser().parsestr(metadata)
    assert head["Version"] == posthoc.__version__
    assert "Source, https://forge.example/us/posthoc" in head.get_all("Project-URL")
    page = readme_renderer.markdown.render(head.get_payload())  # as PyPI does
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(addresses) > 20
    assert not [address for address in addresses if not address.startswith(("https://", "#"))]
    for address in addresses:
        place = re.match(r"https://forge.example/us/posthoc/(?:raw|blob)/v9/([^#]*)", address)
        assert place is None or (ROOT / place[1]).is_file()
    assert f"version: {posthoc.__version__}" in (ROOT / "CITATION.cff").read_text().splitlines()
    with tarfile.open(tmp_path / f"posthoc-{posthoc.__version__}.tar.gz") as archive:
        top = {Path(name).parts[1] for name in archive.getnames()}
    assert {
        "posthoc",
        "tests",
        "docs",
        "scripts",
        "reproduction",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "hatch_build.py",
    } <= top
