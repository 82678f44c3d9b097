"""What a package index shows of posthoc: the README, and where everything else lies, on the forge that builds the package.

A README's pictures and links are relative, so that they hold in every checkout and fork; an index needs whole addresses. They
are those of the repository and tag that GitHub names in the environment of a workflow (`.github/workflows/release.yml`). What is built
elsewhere names no address.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = r"(?![a-z]+:|#)"


class Addresses(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["urls"] = {}
        if repository := os.environ.get("GITHUB_REPOSITORY"):
            address, tag = f"{os.environ['GITHUB_SERVER_URL']}/{repository}", os.environ["GITHUB_REF_NAME"]
            text = re.sub(rf'(<img src="){RELATIVE}', rf"\1{address}/raw/{tag}/", text)
            text = re.sub(rf"(\]\(){RELATIVE}", rf"\1{address}/blob/{tag}/", text)
            metadata["urls"] = {
                "Source": address,
                "Documentation": f"{address}#documentation",
                "Changelog": f"{address}/blob/{tag}/CHANGELOG.md",
                "Issues": f"{address}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
