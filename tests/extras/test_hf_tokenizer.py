"""`--tokenizer hf:tokenizer.json`: ids, lines, words and refusals, against `tokenizers` itself."""

import json
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sglm.cli.main import app
from sglm.errors import InputError, Stopped
from sglm.lm import LanguageModel
from sglm.loading import load
from sglm.model.folder import save_model
from sglm.scoring.predictor import NetworkPredictor
from sglm.text.hf_tokenizer import HfTokenizer
from sglm.text.lines import Piece
from sglm.text.store import TokenStore
from sglm.text.tokenizer import load_tokenizer
from tests.conftest import make_text
from tests.extras.conftest import needs
from tests.text.test_tokenizer import texts
from tests.tiny_models import LINES, make_network

tokenizers = needs("tokenizers")
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

TEXT = [line for line in LINES if line] * 5 + make_text(60).splitlines()


def trained(model: Any, trainer: Any, **parts: Any) -> Any:
    tokenizer = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def gpt2(**settings: Any) -> Any:
    """Byte-level byte pairs, as GPT-2 and most models since have them."""
    return trained(
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<|endoftext|>"],
            show_progress=False,
            **settings,
        ),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
        post_processor=processors.ByteLevel(trim_offsets=True),
    )


def bert() -> Any:
    """WordPiece that folds, cuts off and adds special tokens to every text."""
    tokenizer = trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(
            vocab_size=120,
            special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
            show_progress=False,
        ),
        normalizer=normalizers.BertNormalizer(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    return tokenizer


def t5() -> Any:
    """A unigram model behind a normalisation, words marked by U+2581."""
    return trained(
        models.Unigram(),
        trainers.UnigramTrainer(
            vocab_size=90,
            special_tokens=["<unk>", "</s>"],
            unk_token="<unk>",
            show_progress=False,
        ),
        normalizer=normalizers.NFKC(),
        pre_tokenizer=pre_tokenizers.Metaspace(),
        decoder=decoders.Metaspace(),
    )


def llama() -> Any:
    """Byte pairs without a pre-tokenizer, rare characters in bytes."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return trained(
        models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True),
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False),
        normalizer=normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        ),
        decoder=decoders.Sequence(
            [
                decoders.Replace("\u2581", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        ),
    )


def words() -> Any:
    return trained(
        models.WordLevel(unk_token="<unk>"),
        trainers.WordLevelTrainer(vocab_size=30, special_tokens=["<unk>"], show_progress=False),
        pre_tokenizer=pre_tokenizers.WhitespaceSplit(),
    )


MADE: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: gpt2(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    "bert": bert,
    "t5": t5,
    "llama": llama,
    "words": words,
}


@cache
def content(name: str) -> bytes:
    made: str = MADE[name]().to_str()
    return made.encode()


@cache
def mine(name: str) -> HfTokenizer:
    return HfTokenizer(content(name))


def theirs(name: str, text: str) -> Any:
    tokenizer = tokenizers.Tokenizer.from_str(content(name).decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", MADE)
@given(several=st.lists(texts, max_size=3))
@settings(deadline=None, max_examples=25)
def test_ids_are_those_of_tokenizers(name: str, several: list[str]) -> None:
    expected = [theirs(name, text) for text in several]
    assert mine(name).encode_batch(several) == expected
    for text, ids in zip(several, expected, strict=True):
        assert mine(name).encode(text) == ids
        offsets = mine(name).offsets(text, ids)
        assert len(offsets) == len(ids)
        assert all(0 <= start <= end <= len(text) for start, end in offsets)


def test_what_the_file_sets_up_for_other_uses_is_left_out() -> None:
    """`[CLS]`, `[SEP]`, truncation to 4 and padding to 16 tokens."""
    ids = mine("bert").encode("the cat sat on the mat")
    assert len(ids) == 6
    assert not {0, 2, 3} & set(ids)


@pytest.mark.parametrize(
    ("name", "eos", "lines", "marks", "unknown"),
    [
        ("gpt2", "<|endoftext|>", False, True, None),
        ("bert", None, True, False, "[UNK]"),
        ("t5", "</s>", True, True, "<unk>"),
        ("llama", "</s>", False, False, "<unk>"),
        ("words", None, True, True, "<unk>"),
    ],
)
def test_how_each_family_is_read(
    name: str, eos: str | None, lines: bool, marks: bool, unknown: str | None
) -> None:
    """The end of text, whether it ends lines or documents, whether words are marked, `<unk>`."""
    tokenizer, raw = mine(name), tokenizers.Tokenizer.from_str(content(name).decode())
    assert tokenizer.eos_id == (raw.get_vocab_size() if eos is None else raw.token_to_id(eos))
    assert tokenizer.adds_eos == (eos is None)
    assert tokenizer.eos_ends_lines == lines
    assert tokenizer.marks_words == marks
    assert tokenizer.unk_id == (None if unknown is None else raw.token_to_id(unknown))
    first, second = theirs(name, "the cat\n"), theirs(name, "sat\n")
    if lines:
        first, second = theirs(name, "the cat"), theirs(name, "sat")
    end = [tokenizer.eos_id] * lines
    assert tokenizer.encode_piece(Piece("the cat\nsat\n", False)) == [*first, *end, *second, *end]
    document = tokenizer.encode_piece(Piece("the cat\nsat", True))
    assert document == [*theirs(name, "the cat\nsat"), tokenizer.eos_id]
    if name != "llama":  # it learned tokens of two words
        both = tokenizer.encode_word("the", in_text=False) + tokenizer.encode_word(
            "cat", in_text=True
        )
        assert both == theirs(name, "the cat")
    assert tokenizer.decode(first) in ("the cat", "the cat\n")


def test_the_spelling_of_the_end_in_a_text_is_that_token() -> None:
    """As `tokenizers` has it."""
    ids = mine("gpt2").encode("the<|endoftext|>cat")
    assert mine("gpt2").eos_id in ids


@pytest.mark.parametrize("name", MADE)
def test_a_saved_tokenizer_comes_back_and_is_the_librarys_own_file(
    name: str, tmp_path: Path
) -> None:
    mine(name).save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == mine(name).fingerprint
    assert loaded.encode("naïve 🙂") == mine(name).encode("naïve 🙂")
    assert pickle.loads(pickle.dumps(loaded)).encode("naïve 🙂") == loaded.encode("naïve 🙂")
    assert (tmp_path / "hf-tokenizer.json").read_bytes() == content(name)
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "hf-tokenizer.json"))
    (tmp_path / "hf-tokenizer.json").write_bytes(content(name) + b" ")
    with pytest.raises(InputError, match="not those"):
        load_tokenizer(tmp_path)
    (tmp_path / "hf-tokenizer.json").write_bytes(b'{"model": {}}')
    with pytest.raises(InputError, match=r"hf-tokenizer\.json: tokenizers .* does not read"):
        load_tokenizer(tmp_path)


def changed(name: str, **model: Any) -> bytes:
    facts = json.loads(content(name))
    facts["model"].update(model)
    return json.dumps(facts).encode()


def test_a_signal_meanwhile_is_no_text_that_it_cannot_encode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its handler runs when the library returns; an error of the text would not end a command."""

    class Interrupted:
        def encode_batch_fast(self, texts: list[str], **_: Any) -> None:
            raise Stopped("stopped", signal_number=15)

    tokenizer = HfTokenizer(gpt2().to_str().encode())
    monkeypatch.setattr(tokenizer, "_tokenizer", Interrupted())
    with pytest.raises(Stopped):
        tokenizer.encode("the cat")


def test_what_it_cannot_encode_is_refused_and_never_dropped() -> None:
    poor = HfTokenizer(gpt2().to_str().encode())  # the bytes of its training text only
    assert poor.encode("the cat") == [*poor.encode("the"), *poor.encode(" cat")]
    assert poor.encode("the<|endoftext|>") == [*poor.encode("the"), 0], "not of characters"
    with pytest.raises(InputError, match=r"no token for 'Ω', and no unknown token"):
        poor.encode("the Ω")
    assert poor.eos_ends_lines, "it has no newline"
    without = HfTokenizer(changed("words", unk_token="nobody"))
    assert without.encode("the cat") == theirs("words", "the cat")
    with pytest.raises(InputError, match="cannot encode it"):
        without.encode("zyx")
    with pytest.raises(InputError, match="half a surrogate pair"):
        mine("gpt2").encode("a\ud83d")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "Expecting value"),
        (b"[]", "it has no model"),
        (b'{"model": 5}', "it has no model"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}}', "too large"),
        (b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "0 tokens"),
        (b'{"version": "9.0", "model": {}}', r"does not read this file .*pip install -U"),
        (b'{"model": {"type": "Zork"}}', r"does not read this file .*pip install -U"),
    ],
)
def test_what_is_no_tokenizer_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        HfTokenizer(raw)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_any_accident_to_a_file_is_an_error_or_a_tokenizer(data: st.DataObject) -> None:
    from tests.fuzz.examples import damages

    try:
        tokenizer = HfTokenizer(data.draw(damages(content("words"))))
        ids = tokenizer.encode("the cat zyx")
    except (InputError, ValueError):
        return
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@pytest.mark.parametrize("name", MADE)
def test_pieces_add_up_and_words_do_too(name: str) -> None:
    tokenizer = mine(name)
    lm = LanguageModel(NetworkPredictor(make_network(tokenizer.vocab_size)), tokenizer=tokenizer)
    text = "the cat  sat on naïve 🙂, zyx"
    whole = lm.score(text, distribution=True)
    state, logprob = lm.start(), 0.0
    for start in range(0, len(text), 3):
        score, state = lm.extend(state, text[start : start + 3])
        logprob += score.logprob
    assert logprob == pytest.approx(whole.logprob, abs=1e-4)  # float32 predictions
    found = whole.words("e")
    assert [word.word for word in found] == text.split()
    assert sum(word.surprisal for word in found) == pytest.approx(-whole.logprob)
    assert whole.n_bytes == len(text.encode())
    assert (whole.bits_per_byte is None) == (True in whole.unk)
    if tokenizer.marks_words:
        assert whole.words(correction="bow")
    else:
        with pytest.raises(InputError, match=r"mark where words begin"):
            whole.words(correction="bow")
    assert lm.generate("the cat", tokens=5, seed=0).startswith("the cat")


