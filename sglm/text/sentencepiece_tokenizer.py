"""SentencePiece (Kudo & Richardson 2018), set up so that decoding restores any text exactly.

SentencePiece by itself drops or rewrites some text. Here it only ever sees one *chunk* at a time: a
word and the spaces before it. A chunk that it does not restore exactly (a literal U+2581, which it
uses for the space, or a NUL) is written as UTF-8 bytes instead, and so is every newline. Chunks
also make encoding local: the ids of all but the last chunk stay the same, whatever text follows.

Pieces are learned by byte pair encoding (Sennrich et al. 2016): on these texts it gives about as
few tokens as the unigram method (Kudo 2018), and learns many times faster.
"""

import io
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import sentencepiece

from sglm.errors import InputError
from sglm.text.sentencepiece_model import METASPACE, check_own_model
from sglm.text.tokenizer_interface import (
    EOS,
    SENTENCEPIECE_FILE,
    UNK,
    Tokenizer,
    byte_offsets,
    utf8,
    vocabulary_too_large,
)

DEFAULT_VOCAB_SIZE = 8000
# <unk>, <eos>, the 256 bytes, and one character with one merge.
SMALLEST_VOCAB_SIZE = 260

# Every boundary but the last one in a text depends only on the text before it and on the one
# character after it. The limits on length bound the memory for a line without spaces.
CHUNKS = re.compile(r"\n| {0,64}[^ \n]{1,256}| {1,256}")
CACHED_CHUNKS = 1 << 17
CACHED_CHARACTERS = 1 << 22  # scripts without spaces have long chunks that never recur


class _ChunkCache(dict[str, list[int]]):
    """A cache of the ids of chunks. Words recur in text: most chunks are looked up, not encoded."""

    def __init__(
        self, processor: sentencepiece.SentencePieceProcessor, *, byte_ids: list[int]
    ) -> None:
        super().__init__()
        self._processor, self._byte_ids = processor, byte_ids
        self._characters = 0
        self.bytes_of = _bytes_of_each_id(processor)

    def __missing__(self, chunk: str) -> list[int]:
        raw = utf8(chunk)
        ids: list[int] = [] if chunk == "\n" else self._processor.encode(chunk)
        if b"".join([self.bytes_of[i] for i in ids]) != raw:
            ids = [self._byte_ids[byte] for byte in raw]
        self._characters += len(chunk)
        if len(self) >= CACHED_CHUNKS or self._characters > CACHED_CHARACTERS:
            self.clear()
            self._characters = len(chunk)
        self[chunk] = ids
        return ids


