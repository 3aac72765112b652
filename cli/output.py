"""Output of commands: text of any kind on a stdout of any encoding."""

import sys

import typer


def print_text(text: str) -> None:
    """To stdout, also where its encoding lacks a character of the text."""
    encoding = sys.stdout.encoding or "utf-8"
    typer.echo(text.encode(encoding, "backslashreplace").decode(encoding))