def test_from_prep_to_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(make_text(300))
    Path("tokenizer.json").write_bytes(content("gpt2"))
    run = CliRunner().invoke(
        app, ["prep", "text.txt", "--tokenizer", "hf:tokenizer.json", "--out", "store"]
    )
    assert run.exit_code == 0, run.output
    assert "document (newlines are tokens) ends in the id 0, <|endoftext|>" in run.stdout
    store = TokenStore.open("store")
    lines = store.tokenizer().decode(store.ids("train").tolist()).splitlines()
    assert set(lines) <= set(make_text(300).splitlines())
    network = make_network(store.tokenizer().vocab_size)
    save_model(network, tmp_path / "model", store.tokenizer().fingerprint)
    store.tokenizer().save(tmp_path / "model")
    lm = load("model")
    from_store, from_text = lm.evaluate(store, "test"), None
    text = store.tokenizer().decode(store.ids("test").tolist())
    from_text = lm.perplexity(text)
    assert from_store.nll_nats == pytest.approx(from_text.nll_nats, rel=1e-6)
    assert (from_store.words, from_store.bytes) == (from_text.words, from_text.bytes)
    again = CliRunner().invoke(app, ["prep", "text.txt", "--tokenizer-of", "model", "--out", "b"])
    assert again.exit_code == 0, again.output
    assert TokenStore.open("b").fingerprint == store.fingerprint
