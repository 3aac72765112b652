"""Tokenizers of every kind, learned from a little text, and a way to run `sglm prep`."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from sglm.cli.main import app
from sglm.text.sentencepiece_tokenizer import learn_sentencepiece
from sglm.text.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, WordTokenizer
from tests.conftest import make_text

ODD_TEXT = "Indented:\n\n    code\tand tabs, naïve façade, 中文字, 😀 <eos> <unk>\r\n"


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Tokenizer]:
    """One of each kind."""
    text = make_text(300) + ODD_TEXT * 20
    return {
        "sentencepiece": learn_sentencepiece(text.split("\n"), None),
        "word": WordTokenizer(["the", "cat", "sees", "."]),
        "char": CharTokenizer(sorted(set(text))),
        "byte": ByteTokenizer(),
    }


@pytest.fixture
def run_prep() -> Callable[..., Result]:
    """Runs `sglm prep` through the real command line, inside this process."""

    def run(*arguments: object, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(app, ["prep", *map(str, arguments)], input=stdin)

    return run


@pytest.fixture
def start_prep() -> Callable[..., "subprocess.Popen[bytes]"]:
    """Starts `sglm prep` as a process of its own, its stdin an open pipe."""

    def start(*arguments: object, **environment: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "sglm.cli.main", "prep", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
        )

    return start
