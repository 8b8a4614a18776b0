"""`python -m release.share`: man pages and shell completions into share/, made from the parser.

`make wheel` runs it; the sdist carries share/ and the wheel installs it beside its programs, where
man and the shells look: PREFIX/share/man and so on.
"""

from __future__ import annotations

import inspect
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete
from click_man.core import write_man_pages

from fargatelite.cli.main import cli

NAME = "fargatelite"
SHARE = Path(__file__).resolve().parent.parent / "share"
COMPLETIONS = {
    f"bash-completion/completions/{NAME}": BashComplete,
    f"zsh/site-functions/_{NAME}": ZshComplete,
    f"fish/vendor_completions.d/{NAME}.fish": FishComplete,
}


def write_share(target: Path) -> None:
    """Writes everything anew below `target`."""
    shutil.rmtree(target, ignore_errors=True)
    man = target / "man" / "man1"
    man.mkdir(parents=True)
    root = _whole(cli)
    write_man_pages(NAME, root, version=version(NAME), target_dir=str(man))
    for place, shell in COMPLETIONS.items():
        file = target / place
        file.parent.mkdir(parents=True)
        completion = shell(cli, {}, NAME, f"_{NAME.upper()}_COMPLETE")
        # Not source(): it asks the installed bash for its version, which is not the user's.
        file.write_text(completion.source_template % completion.source_vars())


def _whole(command: click.Command) -> click.Command:
    """The command with its subcommands loaded, and help in roff: click-man takes text as it is."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            loaded = command.get_command(context, name)
            assert loaded is not None
            command.commands[name] = _whole(loaded)
    command.short_help = command.get_short_help_str(limit=200)
    command.help = roff(command.help or "")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            parameter.help = roff(parameter.help or "")
    return command


def roff(text: str) -> str:
    r"""click's help for man(7): `\b` paragraphs as they are, nothing that roff takes as its own.

    >>> roff(".a\n\n\b\nExample:\n  x \\ y")
    '\\&.a\n\n.nf\nExample:\n  x \\e y\n.fi'
    """
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = [
            re.sub(r"^(\s*)([.'])", r"\1\\&\2", line.replace("\\", "\\e"))
            for line in paragraph.splitlines()
        ]
        if lines and lines[0].strip() == "\b":
            lines = [".nf", *lines[1:], ".fi"]
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


if __name__ == "__main__":
    write_share(SHARE)
