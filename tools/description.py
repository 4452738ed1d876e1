"""The description that package indexes show: README.md, with links that work there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class DescriptionHook(MetadataHookInterface):
    """Called by hatchling: see `tool.hatch.metadata` in pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:  # Any: of pyproject.toml
        """Set `readme`."""
        home = metadata["urls"]["Homepage"]
        text = (Path(self.root) / "README.md").read_text()
        # Without `?raw=true`, the link leads to a page that shows the picture.
        text = re.sub(r"(!\[[^]]*\]\()(?!\w+:)([^)]+)", rf"\g<1>{home}/\2?raw=true", text)
        text = re.sub(r"(?<=\]\()(?!\w+:)", f"{home}/", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
