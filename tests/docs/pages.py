"""The pages of the documentation: their blocks, commands, headings and links."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^( *)(`{3,})([\w#+-]*)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"<<-? *['\"]?(\w+)")
_MADE = {"build", "node_modules"}
_FILE = re.compile(r"# ([\w./-]+\.\w+)\n")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, and the heading (of the second level) that it stands under."""

    page: str
    line: int
    section: str
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that the block shows, if its first line is a comment that names one."""
        named = _FILE.match(self.text)
        return named[1] if named and self.language not in {"console", ""} else None


@dataclass(frozen=True, slots=True)
class Command:
    """What stands after a prompt, and what is shown below it; `# ` is left before root's."""

    place: str
    text: str
    shown: str


@cache
def names() -> tuple[str, ...]:
    """Return every page, relative to the root, without what is installed or made."""
    found = []
    for folder, below, files in os.walk(ROOT):
        if "pyvenv.cfg" in files:
            below.clear()
            continue
        below[:] = [name for name in below if name[0] != "." and name not in _MADE]
        found += [Path(folder, name) for name in files if name.endswith(".md")]
    return tuple(sorted(str(path.relative_to(ROOT)) for path in found))


@cache
def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def prose(page: str) -> str:
    """Return a page without its blocks; lines stay where they are."""
    return _FENCE.sub(lambda block: "\n" * block[0].count("\n"), text(page))


@cache
def blocks(page: str) -> tuple[Block, ...]:
    found = []
    whole, outside = text(page), prose(page).splitlines()
    for match in _FENCE.finditer(whole):
        indent, _, language, inside = match.groups()
        before = whole.count("\n", 0, match.start())
        above = [line[3:] for line in outside[:before] if line.startswith("## ")]
        inside = re.sub(rf"^{indent}", "", inside, flags=re.MULTILINE)
        found.append(Block(page, before + 1, above[-1] if above else "", language, inside))
    return tuple(found)


def commands(block: Block) -> Iterator[Command]:
    """Yield the commands of a console block, each with the output that is shown of it."""
    lines = block.text.splitlines()
    prompt = lines[0][:2]
    assert prompt in {"$ ", "# "}, f"{block.place}: a console block starts with `$ COMMAND`"
    at = 0
    while at < len(lines):
        line, typed = block.line + 1 + at, [lines[at].removeprefix("$ ")]
        end = _HEREDOC.search(typed[0])
        at += 1
        while at < len(lines) and (typed[-1].endswith("\\") or (end and typed[-1] != end[1])):
            typed.append(lines[at])
            at += 1
        shown = []
        while at < len(lines) and not lines[at].startswith(prompt):
            shown.append(lines[at])
            at += 1
        yield Command(f"{block.page}:{line}", "\n".join(typed), "\n".join(shown).strip())


def code_spans(page: str) -> list[str]:
    """Return what stands in a page as code within a line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def headings(page: str) -> list[tuple[int, str]]:
    """Return the level and the words of each heading."""
    found = re.findall(r"^(#{1,6}) +(.+?) *#*$", prose(page), re.MULTILINE)
    return [(len(marks), words) for marks, words in found]


def anchors(page: str) -> set[str]:
    """Return what a link can lead to within a page, as GitHub makes it of headings."""
    found: set[str] = set()
    for _, words in headings(page):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", words).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        twice = (f"{slug}-{number}" for number in range(1, 100))
        found.add(slug if slug not in found else next(one for one in twice if one not in found))
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", prose(page)))


def links(page: str) -> list[tuple[int, str]]:
    """Return the line and the target of each link and image."""
    found = []
    pattern = re.compile(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)|(?:src|srcset|href)=\"([^\"]+)\"")
    for line, words in enumerate(prose(page).splitlines(), 1):
        outside = re.sub(r"`[^`]*`", "``", words)
        found += [(line, one or other) for one, other in pattern.findall(outside)]
    return found
