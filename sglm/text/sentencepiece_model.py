"""Checks `.model` files before SentencePiece reads them.

SentencePiece trusts its models: a crafted normalisation table (`precompiled_charsmap`) makes its
C++ code read out of bounds, a very long piece overflows its stack (google/sentencepiece issues 1269
and 1263, seen in 0.2.1), and a NUL or an unknown byte in a piece ends the process. sglm's own
models have no such table and use few fields of the format; `check_own_model` refuses all other
fields. Among models from elsewhere, `check_given_model` refuses those that would crash
SentencePiece. The files are in protobuf's wire format, with the messages of
`sentencepiece_model.proto`.
"""

import math
import struct
from collections.abc import Iterator

import numpy as np

METASPACE = "\u2581"  # stands for a space in the names of pieces

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECE, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5  # fields of ModelProto
_TEXT, _SCORE, _TYPE = 1, 2, 3  # fields of ModelProto.SentencePiece
_MODEL_TYPE, _BPE = 3, 2  # field of TrainerSpec, and its only allowed value in sglm's own models
_CHARSMAP = 2  # field of NormalizerSpec
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # values of _TYPE
_TYPE_NAMES = {
    _NORMAL: "normal",
    _UNKNOWN: "unknown",
    _CONTROL: "control",
    _USER_DEFINED: "user-defined",
    _UNUSED: "unused",
    _BYTE: "byte",
}
_OWN_TYPES = (_NORMAL, _UNKNOWN, _CONTROL, _BYTE)
_ALL_TYPES = (*_OWN_TYPES, _USER_DEFINED, _UNUSED)
# No longer piece is ever learned: 16 characters of at most 4 bytes each.
_LONGEST_PIECE_BYTES = 64
# User-defined symbols may be longer; the stack has room for a hundred times as many bytes.
_LONGEST_GIVEN_PIECE_BYTES = 1024
# SentencePiece has room for this many matches at one position in a text, each of another length.
_LONGEST_REPLACED_BYTES = 32
_BYTE_PIECES = {f"<0x{byte:02X}>".encode() for byte in range(256)}


def check_own_model(model: bytes) -> None:
    """Checks that sglm itself could have learned this model.

    Raises:
        ValueError: It is not a byte pair encoding with byte pieces, as sglm learns them.
    """
    unknown = 0
    byte_pieces = set[bytes]()
    for field, value in message_fields(model):
        if not isinstance(value, bytes) or field not in (_PIECE, _TRAINER, _NORMALIZER):
            raise ValueError(f"unexpected field {field}")
        if field == _PIECE:
            text, kind = _piece(value, _OWN_TYPES, _LONGEST_PIECE_BYTES)
            unknown += kind == _UNKNOWN
            if kind == _BYTE:
                byte_pieces.add(text)
        elif field == _TRAINER:
            if any(
                key == _MODEL_TYPE and model_type != _BPE
                for key, model_type in message_fields(value)
            ):
                raise ValueError("not a byte pair encoding")
        elif any(key == _CHARSMAP and table != b"" for key, table in message_fields(value)):
            raise ValueError("it rewrites text (precompiled_charsmap)")
    if unknown != 1 or byte_pieces != _BYTE_PIECES:
        raise ValueError("it lacks the unknown piece or some of the 256 bytes")


def check_given_model(model: bytes) -> None:
    """Checks that SentencePiece can safely read this model from elsewhere.

    Raises:
        ValueError: It is not in the format of SentencePiece's models, or it is unsafe to read.
    """
    pieces = 0
    byte_pieces = set[bytes]()
    for field, value in message_fields(model):
        if field in (_PIECE, _TRAINER, _NORMALIZER, _DENORMALIZER) and not isinstance(value, bytes):
            raise ValueError(f"unexpected field {field}")
        if field == _PIECE and isinstance(value, bytes):
            pieces += 1
            text, kind = _piece(value, _ALL_TYPES, _LONGEST_GIVEN_PIECE_BYTES)
            if kind == _BYTE:
                byte_pieces.add(text)
        elif field in (_NORMALIZER, _DENORMALIZER) and isinstance(value, bytes):
            for key, table in message_fields(value):
                if key == _CHARSMAP:
                    _check_charsmap(table)
    if not pieces:
        raise ValueError("no pieces")
    if byte_pieces and byte_pieces != _BYTE_PIECES:
        raise ValueError("some of the 256 bytes are missing")


