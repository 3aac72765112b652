"""Makes a token store from sources, in three streaming passes: divide, learn, encode."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from sglm.errors import InputError, SglmError
from sglm.text.encoder import Encoder
from sglm.text.heldout import Division, OnBytes, divide
from sglm.text.lines import READ_BYTES
from sglm.text.overlap import LineHasher, lines_file
from sglm.text.regroup import regroup
from sglm.text.sources import Source, find_sources, spooled
from sglm.text.store import SPLITS, TokenStore, ids_file
from sglm.text.store_writer import (
    SplitEntry,
    SplitWriter,
    refuse_occupied,
    store_being_written,
    write_meta,
)
from sglm.text.tokenizer import (
    EOS,
    UNK,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
)
from sglm.text.tokenizer_choice import given_tokenizer
from sglm.text.tokenizer_interface import vocabulary_too_large

# The most word types that are kept in memory while counting (about 150 MB).
MOST_WORD_TYPES = 1_000_000
# Longer words are not counted, so that they cannot fill the memory.
LONGEST_WORD_CHARACTERS = 256

# Called with the name of the current pass, the bytes processed so far, and their total (if known).
OnProgress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """The settings of a token store: its tokenizer and its held-out text.

    Attributes:
        tokenizer: Kind of tokenizer to make from the text (one of `KINDS`), or a given one:
            `hf:FILE`, `spm:FILE`, `ids`.
        tokenizer_of: A run, a model folder or a store whose tokenizer is taken instead.
        vocab_size: Number of tokens. None: the tokenizer chooses; `ids` needs it.
        eos_id: The id of `<eos>` in a given tokenizer. None: its own, or else an added id.
        valid, test: A fraction of the text, or a source of its own.
        text_field: Name of the field of a record that holds its text.
        seed: Seed of the choice of held-out text, and of the sample that pieces are learned from.
    """

    tokenizer: str = "sentencepiece"
    tokenizer_of: Path | None = None
    vocab_size: int | None = None
    eos_id: int | None = None
    valid: float | str = 0.05
    test: float | str = 0.05
    text_field: str = "text"
    seed: int = 0


def prepare(
    sources: Sequence[str],
    out: Path,
    settings: StoreSettings,
    *,
    force: bool = False,
    on_progress: OnProgress = lambda doing, done, total: None,
) -> TokenStore:
    """Makes a token store from text.

    Args:
        sources: Sources as `find_sources` takes them; several are read one after another.
        out: Folder of the store. It appears there complete, or not at all.
        settings: Settings of the tokenizer and of the held-out text.
        force: Whether to replace an existing store.
        on_progress: Function that is called with the progress.

    Raises:
        InputError: The text, the settings or `out` cannot be used.
        SglmError: Decoding the ids did not restore the text: a bug in sglm.
    """
    given = given_tokenizer(
        settings.tokenizer,
        tokenizer_of=settings.tokenizer_of,
        vocab_size=settings.vocab_size,
        eos_id=settings.eos_id,
    )
    _check_fractions(settings)
    refuse_occupied(out, force)
    names_of_split = {"train": list(sources)}
    for split, held_out in (("valid", settings.valid), ("test", settings.test)):
        if isinstance(held_out, str):
            names_of_split[split] = [held_out]
    if [name for names in names_of_split.values() for name in names].count("-") > 1:
        raise InputError("stdin (-) can be read only once")
    sources_of_split = {
        split: [
            source
            for name in names
            for source in find_sources(name, settings.text_field, READ_BYTES)
        ]
        for split, names in names_of_split.items()
    }
    _refuse_repeated_files(sources_of_split["train"], settings)
    with store_being_written(out, force) as folder:
        spool = folder / "spool"
        spool.mkdir()
        divisions = _divide(sources_of_split, settings, spool=spool, on_progress=on_progress)
        tokenizer = given or _learn(divisions["train"], settings, on_progress)
        try:
            splits = _encode(divisions, tokenizer, folder=folder, on_progress=on_progress)
        except InputError:
            _refuse_first_bad_line(divisions, tokenizer)
            raise
        _refuse_changed(sources_of_split)
        shutil.rmtree(spool)
        tokenizer.save(folder)
        write_meta(folder, tokenizer, splits)
    return TokenStore.open(out)


def _check_fractions(settings: StoreSettings) -> None:
    fractions = [share for share in (settings.valid, settings.test) if not isinstance(share, str)]
    if not all(0 <= share < 1 for share in fractions) or sum(fractions) >= 1:
        raise InputError(
            f"--valid {settings.valid} --test {settings.test}: fractions must be at least 0 and "
            "leave something to train on"
        )


def _refuse_repeated_files(sources: Sequence[Source], settings: StoreSettings) -> None:
    """Checks that no file is given twice: text that is held out of it would be trained on, too.

    Raises:
        InputError: A file is given twice, and text is to be held out.
    """
    if not any(share for share in (settings.valid, settings.test) if not isinstance(share, str)):
        return
    known: set[tuple[int, int]] = set()
    for source in (each for each in sources if each.file is not None):
        found = os.stat(source.name)
        identity = found.st_dev, found.st_ino
        if identity in known:
            raise InputError(f"{source.name}: given twice; give it once")
        known.add(identity)


def _refuse_changed(sources_of_split: dict[str, list[Source]]) -> None:
    """Checks that the files are the same as when the passes began: each pass must hold out the same
    lines.

    Raises:
        InputError: A file has changed.
    """
    for source in (each for sources in sources_of_split.values() for each in sources):
        if source.has_changed():
            raise InputError(
                f"{source.name}: was written to while it was read; run the same command again"
            )


def _divide(
    sources_of_split: dict[str, list[Source]],
    settings: StoreSettings,
    *,
    spool: Path,
    on_progress: OnProgress,
) -> dict[str, Division]:
    """Divides the sources into splits, after copying those that can be read only once to a file."""
    divisions = {}
    for split, sources in sources_of_split.items():
        sources = [
            spooled(source, spool, READ_BYTES) if source.read_once else source for source in sources
        ]
        sizes = [source.text_bytes for source in sources]
        known = [size for size in sizes if size is not None]
        total = sum(known) if len(known) == len(sizes) else None
        held_out = {"train": (settings.valid, settings.test)}.get(split, (0.0, 0.0))
        valid, test = (0.0 if isinstance(share, str) else share for share in held_out)
        divisions[split] = divide(
            sources,
            valid=valid,
            test=test,
            seed=settings.seed,
            on_bytes=_summed(on_progress, f"reading {split}", total),
        )
    return divisions


def _learn(division: Division, settings: StoreSettings, on_progress: OnProgress) -> Tokenizer:
    """Makes the tokenizer from the training text only."""
    if settings.tokenizer == "byte":
        return ByteTokenizer()
    on_bytes = _summed(on_progress, "learning the vocabulary", division.total_bytes)
    texts = (piece.text for piece in regroup(division.train_pieces(on_bytes)))
    if settings.tokenizer == "char":
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return CharTokenizer(sorted(characters))
    if settings.tokenizer == "word":
        return learn_words(texts, settings.vocab_size)
    from sglm.text.sentencepiece_tokenizer import learn_sentencepiece, sample_segments

    segments = sample_segments(texts, division.train_bytes, settings.seed)
    return learn_sentencepiece(segments, settings.vocab_size)


def learn_words(texts: Iterable[str], vocab_size: int | None) -> WordTokenizer:
    """Learns a vocabulary: the words of `texts`, most frequent first, equally frequent ones
    alphabetically.

    Memory is bounded: whenever there are more than a million types, the rarest are dropped, as in
    lossy counting (Manku & Motwani 2002). A corpus with fewer types is counted exactly. Words of
    more than 256 characters are not counted.

    Args:
        texts: The training text.
        vocab_size: Size of the vocabulary, `<eos>` and `<unk>` included. None: all words.

    Raises:
        InputError: The text has fewer words, or none.
    """
    counts: Counter[str] = Counter()
    dropped_count = 0
    for text in texts:
        words = text.split()
        if max(map(len, words), default=0) > LONGEST_WORD_CHARACTERS:
            words = [word for word in words if len(word) <= LONGEST_WORD_CHARACTERS]
        counts.update(words)
        while len(counts) > MOST_WORD_TYPES:
            dropped_count += 1
            counts = Counter({w: count for w, count in counts.items() if count > dropped_count})
    counts.pop(EOS, None)
    counts.pop(UNK, None)
    if not counts:
        raise InputError("the training text holds no words")
    words = sorted(counts, key=lambda word: (-counts[word], word))
    if vocab_size is not None:
        if vocab_size > len(words) + 2:
            raise vocabulary_too_large(vocab_size, largest=len(words) + 2)
        words = words[: vocab_size - 2]
    return WordTokenizer(words)


def _encode(
    divisions: dict[str, Division], tokenizer: Tokenizer, *, folder: Path, on_progress: OnProgress
) -> dict[str, SplitEntry]:
    """Writes every split's ids; returns the splits' entries for `meta.json`."""
    total_bytes = sum(division.total_bytes for division in divisions.values())
    on_bytes = _summed(on_progress, "encoding", total_bytes)
    with ExitStack() as open_files:
        writers, lines = {}, {split: LineHasher() for split in SPLITS}
        encoders = {split: Encoder(tokenizer) for split in SPLITS}
        for name, division in divisions.items():
            for split, group in groupby(division.pieces(on_bytes), key=itemgetter(0)):
                target = SPLITS[split] if name == "train" else name
                if target not in writers:
                    writer = SplitWriter(folder / ids_file(target), tokenizer=tokenizer)
                    writers[target] = open_files.enter_context(writer)
                for piece in regroup(piece for _, piece in group):
                    text, ids, words, text_bytes = encoders[target].encode(piece)
                    _check_round_trip(tokenizer, text, ids)
                    lines[target].add(piece.text)
                    writers[target].add(ids, words=words, text_bytes=text_bytes)
        written = [split for split in SPLITS if split in writers]
        for split in written:
            lines[split].finish().write(folder / lines_file(split))
        return {split: writers[split].finish() for split in written}


def _refuse_first_bad_line(divisions: dict[str, Division], tokenizer: Tokenizer) -> None:
    """Finds the first line that the tokenizer cannot encode, by reading source by source: the lines
    of a split come from everywhere.

    Raises:
        InputError: The message names source and line.
    """
    for division in divisions.values():
        for source in division.sources:
            encoder = Encoder(tokenizer, name=source.name)
            for piece in source.read():
                encoder.encode(piece)


def _check_round_trip(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    if not tokenizer.lossless or tokenizer.unk_id in ids:
        return
    if tokenizer.decode(ids) != text:
        raise SglmError(
            f"the {tokenizer.kind} tokenizer does not give this text back: {text[:60]!r}…; "
            "please report it, and use --tokenizer byte meanwhile"
        )


def _summed(on_progress: OnProgress, doing: str, total: int | None) -> OnBytes:
    """Returns a function that calls `on_progress` with the sum of the bytes so far."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        on_progress(doing, done, total)

    return add
