"""Regroups a text into pieces that suit a tokenizer: joins short lines, cuts very long records."""

from collections.abc import Iterable, Iterator

from sglm.text.lines import Piece, whole_words

# Lines are joined until they reach the first length; records longer than the second are cut.
JOINED_CHARACTERS = 1 << 16
LONGEST_CHARACTERS = 1 << 20


def regroup(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yields the same stream of text in pieces of another size.

    Consecutive whole lines are joined; very long records are cut, after a newline or else before
    white space.
    """
    lines: list[str] = []
    characters = 0
    for piece in pieces:
        whole_line = piece.text.endswith("\n") and not piece.ends_document
        if whole_line:
            lines.append(piece.text)
            characters += len(piece.text)
        if lines and (characters >= JOINED_CHARACTERS or not whole_line):
            yield Piece("".join(lines), False)
            lines, characters = [], 0
        if not whole_line:
            yield from _cut(piece)
    if lines:
        yield Piece("".join(lines), False)


def _cut(piece: Piece) -> Iterator[Piece]:
    text, start = piece.text, 0
    while len(text) - start > LONGEST_CHARACTERS:
        end = start + LONGEST_CHARACTERS
        if newline := text.rfind("\n", start, end) + 1:
            end = newline
        else:
            end = start + whole_words(text[start:end])
        yield Piece(text[start:end], piece.ends_document, unfinished=True)
        start = end
    yield Piece(text[start:], piece.ends_document, piece.unfinished)
