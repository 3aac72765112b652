"""Finds the tokenizer that the options of `sglm prep` give, unless it is learned from the text."""

from pathlib import Path

from sglm.errors import InputError, did_you_mean
from sglm.storage.untrusted import read_bounded
from sglm.text.tokenizer import GIVEN_KINDS, KINDS, IdsTokenizer, Tokenizer, find_tokenizer
from sglm.text.tokenizer_interface import (
    EOS,
    LARGEST_FILE_BYTES,
    LARGEST_VOCABULARY,
    UNK,
)


def given_tokenizer(
    name: str, *, tokenizer_of: Path | None, vocab_size: int | None, eos_id: int | None
) -> Tokenizer | None:
    """Returns the tokenizer that the options give; checks the options in any case.

    Args:
        name: One of `KINDS`, `hf:FILE`, `spm:FILE` or `ids`.
        tokenizer_of: A run, a model folder or a store whose tokenizer is taken. None: `name`
            decides.
        vocab_size: Number of tokens. None: not given.
        eos_id: The id of `<eos>`. None: not given.

    Returns:
        The given tokenizer; None for one that is made from the text.

    Raises:
        InputError: The name is unknown, the file cannot be used, or options exclude each other.
    """
    if tokenizer_of is not None:
        for option, value in (("--vocab-size", vocab_size), ("--eos-id", eos_id)):
            if value is not None:
                raise InputError(f"{option} does not go with --tokenizer-of; leave it out")
        return find_tokenizer(tokenizer_of)
    kind, _, file = name.partition(":")
    if name in KINDS:
        _check_learned(name, vocab_size=vocab_size, eos_id=eos_id)
        return None
    if name == "ids":
        return _ids(vocab_size, eos_id)
    if kind not in ("hf", "spm") or not file:
        if kind in GIVEN_KINDS:
            form = "ids" if kind == "ids" else f"{kind}:FILE"
            raise InputError(f"--tokenizer {name}: give {form}")
        raise InputError(f"--tokenizer {name}: unknown{did_you_mean(name, (*KINDS, *GIVEN_KINDS))}")
    if vocab_size is not None:
        raise InputError(f"--vocab-size does not go with --tokenizer {name}: it has its own")
    return _from_file(kind, Path(file), eos_id)


def _check_learned(kind: str, *, vocab_size: int | None, eos_id: int | None) -> None:
    if eos_id is not None:
        raise InputError(
            f"--eos-id does not go with --tokenizer {kind}, which has its own; leave it out"
        )
    if vocab_size is not None and kind in ("char", "byte"):
        raise InputError(
            f"--vocab-size does not go with --tokenizer {kind}: "
            "its vocabulary follows from the text; leave it out"
        )
    if vocab_size is not None and vocab_size < 3:
        raise InputError(
            f"--vocab-size {vocab_size} is too small: it must hold {EOS}, {UNK} and a word"
        )


def _ids(vocab_size: int | None, eos_id: int | None) -> IdsTokenizer:
    if vocab_size is None:
        raise InputError("--tokenizer ids needs --vocab-size N: the ids are 0 to N - 1")
    if not 2 <= vocab_size < LARGEST_VOCABULARY:
        raise InputError(
            f"--vocab-size {vocab_size}: it must be at least 2, and less than"
            f" {LARGEST_VOCABULARY:,}"
        )
    if eos_id is not None and not 0 <= eos_id < vocab_size:
        raise InputError(
            f"--eos-id {eos_id}: must be one of the ids, 0 to {vocab_size - 1}; leave it out to"
            f" give {EOS} an id of its own"
        )
    return IdsTokenizer(vocab_size, eos_id=eos_id)


def _from_file(kind: str, path: Path, eos_id: int | None) -> Tokenizer:
    what = "a tokenizer.json" if kind == "hf" else "a SentencePiece model"
    if path.is_dir():
        raise InputError(f"{path}: a folder, not {what}; give the file in it")
    if not path.exists():
        raise InputError(f"{path}: no such file; {kind}: takes the path of {what}")
    content = read_bounded(path, LARGEST_FILE_BYTES)
    try:
        if kind == "spm":
            from sglm.text.spm_tokenizer import SpmTokenizer

            tokenizer: Tokenizer = SpmTokenizer(content, eos_id=eos_id)
        else:
            from sglm.text.hf_tokenizer import HfTokenizer

            tokenizer = HfTokenizer(content, eos_id=eos_id)
        if eos_id is not None and eos_id == tokenizer.unk_id:
            raise InputError(
                f"--eos-id {eos_id}: the tokenizer's unknown token, so all line ends would count as"
                f" unknown; leave it out to give {EOS} an id of its own"
            )
        return tokenizer
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, RuntimeError) as error:
        if kind == "hf" and b'"fingerprint"' in content[:4096]:
            raise InputError(
                f"{path}: a tokenizer that sglm made; give --tokenizer-of {path.parent}"
            ) from error
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"{path}: not {what}, or a damaged one ({reason})") from error