def _bytes_of_each_id(processor: sentencepiece.SentencePieceProcessor) -> list[bytes]:
    def bytes_of(token_id: int) -> bytes:
        piece: str = processor.id_to_piece(token_id)
        if processor.is_byte(token_id):
            return bytes([int(piece[1:-1], 16)])
        if processor.is_control(token_id) or processor.is_unknown(token_id):
            return b""
        return piece.replace(METASPACE, " ").encode()

    return [bytes_of(token_id) for token_id in range(processor.vocab_size())]


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer learned from text. `unk_id` is None: text that has no piece is written as
    bytes."""

    kind = "sentencepiece"
    content_file = SENTENCEPIECE_FILE
    unk_id = None

    def __init__(self, model: bytes) -> None:
        """Loads the tokenizer from the content of a `.model` file.

        Args:
            model: The content of the file, as SentencePiece's training wrote it.

        Raises:
            ValueError, RuntimeError: It is not the content of such a file.
        """
        check_own_model(model)
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._processor.vocab_size()
        self.eos_id = self._processor.eos_id()
        if self.eos_id < 0:
            raise ValueError("it has no end of text")
        byte_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self._byte_ids = frozenset(byte_ids)
        self._ids_of = _ChunkCache(self._processor, byte_ids=byte_ids)

    def encode(self, text: str) -> list[int]:
        return list(chain.from_iterable(map(self._ids_of.__getitem__, CHUNKS.findall(text))))

    def decode(self, ids: Iterable[int]) -> str:
        bytes_of = self._ids_of.bytes_of
        return b"".join([bytes_of[i] for i in ids]).decode("utf-8", errors="replace")

    def token(self, token_id: int) -> str:
        if token_id == self.eos_id:
            return EOS
        if self._processor.is_unknown(token_id):
            return UNK
        piece: str = self._processor.id_to_piece(token_id)
        return piece

    @property
    def byte_ids(self) -> frozenset[int]:
        return self._byte_ids

    def safe_prefix(self, text: str) -> int:
        """Returns where the last chunk begins (a word and the spaces before it): the text before it
        is safe. A final newline is safe too."""
        start = 0
        for chunk in CHUNKS.finditer(text, self._line_start(text)):
            start = len(text) if chunk.group() == "\n" else chunk.start()
        return start

    @staticmethod
    def _line_start(text: str) -> int:
        """Returns where the last line begins, at the newline before it: chunks never cross a
        newline, so only this line needs to be looked at."""
        return max(text.rfind("\n"), 0)

    def offsets(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        bytes_of = self._ids_of.bytes_of
        return byte_offsets(text, [len(bytes_of[i]) for i in ids])

    def begins_word(self, token_id: int) -> bool:
        """Returns whether the token ends the word before it. A single byte of non-ASCII white space
        does not count: by itself it is not a character."""
        text = self._ids_of.bytes_of[token_id].decode("utf-8", errors="ignore")
        return token_id == self.eos_id or text[:1].isspace()

    def content(self) -> bytes:
        return self._model


def learn_sentencepiece(segments: list[str], vocab_size: int | None) -> SentencePieceTokenizer:
    """Learns pieces from text.

    Args:
        segments: Parts of the text without newlines, of a few kB at most (SentencePiece skips
            long ones); see `sample_segments`.
        vocab_size: Exact number of pieces. None: 8000, fewer for a short text.

    Raises:
        InputError: `vocab_size` is too small or more than the text supports, or the text is empty.
    """
    size = vocab_size
    if size is None:
        # A piece should occur dozens of times; otherwise its embedding is hardly trained.
        characters = sum(map(len, segments))
        size = min(DEFAULT_VOCAB_SIZE, SMALLEST_VOCAB_SIZE + characters // 100)
    if size < SMALLEST_VOCAB_SIZE:
        raise InputError(
            f"--vocab-size {size} is too small for sentencepiece, which needs at least "
            f"{SMALLEST_VOCAB_SIZE} (256 of them bytes); try --tokenizer byte or char"
        )
    room = size - 258
    tokenizer = _train(_without_rare_characters(segments, at_most=room // 2), size)
    if tokenizer.vocab_size < size:  # too few merges in the text: keep more characters
        tokenizer = _train(_without_rare_characters(segments, at_most=room), size)
    if vocab_size is not None and tokenizer.vocab_size != vocab_size:
        raise vocabulary_too_large(vocab_size, largest=tokenizer.vocab_size)
    return tokenizer


def _train(segments: list[str], vocab_size: int) -> SentencePieceTokenizer:
    if not segments:
        raise InputError("the training text holds no words to learn pieces from")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(segments),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # fewer pieces are no error here: `learn_sentencepiece` checks
            # Decoding must restore the text exactly.
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            byte_fallback=True,
            character_coverage=1.0,
            # No piece may contain parts of two words: `CHUNKS` relies on it.
            split_by_whitespace=True,
            allow_whitespace_only_pieces=True,
            # No piece with the spelling of these names is ever learned, so they must be rare in
            # text.
            unk_piece="<sglm:unk>",
            eos_piece="<sglm:eos>",
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            max_sentence_length=1 << 20,
            num_threads=1,  # the result must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"sentencepiece cannot learn from this text ({reason})") from error
    return SentencePieceTokenizer(model.getvalue())


def _without_rare_characters(segments: list[str], at_most: int) -> list[str]:
    """Cuts rare characters out of segments, so that no piece is spent on them: they become bytes.

    Kept are the most frequent characters that together make up 99.95 % of the text, but at most
    `at_most`. Characters that SentencePiece reserves are cut out too (it would skip the whole
    segment).
    """
    counts: Counter[str] = Counter()
    for segment in segments:
        counts.update(segment)
    usable = {c: count for c, count in counts.items() if c not in f"\0\t{METASPACE}\u2585"}
    total, covered, kept = sum(usable.values()), 0, set[str]()
    for character, count in sorted(usable.items(), key=lambda item: (-item[1], item[0])):
        if len(kept) >= at_most or covered >= 0.9995 * total:
            break
        covered += count
        kept.add(character)
    cuts = str.maketrans(dict.fromkeys(counts.keys() - kept, "\n"))
    parts = chain.from_iterable(segment.translate(cuts).split("\n") for segment in segments)
    return [part for part in parts if part]


SAMPLE_BYTES = 8_000_000
SEGMENT_CHARACTERS = 1000


def sample_segments(texts: Iterable[str], total_bytes: int, seed: int) -> list[str]:
    """Returns about 8 MB of segments to learn from, drawn uniformly from the whole text; all
    segments of a smaller text.

    Args:
        texts: The training text, streamed.
        total_bytes: Size of the training text in bytes of UTF-8.
        seed: Seed of the draw.
    """
    share = SAMPLE_BYTES / max(total_bytes, 1)
    draw = random.Random(seed).random
    return [
        segment for text in texts for segment in _segments(text) if share >= 1.0 or draw() < share
    ]


def _segments(text: str) -> Iterator[str]:
    """Yields the lines of `text`, long ones in parts, cut before spaces where possible."""
    for line in text.split("\n"):
        start = 0
        while len(line) - start > SEGMENT_CHARACTERS:
            end = start + SEGMENT_CHARACTERS
            space = line.rfind(" ", start + 1, end)
            end = space if space > 0 else end
            yield line[start:end]
            start = end
        if start < len(line):
            yield line[start:]
