"""Checks that a `.model` file is one that sglm could have written, before SentencePiece reads it.

SentencePiece trusts its models: a made-up normalisation table (`precompiled_charsmap`) leads its
C++ out of bounds, a very long piece overflows its stack (google/sentencepiece issues 1269 and 1263,
seen in 0.2.1). sglm's models have neither, and use few of the format's fields: any other model
is refused. The format is protobuf's wire format, the messages of `sentencepiece_model.proto`.
"""

import math
import struct
from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of ModelProto
_TEXT, _SCORE, _TYPE = 1, 2, 3  # fields of ModelProto.SentencePiece
_MODEL_TYPE, _BPE = 3, 2  # field of TrainerSpec, and its only value here
_CHARSMAP = 2  # field of NormalizerSpec
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # values of _TYPE
# Longer ones are never learned: 16 characters of at most 4 bytes.
_LONGEST_PIECE_BYTES = 64


def check_model(model: bytes) -> None:
    """
    Raises:
        ValueError: not a byte pair encoding with byte pieces, as sglm learns them.
    """
    unknown = 0
    byte_pieces = set[bytes]()
    for field, value in _fields(model):
        if not isinstance(value, bytes) or field not in (_PIECE, _TRAINER, _NORMALIZER):
            raise ValueError(f"unexpected field {field}")
        if field == _PIECE:
            text, kind = _piece(value)
            unknown += kind == _UNKNOWN
            if kind == _BYTE:
                byte_pieces.add(text)
        elif field == _TRAINER:
            if any(key == _MODEL_TYPE and model_type != _BPE for key, model_type in _fields(value)):
                raise ValueError("not a byte pair encoding")
        elif any(key == _CHARSMAP and table != b"" for key, table in _fields(value)):
            raise ValueError("it rewrites text (precompiled_charsmap)")
    if unknown != 1 or byte_pieces != {f"<0x{byte:02X}>".encode() for byte in range(256)}:
        raise ValueError("it lacks the unknown piece or some of the 256 bytes")


def _piece(message: bytes) -> tuple[bytes, int]:
    """Text and type of a piece."""
    text, kind = b"", _NORMAL
    for field, value in _fields(message):
        if field == _TEXT and isinstance(value, bytes):
            text = value
        elif field == _TYPE and value in (_NORMAL, _UNKNOWN, _CONTROL, _BYTE):
            kind = int(value)
        elif field != _SCORE or not isinstance(value, float) or not math.isfinite(value):
            raise ValueError(f"a piece with an unexpected field {field}")
    if not 0 < len(text) <= _LONGEST_PIECE_BYTES or b"\0" in text:
        raise ValueError(f"a piece of {len(text)} bytes, or with a NUL")
    text.decode("utf-8")
    return text, kind


def _fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Number and value of each field of a message, in their order."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield field, value
            continue
        size = 4 if wire == _FIXED32 else 8
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire not in (_FIXED32, _FIXED64):
            raise ValueError(f"wire type {wire}")
        raw = message[at : at + size]
        at += size
        if at > end:
            raise ValueError("cut off")
        yield field, struct.unpack("<f", raw)[0] if wire == _FIXED32 else raw


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """An integer of up to 64 bits, and where it ends."""
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, at + index + 1
    raise ValueError("cut off, or a number of more than 64 bits")
