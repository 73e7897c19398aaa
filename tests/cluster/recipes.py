"""The recipes of deploy/recipes as the commands that they tell an operator to type: what is written is tested."""

from __future__ import annotations

from pathlib import Path

from testbed import layout

RECIPES = layout.REPOSITORY / "deploy" / "recipes"
VIP_WRITTEN = "192.0.2.100"  # the recipes' example
VIP = f"{layout.SUBNET}.100"


def shell(name: str) -> list[str]:
    """The lines of a shell recipe, for the lab's network."""
    lines = (RECIPES / name).read_text().replace(VIP_WRITTEN, VIP).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def crmsh(name: str, directory: Path) -> list[str]:
    """The commands in the head of a crmsh recipe, for the lab's network; the file that they load is in `directory`."""
    text = (RECIPES / name).read_text().replace(VIP_WRITTEN, VIP)
    copy = directory / name
    copy.write_text(text)
    commands = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   crm ")]
    return [command.replace("FILE", str(copy)) for command in commands]
