"""Tokenizers from a Hugging Face `tokenizer.json`, applied by the package `tokenizers`.

Settings for one particular use are removed: truncation, padding, and the special tokens that a
post-processor adds around every text (`[CLS]`, `[SEP]`). Names of special tokens that occur in a
text are encoded as these tokens, as the package does by default.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from sglm.errors import InputError, Stopped
from sglm.storage.untrusted import parse_json
from sglm.text.given_tokenizer import GivenTokenizer
from sglm.text.sentencepiece_model import METASPACE
from sglm.text.tokenizer_interface import HF_FILE, LARGEST_VOCABULARY

if TYPE_CHECKING:
    import tokenizers

# Usual names of the end of a text; the first one that the vocabulary has is taken.
_NAMES_OF_EOS = ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>", "[EOS]", "<|eos|>", "<EOS>")
LONGEST_CACHED_CHARACTERS = 256
_BYTE_NAME = re.compile("<0x[0-9A-F]{2}>")


class HfTokenizer(GivenTokenizer):
    """A tokenizer with any model and pre-tokenizer that the installed package supports."""

    kind = "hf"
    content_file = HF_FILE

    def __init__(self, content: bytes, *, eos_id: int | None = None) -> None:
        """Loads the tokenizer from the content of a `tokenizer.json`.

        Args:
            content: The content of the file.
            eos_id: The id of `<eos>`. None: a token with one of the usual names, or else an added
                id.

        Raises:
            InputError: The package is missing or cannot read this file, or `eos_id` is impossible.
            ValueError: The file is not a `tokenizer.json`, or its vocabulary is impossible.
        """
        self._content = content
        facts = _read_facts(content)
        self._tokenizer = _load(content)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        highest = max(vocabulary.values(), default=-1)
        if highest >= LARGEST_VOCABULARY:
            raise ValueError(f"the id {highest} is too large")
        self._names = [f"<{token_id}>" for token_id in range(highest + 1)]
        for name, token_id in vocabulary.items():
            self._names[token_id] = name
        self._vocabulary = vocabulary
        model = facts["model"]
        unk_token = model.get("unk_token")
        unk_id = vocabulary.get(unk_token) if isinstance(unk_token, str) else model.get("unk_id")
        self.unk_id = unk_id if isinstance(unk_id, int) and unk_id < len(self._names) else None
        self._added = self._tokenizer.get_added_tokens_decoder()
        # Such a model silently leaves out characters that it does not know.
        self._drops = (
            model.get("type", "BPE") == "BPE"
            and self.unk_id is None
            and not _has_all_bytes(facts, vocabulary)
        )
        self._remember()
        self._finish(eos_id)

    def _remember(self) -> None:
        self._is_known_whole = lru_cache(1 << 16)(self._has_all_tokens)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state to pickle: everything but the cache."""
        return {name: value for name, value in vars(self).items() if name != "_is_known_whole"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._remember()

    def _named_eos(self) -> int | None:
        return next((self._vocabulary[n] for n in _NAMES_OF_EOS if n in self._vocabulary), None)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        try:
            encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Stopped:  # a signal arrived meanwhile
            raise
        except Exception as error:
            raise InputError(_cannot_encode(str(error))) from error
        except BaseException as error:
            raise _translated_panic(error) from error
        for text in texts if self._drops else ():
            if not self._reads_all(text):
                lost = next((c for c in text if not self._reads_all(c)), text)
                raise InputError(_cannot_encode(f"no token for {lost!r}, and no unknown token"))
        return [each.ids for each in encoded]

    def _reads_all(self, text: str) -> bool:
        for token in self._added.values():
            text = text.replace(token.content, " ")
        if (normalizer := self._tokenizer.normalizer) is not None:
            text = normalizer.normalize_str(text)
        if (pre_tokenizer := self._tokenizer.pre_tokenizer) is None:
            parts = [text]
        else:
            parts = [part for part, _ in pre_tokenizer.pre_tokenize_str(text)]
        return all(map(self._is_whole, parts))

    def _is_whole(self, part: str) -> bool:
        # Without a pre-tokenizer, a part may be a whole record, which is too long for the cache.
        short = len(part) <= LONGEST_CACHED_CHARACTERS
        return self._is_known_whole(part) if short else self._has_all_tokens(part)

    def _has_all_tokens(self, part: str) -> bool:
        tokens = self._tokenizer.model.tokenize(part)
        read: int = sum(end - start for start, end in (token.offsets for token in tokens))
        return read == len(part.encode())

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    @property
    def special_ids(self) -> Iterable[int]:
        # Models with byte fallback are often trained with the bytes declared as special tokens.
        special = {
            token_id
            for token_id, token in self._added.items()
            if token.special and not _BYTE_NAME.fullmatch(token.content)
        }
        nameless = set(range(len(self._names))) - set(self._vocabulary.values())
        return special | nameless | ({self.unk_id} if self.unk_id is not None else set())

    def offsets(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        if not text:
            return []
        offsets: list[tuple[int, int]] = self._tokenizer.encode(
            text, add_special_tokens=False
        ).offsets
        return offsets

    def _spellings(self) -> Iterator[Sequence[bytes]]:
        names = self._names
        yield [_bytes_of(name) for name in names]
        yield [name.replace(METASPACE, " ").encode() for name in names]

    def content(self) -> bytes:
        return self._content


def _read_facts(content: bytes) -> dict[str, Any]:
    """Parses the file as JSON.

    Raises:
        ValueError: The file is not JSON, or not a `tokenizer.json`.
    """
    facts = parse_json(content)
    if not isinstance(facts, dict) or not isinstance(facts.get("model"), dict):
        raise ValueError("it has no model, which every tokenizer.json has")
    return facts


def _has_all_bytes(facts: dict[str, Any], vocabulary: dict[str, int]) -> bool:
    """Returns whether all 256 bytes have tokens, so that every text can be encoded."""
    if facts["model"].get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    pre_tokenizer = facts.get("pre_tokenizer") or {}
    parts = [pre_tokenizer, *(pre_tokenizer.get("pretokenizers") or [])]
    is_of_bytes = any(part.get("type") == "ByteLevel" for part in parts)
    return is_of_bytes and vocabulary.keys() >= _byte_of_character().keys()


def _load(content: bytes) -> "tokenizers.Tokenizer":
    try:
        import tokenizers
    except ImportError as error:
        raise InputError(
            "a tokenizer.json needs the package tokenizers; install it: pip install 'sglm[hf]'"
        ) from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8-sig"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.post_processor = None
    except Exception as error:
        raise InputError(
            f"tokenizers {tokenizers.__version__} does not read this file"
            f" ({str(error)[:200]}); for a newer format, pip install -U 'sglm[hf]'"
        ) from error
    except BaseException as error:
        raise _translated_panic(error) from error
    return tokenizer


def _translated_panic(error: BaseException) -> BaseException:
    """Turns a panic in Rust code, which is not an `Exception` in Python, into an `InputError`;
    returns any other error unchanged."""
    if type(error).__name__ != "PanicException":
        return error
    return InputError(f"the package tokenizers crashed ({str(error)[:200]}); the file is damaged")


def _cannot_encode(problem: str) -> str:
    return (
        f"the tokenizer cannot encode it ({problem[:200]}); give a tokenizer with an unknown token"
        " or with bytes, or leave such text out"
    )


@cache
def _byte_of_character() -> dict[str, int]:
    """Returns the byte that each character stands for in byte-level models: printable characters
    of Latin-1 stand for themselves, those from U+0100 on for the other bytes (Radford et al. 2019).
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


def _bytes_of(name: str) -> bytes:
    """Returns the bytes of a token's name; characters that stand for no byte become `?`."""
    of_character = _byte_of_character()
    return bytes([of_character.get(character, 63) for character in name])
