"""Collect the pages of the documentation site, and the files that they link to: `make docs-site`.

The folder has the layout of the repository, so that links work there as they do on GitHub.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

_ROOT: Final = Path(__file__).parents[1]
_KEPT: Final = re.compile(
    r"[^/]+\.md|LICENSE|config\.example\.yaml|(docs|deploy|monitoring/(rules|dashboards))/.+"
)
_LINK: Final = re.compile(r"\]\((?!\w+:)([^)#\s]+)")
_FENCE: Final = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)


def collect(names: Iterable[str], folder: Path) -> None:
    """Write the site's files to a new folder.

    Args:
        names: the files of the repository; those that the site does not need are ignored.
        folder: is replaced.

    Raises:
        LookupError: a page links to something that is not there.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folders: dict[PurePosixPath, set[str]] = {}
    for path in map(PurePosixPath, names):
        if not _KEPT.fullmatch(str(path)) or any(part[0] in "._" for part in path.parts):
            continue
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            text = (_ROOT / path).read_text(encoding="utf-8")
            target.write_text(for_python_markdown(text), encoding="utf-8")
        else:
            shutil.copyfile(_ROOT / path, target)
        for child, parent in zip((path, *path.parents), path.parents, strict=False):
            folders.setdefault(parent, set()).add(child.name)
    # GitHub lists the files of a folder; so does the site.
    for parent, children in folders.items():
        if "README.md" not in children:
            items = "".join(f"- [{name}]({name})\n" for name in sorted(children))
            (folder / parent / "README.md").write_text(f"# {parent}\n\n{items}", encoding="utf-8")
    if broken := [link for page in sorted(folder.rglob("*.md")) for link in _broken(page)]:
        raise LookupError("broken links: " + ", ".join(broken))


def _broken(page: Path) -> Iterator[str]:
    """Yield the links of a page that lead nowhere."""
    outside = "".join(_FENCE.split(page.read_text(encoding="utf-8"))[::2])
    for target in _LINK.findall(outside):
        if not (page.parent / target).exists():
            yield f"{page}: {target}"


def for_python_markdown(text: str) -> str:
    """Return a page as Python-Markdown needs it.

    Within a list, it wants four spaces where GitHub wants three; and Markdown within HTML has to be
    marked.
    """
    text = text.replace("<details>", '<details markdown="1">')
    parts = _FENCE.split(text)
    parts[::2] = (re.sub(r"^(?=  )", " ", part, flags=re.MULTILINE) for part in parts[::2])
    return "".join(parts)


if __name__ == "__main__":
    collect(sys.stdin.read().splitlines(), Path(sys.argv[1]))
