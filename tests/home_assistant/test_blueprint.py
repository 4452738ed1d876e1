"""The blueprint and its use in the documentation, as far as they can be checked here."""

from __future__ import annotations

from typing import Any

import yaml

from tests.docs import pages

BLUEPRINT = pages.ROOT / "deploy/home-assistant/call_not_answered.yaml"
SELECTORS = {"entity", "action", "text", "number"}  # with their options, of those that are used


class Loader(yaml.SafeLoader):
    """Reads `!input NAME` as a set of the name, which YAML has no other use for here."""


Loader.add_constructor("!input", lambda _, node: {node.value})


def inputs(part: Any) -> set[str]:
    """Return every input that a part uses."""
    match part:
        case set():
            return part
        case dict():
            return set().union(*(inputs(item) for item in part.values()))
        case list():
            return set().union(*(inputs(item) for item in part))
    return set()


def test_the_blueprint_is_one() -> None:
    whole = yaml.load(BLUEPRINT.read_text(), Loader)
    about = whole.pop("blueprint")
    assert whole.keys() == {"mode", "max", "variables", "triggers", "conditions", "actions"}
    assert about.keys() == {"name", "description", "domain", "homeassistant", "input"}
    assert about["domain"] == "automation"
    for declared in about["input"].values():
        assert declared.keys() <= {"name", "description", "default", "selector"}
        assert declared["selector"].keys() <= SELECTORS
    assert inputs(whole) == about["input"].keys()
    # Templates read variables, not inputs.
    assert whole["variables"].keys() <= about["input"].keys()


def test_the_documented_automation_gives_what_the_blueprint_needs() -> None:
    (block,) = (
        block
        for block in pages.blocks("docs/home-assistant.md")
        if block.text.startswith("automation:")
    )
    ((automation,),) = yaml.safe_load(block.text).values()
    given = automation["use_blueprint"]
    assert given["path"] == f"esms/{BLUEPRINT.name}"
    declared = yaml.load(BLUEPRINT.read_text(), Loader)["blueprint"]["input"]
    required = {name for name, about in declared.items() if "default" not in about}
    assert required <= given["input"].keys() <= declared.keys()
