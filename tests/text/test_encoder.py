"""Pieces to ids and counts: how an enormous line was cut changes nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglm.text.encoder import Encoder
from sglm.text.lines import Piece
from sglm.text.tokenizer import Tokenizer

TEXTS = st.lists(
    st.sampled_from(["the", "cat", " ", "  ", "\t", "\u3000", "\xa0", "\r", "日本", "sees", "."]),
    max_size=30,
).map("".join)


@pytest.mark.parametrize("kind", ["sentencepiece", "word", "char", "byte"])
@given(parts=st.lists(TEXTS, min_size=1, max_size=6), document=st.booleans())
@settings(deadline=None)
def test_cutting_a_line_changes_neither_tokens_nor_words(
    tokenizers: dict[str, Tokenizer], kind: str, parts: list[str], document: bool
) -> None:
    tokenizer, text = tokenizers[kind], "".join(parts)
    encoder = Encoder(tokenizer)
    pieces = [Piece(part, document, unfinished=True) for part in parts[:-1]]
    found = [encoder.encode(piece) for piece in [*pieces, Piece(parts[-1], document)]]
    expected = tokenizer.encode_piece(Piece(text, document))
    assert [token for each in found for token in each.ids] == expected
    assert "".join(each.text for each in found) == text
    assert sum(each.words for each in found) == len(text.split())
    assert sum(each.bytes for each in found) == len(text.encode())
    # The next one is not joined to it.
    assert encoder.encode(Piece("the", False)).words == 1
