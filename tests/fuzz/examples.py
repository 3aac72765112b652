"""How many examples, what damages a file, and how damage may be refused."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from sglm.errors import InputError

_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


def examples(count: int) -> Callable[..., Any]:
    """So many, the same ones every time; with HYPOTHESIS_PROFILE=long 50 times as many, others
    every time."""
    return settings(
        max_examples=count * (50 if _LONG else 1),
        derandomize=not _LONG,
        database=None,
        deadline=None,  # the machine may be busy
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@contextmanager
def may_be_refused(path: Path) -> Iterator[None]:
    """Inside, an InputError is a right result too, if its message names the path and is short."""
    try:
        yield
    except InputError as error:
        assert str(path) in str(error)
        assert len(str(error)) < 2000


# Characters that text processing stumbles over: NUL, line ends of all kinds, byte order marks, the
# other writing direction, combining ones, astral ones, sglm's and SentencePiece's own marks.
ODD = st.sampled_from(
    [
        *("\0", "\n", "\r", "\r\n", "\x0b", "\x85", "\u2028", "\t", " "),
        *("\ufeff", "\u202e", "\u200f", "\u0301", "🙂", "\U0010ffff", "日本", "עברית"),
        *("\u2581", "\u2585", "<eos>", "<unk>", "<0x41>"),
    ]
)
TEXTS = st.lists(st.one_of(ODD, st.text(max_size=8)), max_size=30).map("".join)

# What JSON can hold, and what Python's reader accepts beyond it.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 1, 2**31, 2**63, 2**64, 10**400, -(10**400)]),
    st.floats(),
    st.text(st.characters(), max_size=10),
    st.sampled_from(["../../etc/passwd", "/dev/zero", "a\0b", "\ud800", "..", "", "1e999"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


class Extreme(bytes):
    """Bytes that show themselves in a few characters, however many they are."""

    def __repr__(self) -> str:
        return f"{bytes(self[:40])!r}… ({len(self)} bytes)"


def one_of_these(documents: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of some documents, which may be enormous."""
    return st.sampled_from([Extreme(document) for document in documents])


# Documents that no program writes.
EXTREMES = [
    b"",
    b"null",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 5000,
    b"1e999",
    b"NaN",
    b"-Infinity",
    b'"\\ud800"',
    b'{"format_version": 1, "format_version": 1}',
    b"\xff\xfe{\0}\0",
    b"\xef\xbb\xbf{}",
    b"{}\0",
]


def dumped(value: object) -> bytes:
    """As JSON, with whatever Python writes beyond it; lone surrogates as escapes."""
    return json.dumps(value).encode()


@st.composite
def spoilt(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file after an accident: cut off, doubled, some bytes changed, taken out or put in."""
    raw = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(raw) - 1)))
        what = draw(st.sampled_from(["cut", "flip", "insert", "delete", "double", "zero"]))
        if what == "cut":
            del raw[at:]
        elif what == "flip" and raw:
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "insert":
            raw[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif what == "delete":
            del raw[at : at + draw(st.integers(1, 16))]
        elif what == "double":
            raw = raw * 2
        elif what == "zero":
            end = min(len(raw), at + draw(st.integers(1, 64)))
            raw[at:end] = bytes(end - at)
    return bytes(raw)


@st.composite
def altered(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document with one value changed, removed or added somewhere."""
    if isinstance(document, dict) and document and draw(st.integers(0, 9)) > 0:
        key = draw(st.sampled_from(sorted(document)))
        action = draw(st.sampled_from(["within", "within", "within", "remove", "add"]))
        rest = {name: value for name, value in document.items() if name != key}
        if action == "remove":
            return rest
        if action == "add":
            return {**document, draw(st.text(max_size=8)): draw(VALUES)}
        return {**rest, key: draw(altered(document[key]))}
    if isinstance(document, list) and document and draw(st.booleans()):
        at = draw(st.integers(0, len(document) - 1))
        return [*document[:at], draw(altered(document[at])), *document[at + 1 :]]
    return draw(VALUES)


def damage(path: Path, data: st.DataObject) -> None:
    """Writes one of the `damages` of a file into it."""
    path.write_bytes(data.draw(damages(path.read_bytes())))


def damages(whole: bytes) -> st.SearchStrategy[bytes]:
    """Accidents and attacks; where the file is JSON, more often changes of its content."""
    strategies = [spoilt(whole), one_of_these(EXTREMES)]
    try:
        strategies.append(altered(json.loads(whole)).map(dumped))
    except ValueError:
        return st.one_of(strategies)
    return st.one_of(*strategies, strategies[-1])