def _check_charsmap(table: int | float | bytes) -> None:
    """Checks a normalisation table.

    A table consists of the size of a double array in bytes, the array, and the replacements, each
    ended by a NUL. The array is a trie of the replaced texts (`darts.h` of darts-clone). A unit
    holds the byte that leads to it and the position of its children, which lie in a block of 256;
    or it holds the value of its parent: the position where a replacement begins.

    Raises:
        ValueError: Some search would leave the array or the replacements, or find more matches
            than SentencePiece has room for.
    """
    if table == b"":
        return
    if not isinstance(table, bytes) or len(table) < 4:
        raise ValueError("the normalisation table is cut off")
    size = int.from_bytes(table[:4], "little")
    replacements = table[4 + size :]
    if not size or size % 4 or not replacements.endswith(b"\0"):
        raise ValueError("the normalisation table is cut off")
    replacements.decode()
    begins_N = np.frombuffer(b"\0" + replacements[:-1], np.uint8) == 0
    units_U = np.frombuffer(table, "<u4", size // 4, offset=4).astype(np.int64)
    children_U = np.arange(len(units_U)) ^ (units_U >> 10 << ((units_U & 0x200) >> 6))
    bytes_U = units_U & 0x8000_00FF  # the highest bit of a value is set: it matches no byte
    nodes = np.array([0])
    for _ in range(_LONGEST_REPLACED_BYTES):
        blocks = np.unique(children_U[nodes])
        if len(blocks) and blocks.max() | 255 >= len(units_U):
            raise ValueError("the normalisation table leads out of bounds")
        values = units_U[children_U[nodes[units_U[nodes] & 0x100 != 0]]] & 0x7FFF_FFFF
        if (values >= len(begins_N)).any() or not begins_N[values].all():
            raise ValueError("the normalisation table leads out of bounds")
        places = blocks[:, None] ^ np.arange(256)
        nodes = np.unique(places[bytes_U[places] == np.arange(256)])
        if not len(nodes):
            return
    raise ValueError(f"the normalisation table replaces over {_LONGEST_REPLACED_BYTES} bytes")


def _piece(message: bytes, types: tuple[int, ...], longest: int) -> tuple[bytes, int]:
    """Returns text and type of a piece, after checking the type and the length in bytes."""
    text, kind = b"", _NORMAL
    for field, value in message_fields(message):
        if field == _TEXT and isinstance(value, bytes):
            text = value
        elif field == _TYPE and value in types:
            kind = int(value)
        elif field == _TYPE:
            raise ValueError(_type_problem(value))
        elif field != _SCORE or not isinstance(value, float) or not math.isfinite(value):
            raise ValueError(f"a piece with an unexpected field {field}")
    if not 0 < len(text) <= longest or b"\0" in text:
        raise ValueError(f"a piece of {len(text)} bytes, or with a NUL")
    text.decode("utf-8")
    return text, kind


def _type_problem(value: int | float | bytes) -> str:
    if not isinstance(value, int):
        return "a piece whose type is not an integer"
    name = _TYPE_NAMES.get(value)
    return f"a piece of type {value}, {name or 'which SentencePiece does not have'}"


def message_fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Yields number and value of each field of a message, in order.

    Raises:
        ValueError: The bytes are not a protobuf message, or the message is cut off.
    """
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
    """Returns the integer of up to 64 bits that begins at `at`, and the index after its end."""
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, at + index + 1
    raise ValueError("cut off, or a number of more than 64 bits")
