"""The seam: whatever predicts, an LSTM or a table, goes through all of scoring unchanged."""

import ast
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import sglm.scoring.predictor
from sglm.errors import SglmError
from sglm.lm import LanguageModel
from sglm.model.language_model import DropoutRates
from sglm.runtime.device import full_float32
from sglm.scoring.batch import STEP_LANES, packed_nlls, sequence_nlls, texts_nll
from sglm.scoring.evaluate import evaluate_pieces, evaluate_split
from sglm.scoring.generate import generate_ids
from sglm.scoring.incremental import extend_text, start_text
from sglm.scoring.predictor import (
    IGNORED,
    Blocks,
    NetworkPredictor,
    Predictor,
    evaluating,
    target_logprobs,
)
from sglm.scoring.stream import CHUNK_STEPS, StoppedReading, read_on, stream_nll
from sglm.text.user_text import pieces_of
from tests.tiny_models import KINDS, LINES, make_network, make_store, make_tokenizer, plain_nlls

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY, EOS = 23, 5


class TablePredictor:
    """Predicts from the last two tokens, by adding up a row of each of two tables.

    Its state is the token before the next one to be read, `(B,)`; V stands for none. In float64:
    what comes out is compared with the definition to the last digits.
    """

    def __init__(self, vocab_size: int) -> None:
        random = torch.Generator().manual_seed(0)
        self.vocab_size = vocab_size
        self.device = torch.device("cpu")
        self.before_VV = torch.randn(vocab_size + 1, vocab_size, generator=random).double()
        self.current_VV = torch.randn(vocab_size, vocab_size, generator=random).double()
        self.rows_predicted = 0

    def start(self, lanes: int) -> Tensor:
        return torch.full((lanes,), self.vocab_size)

    def read(
        self, ids_TB: Tensor, targets_TB: Tensor | None, state: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        self._expect(ids_TB, state)
        if targets_TB is None:
            return None, ids_TB[-1]
        predicted_TB = targets_TB != IGNORED
        logprobs_TB = torch.zeros(ids_TB.shape, dtype=torch.float64)
        before_TB = torch.cat((state[None], ids_TB[:-1]))
        logprobs_MV = self._logprobs(before_TB[predicted_TB], ids_TB[predicted_TB])
        targets_M1 = targets_TB[predicted_TB][:, None]
        logprobs_TB[predicted_TB] = logprobs_MV.gather(1, targets_M1)[:, 0]
        return logprobs_TB, ids_TB[-1]

    def distributions(
        self, ids_TB: Tensor, state: Tensor, *, last_steps: int | None = None
    ) -> tuple[Blocks, Tensor]:
        self._expect(ids_TB, state)
        first = 0 if last_steps is None else len(ids_TB) - last_steps
        before_TB = torch.cat((state[None], ids_TB[:-1]))
        return self._blocks(before_TB[first:].flatten(), ids_TB[first:].flatten()), ids_TB[-1]

    def _blocks(self, before_N: Tensor, ids_N: Tensor) -> Blocks:
        for start in range(0, len(ids_N), 7):  # as many rows as nobody else takes
            rows = slice(start, min(start + 7, len(ids_N)))
            yield rows, self._logprobs(before_N[rows], ids_N[rows])

    def select(self, state: Tensor, lanes: Tensor) -> Tensor:
        return state[lanes]

    def _logprobs(self, before_M: Tensor, ids_M: Tensor) -> Tensor:
        self.rows_predicted += len(ids_M)
        return (self.before_VV[before_M] + self.current_VV[ids_M]).log_softmax(1)

    def _expect(self, ids_TB: Tensor, state: Tensor) -> None:
        assert ids_TB.dtype == torch.int64
        assert ids_TB.dim() == 2
        assert ids_TB.numel() > 0
        assert ids_TB.shape[1] == len(state)
        # The modes are the predictor's own: a caller leaves them as the program has them.
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()

    def expected_nlls(self, ids: list[int]) -> list[float]:
        """The definition, token by token; the first one is only read."""
        nlls = []
        before = self.vocab_size
        for current, following in pairwise(ids):
            scores = (self.before_VV[before] + self.current_VV[current]).tolist()
            nlls.append(math.log(sum(map(math.exp, scores))) - scores[following])
            before = current
        return nlls


# Not called: the type checker looks whether both are predictors.
def _both_are_predictors(network: NetworkPredictor, table: TablePredictor) -> None:
    _: list[Predictor] = [network, table]


@pytest.fixture
def table() -> TablePredictor:
    return TablePredictor(VOCABULARY)


def random_ids(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist()


class TestAnyPredictor:
    """float64 throughout; 1e-12 is the rounding of sums in another order."""

    def test_one_long_text(self, table: TablePredictor) -> None:
        ids = random_ids(1000)
        expected = table.expected_nlls([EOS, *ids])
        assert stream_nll(table, np.array(ids), EOS) == pytest.approx(sum(expected), rel=1e-12)
        nlls, state = read_on(table, np.array([EOS, *ids]), table.start(1))
        np.testing.assert_allclose(nlls, expected, rtol=1e-12)
        assert state.tolist() == [ids[-2]], "the last one is yet to be read"

    def test_shares_of_a_text_add_up_and_predict_each_token_once(
        self, table: TablePredictor
    ) -> None:
        ids = np.array(random_ids(1000))
        shares = [stream_nll(table, ids, EOS, shard=(which, 3)) for which in range(3)]
        assert table.rows_predicted == len(ids)
        assert sum(shares) == pytest.approx(stream_nll(table, ids, EOS), rel=1e-12)

    def test_many_texts(self, table: TablePredictor) -> None:
        lengths = [*[3, 600, 1, 0, 3, 257, 2, 40], *[6] * STEP_LANES * 2]
        sequences = [[EOS, *random_ids(length, length % 5)][:length] for length in lengths]
        # Many equal beginnings: read as a tree; then each in its lane; one alone: the direct way.
        for some in (sequences, sequences[:8], sequences[1:2]):
            for ids, nlls in zip(some, sequence_nlls(table, some), strict=True):
                np.testing.assert_allclose(nlls, table.expected_nlls(ids), rtol=1e-12)

    def test_nothing_is_predicted_where_nothing_follows(self, table: TablePredictor) -> None:
        sequences = [[EOS, *random_ids(length)] for length in (3, 4, 9, 9, 10)]
        lengths = np.array([len(ids) for ids in sequences])
        packed_nlls(table, np.concatenate(sequences), lengths)
        assert table.rows_predicted == sum(lengths - 1)

    def test_a_stream_of_texts_its_shares_and_a_stop(self, table: TablePredictor) -> None:
        texts = [random_ids(length, length) for length in range(40)]
        expected = sum(sum(table.expected_nlls([EOS, *ids])) for ids in texts)
        assert texts_nll(table, texts, EOS) == pytest.approx(expected, rel=1e-12)
        groups = 11  # of at least 16·4 tokens out of 780
        shares = [texts_nll(table, texts, EOS, batch_tokens=4, shard=(n, 2)) for n in range(2)]
        assert min(shares) > 0
        assert sum(shares) == pytest.approx(expected, rel=1e-12)
        answers = iter([False] * (groups - 1) + [True])
        with pytest.raises(StoppedReading):
            texts_nll(table, texts, EOS, batch_tokens=4, should_stop=answers.__next__)
        assert next(answers, None) is None, "asked before every group"

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_split_and_its_text(self, kind: str, tmp_path: Path) -> None:
        (tmp_path / "test.txt").write_text("\n".join(LINES), encoding="utf-8")
        store = make_store(tmp_path, kind, tmp_path / "test.txt")
        tokenizer = store.tokenizer()
        table = TablePredictor(tokenizer.vocab_size)
        expected = sum(table.expected_nlls([tokenizer.eos_id, *store.ids("test").tolist()]))
        evaluation = evaluate_split(table, store, "test", name="table")
        assert evaluation.nll_nats == pytest.approx(expected, rel=1e-12)
        assert (evaluation.model, evaluation.split) == ("table", "test")
        whole = evaluate_pieces(table, tokenizer, pieces_of(tmp_path / "test.txt")[0])
        assert whole.nll_nats == pytest.approx(expected, rel=1e-12)
        for context in ("carried", "reset") if tokenizer.eos_ends_lines else ("carried",):
            one, other = (
                evaluate_split(table, store, "test", context=context, shard=(which, 2))
                for which in range(2)
            )
            all_of_it = evaluate_split(table, store, "test", context=context)
            added = one.nll_nats + other.nll_nats
            assert added == pytest.approx(all_of_it.nll_nats, rel=1e-12)
            assert one.tokens == other.tokens == all_of_it.tokens, "counts are the whole split's"
            with pytest.raises(StoppedReading):
                evaluate_split(table, store, "test", context=context, should_stop=lambda: True)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_text_piece_by_piece(self, kind: str) -> None:
        tokenizer = make_tokenizer(kind)
        table = TablePredictor(tokenizer.vocab_size)
        text = "the café, \n\n 日本語🙂 zyx  sat"
        ids = [tokenizer.eos_id, *tokenizer.encode(text)]
        state, logprob = start_text(table, tokenizer.eos_id), 0.0
        for start in range(0, len(text), 3):
            score, state = extend_text(table, tokenizer, state, text=text[start : start + 3])
            logprob += score.logprob
        assert logprob == pytest.approx(-sum(table.expected_nlls(ids)), rel=1e-12)

    def test_what_is_generated_is_what_it_expects(self, table: TablePredictor) -> None:
        prompt = random_ids(CHUNK_STEPS)  # with `<eos>` one more than a call reads
        how = {"bos_id": EOS, "eos_id": EOS, "seed": 0, "top_p": None, "stop_at_eos": False}
        greedy = generate_ids(table, prompt, tokens=10, temperature=0.0, never=[EOS], **how)
        assert table.rows_predicted == 10, "only after the last step of the prompt"
        text = [EOS, *prompt]
        for drawn in greedy:
            nlls = [table.expected_nlls([*text[-2:], n])[-1] for n in range(VOCABULARY)]
            nlls[EOS] = math.inf
            assert drawn == np.argmin(nlls)
            text.append(drawn)
        assert len({*generate_ids(table, prompt, tokens=99, temperature=1.0, **how)}) > 5

    def test_a_prediction_may_exclude_tokens_but_must_be_a_number(
        self, table: TablePredictor
    ) -> None:
        how = {
            "bos_id": EOS,
            "eos_id": EOS,
            "seed": 0,
            "top_p": None,
            "temperature": 1.0,
            "stop_at_eos": False,
        }
        table.current_VV[:, 1:] = -math.inf
        assert generate_ids(table, [], tokens=3, **how) == [0] * 3
        for impossible in (-math.inf, math.nan):
            table.current_VV[:, 0] = impossible
            with pytest.raises(SglmError, match="not a number"):
                generate_ids(table, [], tokens=3, **how)

    @pytest.mark.parametrize("kind", KINDS)
    def test_as_a_language_model(self, kind: str) -> None:
        tokenizer = make_tokenizer(kind)
        table = TablePredictor(tokenizer.vocab_size)
        lm = LanguageModel(table, tokenizer=tokenizer, name="table")
        for text, score in zip(LINES, lm.score(LINES), strict=True):
            expected = table.expected_nlls([tokenizer.eos_id, *tokenizer.encode(text)])
            np.testing.assert_allclose(score.token_logprobs, np.negative(expected), rtol=1e-12)
            extended, _ = lm.extend(lm.start(), text)
            assert extended.logprob == pytest.approx(score.logprob, rel=1e-12)
        scored = lm.score("the cat", eos=tokenizer.eos_ends_lines)
        assert lm.perplexity("the cat").nll_nats == pytest.approx(-scored.logprob)
        assert lm.generate("the", seed=0).startswith("the")
        with pytest.raises(AttributeError, match="not a single network"):
            _ = lm.model


class TestNetwork:
    @pytest.fixture(params=[1, 10, 512])
    def predictor(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> NetworkPredictor:
        """With few and many rows of logits at a time."""
        monkeypatch.setattr(sglm.scoring.predictor, "LOGIT_ROWS", request.param)
        return NetworkPredictor(make_network(VOCABULARY))

    def test_targets_are_entries_of_the_distributions(self, predictor: NetworkPredictor) -> None:
        ids_TB = torch.tensor(random_ids(40)).view(10, 4)
        targets_TB = torch.tensor(random_ids(40, seed=1)).view(10, 4)
        logprobs_TB, after = predictor.read(ids_TB, targets_TB, predictor.start(4))
        blocks, also_after = predictor.distributions(ids_TB, predictor.start(4))
        taken = list(blocks)
        assert [rows.start for rows, _ in taken] == [0, *(rows.stop for rows, _ in taken[:-1])]
        logprobs_NV = torch.cat([logprobs_MV for _, logprobs_MV in taken])
        # Each row's probabilities, in float32.
        torch.testing.assert_close(logprobs_NV.exp().sum(1), torch.ones(40))
        picked = logprobs_NV.gather(1, targets_TB.view(-1, 1)).view(10, 4).double()
        torch.testing.assert_close(logprobs_TB, picked, rtol=1e-6, atol=0.0)
        assert all(map(torch.equal, after.hidden, also_after.hidden))
        lane = [EOS, *ids_TB[:, 1].tolist()]
        _, state = predictor.read(torch.tensor([[EOS]]), None, predictor.start(1))
        alone_TB, _ = predictor.read(ids_TB[:-1, 1:2], ids_TB[1:, 1:2], state)
        expected = [-nll for nll in plain_nlls(predictor.model, lane)[1:]]
        np.testing.assert_allclose(alone_TB[:, 0], expected, rtol=1e-5)

    def test_ignored_targets_cost_nothing_and_change_nothing(
        self, predictor: NetworkPredictor
    ) -> None:
        ids_TB = torch.tensor(random_ids(40)).view(10, 4)
        all_TB, _ = predictor.read(ids_TB, ids_TB, predictor.start(4))
        kept_TB = torch.arange(40).view(10, 4) % 3 == 0
        targets_TB = ids_TB.where(kept_TB, IGNORED)
        some_TB, _ = predictor.read(ids_TB, targets_TB, predictor.start(4))
        torch.testing.assert_close(some_TB, all_TB * kept_TB, rtol=1e-6, atol=0.0)
        none_TB, _ = predictor.read(ids_TB, torch.full_like(ids_TB, IGNORED), predictor.start(4))
        assert not none_TB.any()

    def test_the_last_steps_only(self, predictor: NetworkPredictor) -> None:
        ids_TB = torch.tensor(random_ids(12)).view(6, 2)
        whole = torch.cat([m for _, m in predictor.distributions(ids_TB, predictor.start(2))[0]])
        for steps in (1, 4, 6):
            blocks, _ = predictor.distributions(ids_TB, predictor.start(2), last_steps=steps)
            last = torch.cat([logprobs_MV for _, logprobs_MV in blocks])
            torch.testing.assert_close(last, whole[-2 * steps :])

    def test_lanes_are_taken_in_any_order_and_more_than_once(
        self, predictor: NetworkPredictor
    ) -> None:
        ids_TB = torch.tensor(random_ids(12)).view(4, 3)
        _, state = predictor.read(ids_TB, None, predictor.start(3))
        kept = [part.clone() for part in state.hidden]
        selected = predictor.select(state, torch.tensor([2, 0, 2, 2]))
        for part, chosen in zip(state.hidden, selected.hidden, strict=True):
            assert torch.equal(chosen, part[[2, 0, 2, 2]])
        predictor.read(torch.tensor([[1, 2, 3, 4]]), None, selected)
        assert all(map(torch.equal, state.hidden, kept)), "a state stays as it was"

    def test_what_it_switches_it_switches_back_even_between_two_blocks(self) -> None:
        model = make_network(VOCABULARY)
        ids_TB = torch.tensor(random_ids(40)).view(40, 1)

        def numbers(predictor: NetworkPredictor) -> Iterator[list[float]]:
            state = predictor.start(1)
            yield []
            state = predictor.select(state, torch.tensor([0]))
            yield []
            logprobs_TB, state = predictor.read(ids_TB, ids_TB, state)
            yield logprobs_TB[:, 0].tolist()
            blocks, _ = predictor.distributions(ids_TB, state)
            yield []
            yield from (logprobs_MV.flatten().tolist() for _, logprobs_MV in blocks)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sglm.scoring.predictor, "LOGIT_ROWS", 10)
            expected = list(numbers(NetworkPredictor(model)))
            assert len(expected) == 8
            model.dropout = DropoutRates(input=0.5, between=0.5, output=0.5, weight=0.5)
            model.compute_dtype = torch.bfloat16
            model.train()
            steps = numbers(NetworkPredictor(model))
            for numbers_of_step in expected:
                assert next(steps) == numbers_of_step, "no dropout, no half precision"
                assert model.training
                assert model.compute_dtype == torch.bfloat16
                assert torch.is_grad_enabled()
                assert not torch.is_inference_mode_enabled()

    def test_products_are_of_the_type_asked_for(self) -> None:
        model = make_network(VOCABULARY)
        ids_TB = torch.tensor(random_ids(40)).view(40, 1)
        exact_TB, _ = NetworkPredictor(model).read(ids_TB, ids_TB, model.start_state(1))
        half = NetworkPredictor(model, compute_dtype=torch.bfloat16)
        half_TB, _ = half.read(ids_TB, ids_TB, model.start_state(1))
        assert model.compute_dtype is None
        assert half_TB.dtype == torch.float64
        error = (half_TB - exact_TB).abs().max()
        assert 1e-5 < error < 0.1, "three decimal digits"

    def test_full_float32_wherever_something_is_computed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entered = []
        monkeypatch.setattr(
            sglm.scoring.predictor,
            "full_float32",
            lambda device: entered.append(device) or full_float32(device),
        )
        predictor = NetworkPredictor(make_network(VOCABULARY))
        ids_TB = torch.tensor([[1], [2]])
        state = predictor.select(predictor.start(1), torch.tensor([0]))
        predictor.read(ids_TB, ids_TB, state)
        blocks, _ = predictor.distributions(ids_TB, state)
        assert len(entered) == 3
        list(blocks)
        assert len(entered) == 4
        assert {*entered} == {torch.device("cpu")}


def test_nothing_else_in_scoring_knows_the_network() -> None:
    for path in sorted((ROOT / "sglm" / "scoring").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = [
            node.module or "" if isinstance(node, ast.ImportFrom) else alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        ]
        from_model = [name for name in imported if name.startswith("sglm.model")]
        assert bool(from_model) == (path.name == "predictor.py"), (path.name, from_model)
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert path.name == "predictor.py" or not names & {"NetworkPredictor", "LSTMState"}


@pytest.mark.parametrize("scale", [1, 40, 1000])
def test_log_probabilities_of_logits_of_any_size(scale: float) -> None:
    """Sums of powers of two leave float32's range, upwards and downwards; the result does not."""
    model = make_network(300)
    with torch.no_grad():
        model.softmax_bias.mul_(scale)
        model.softmax_bias[:150] -= scale
    features_NH = torch.rand(1500, model.shape.widths[-1]) * 2 - 1
    targets_N = torch.arange(1500) % 300
    for sign in (1, -1):
        with torch.no_grad():
            model.softmax_bias.sub_(model.softmax_bias.mean()).add_(sign * 3 * scale)
            logits_NV = features_NH.double() @ model.output_weight.double().t()
            logits_NV += model.softmax_bias.double()
        expected_N = logits_NV.log_softmax(1).gather(1, targets_N[:, None])[:, 0]
        with evaluating(model):
            found_N = target_logprobs(model, features_NH, targets_N)
        # A logit of thousands has an absolute error of 1e-4 in float32.
        torch.testing.assert_close(found_N, expected_N, rtol=1e-5, atol=2e-7 * scale + 2e-5)
