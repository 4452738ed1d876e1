"""The command `completion`: shell completion of commands, options and account names."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, add_completion_class, get_completion_class

_NAME = "esms-exporter"


class _Bash(BashComplete):
    """Completion for bash, which splits `--option=value` into three words."""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        kept = [
            word
            for before, word in zip(["", *args], args, strict=False)
            if not (word == "=" and before.startswith("--"))
        ]
        return kept, incomplete


add_completion_class(_Bash)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL."""
    kind = get_completion_class(shell)
    assert kind  # noqa: S101 - one of click's own
    script = kind(ctx.find_root().command, {}, _NAME, "_ESMS_EXPORTER_COMPLETE")
    click.echo(script.source())
