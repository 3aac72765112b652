"""The laws of the adjoint estimator, in float64 on tiny sizes; and that it learns."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sglm.config import parse_config
from sglm.dni import row_lessons
from sglm.dni.adjoint import AdjointEstimator
from sglm.dni.adjoint_pass import adjoint_gradients
from sglm.dni.estimator import StretchBeginning
from sglm.dni.expected_row import ExpectedRow, softmax_residual
from sglm.model.language_model import DropoutRates, LSTMLanguageModel, ModelShape
from sglm.model.softmax_loss import IGNORED
from sglm.optim.schedule import Mode
from sglm.runtime.ranks import ALONE
from sglm.text.batcher import ComingText, Window
from sglm.train.build import build_estimator
from sglm.train.learner import Learner, capture, restore
from sglm.train.step import train_step
from sglm.train.window_decision import WindowDecision
from sglm.train.window_pass import WindowPass
from tests.dni.exact import future_gradients
from tests.dni.test_estimator import INJECT, PLAIN, batcher
from tests.train.test_step import B, T, V, all_equal, gradients, make_learner, weights

PROBE = WindowDecision(mode=Mode.SYNTHETIC, probe=True)
EVERY_DROPOUT = DropoutRates(input=0.2, between=0.2, output=0.2, embedding=0.2, weight=0.2)


def a_model(
    *, layers: int = 1, tied: bool = True, words: int = V, cutoffs: tuple[int, ...] = ()
) -> LSTMLanguageModel:
    torch.manual_seed(0)
    shape = ModelShape(
        vocab_size=words, layers=layers, hidden=6, embedding=6, tied=tied, cutoffs=cutoffs
    )
    model = LSTMLanguageModel(shape).double()
    if cutoffs:  # the words in an order that is not that of their ids
        model.start_from_unigram(torch.arange(words))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # predictions that differ from each other
    return model


def some_text(steps: int, lanes: int = B) -> ComingText:
    ids = torch.randint(V, (steps + 1, lanes), generator=torch.Generator().manual_seed(4))
    return ComingText(ids[:-1], ids[1:])


def with_adjoint(dropout: DropoutRates | None = None, dtype: str = "fp64", **named: Any) -> Learner:
    learner = make_learner(None, dropout, dtype)
    named = {"factor": 1.0, "trust_bound": False, "exact": False} | named
    estimator = AdjointEstimator(learner.model, **named)
    learner.estimator = estimator
    learner.window_pass = WindowPass(learner.model, keeps_features=estimator.wants_features)
    return learner


def estimator_of(learner: Learner) -> AdjointEstimator:
    assert isinstance(learner.estimator, AdjointEstimator)
    return learner.estimator


def q_of(learner: Learner) -> ExpectedRow:
    q = estimator_of(learner).expected_row
    assert q is not None
    return q


@pytest.mark.parametrize(
    ("layers", "tied", "cutoffs"),
    [(1, True, ()), (2, True, ()), (2, False, ()), (2, True, (2, 4)), (2, False, (3,))],
)
def test_with_the_true_residual_it_is_the_exact_gradient(
    layers: int, tied: bool, cutoffs: tuple[int, ...]
) -> None:
    model = a_model(layers=layers, tied=tied, cutoffs=cutoffs)
    text, boundaries = some_text(4 * T + 1), 4
    state = model.start_state(B)

    def residual(outputs_CBH: Tensor, targets_CB: Tensor) -> Tensor:
        return softmax_residual(model, outputs_CBH, targets_CB)

    found_PBS = adjoint_gradients(
        model, state, text, window=T, boundaries=boundaries, residual=residual
    )
    _, right_PBS = future_gradients(StretchBeginning(model, state, text, T), boundaries)
    # float64: the same sums in another order
    torch.testing.assert_close(found_PBS, right_PBS, rtol=1e-10, atol=1e-12)
    assert right_PBS.abs().max() > 1e-2


@pytest.mark.parametrize("stretch", [1, 2, 3])
@pytest.mark.parametrize("dropout", [None, EVERY_DROPOUT])
def test_exactly_injected_windows_add_up_to_one(stretch: int, dropout: DropoutRates | None) -> None:
    """For a model that does not move, in evaluation mode where it has dropout; plain truncation
    does not have the law."""
    count = 3

    def total(learner: Learner, decision: WindowDecision) -> list[Tensor]:
        text = batcher(stretch=stretch, epoch=count)
        text.lookahead = count * T
        learner.model.eval()
        sums = None
        for step in range(count):
            window = text.at(step)
            last = WindowDecision(mode=Mode.SYNTHETIC, probe=True)
            train_step(learner, window, last if window.is_last else decision, learning_rate=0.0)
            scaled = [g * window.targets_TB.numel() for g in gradients(learner)]
            sums = scaled if sums is None else [a + b for a, b in zip(sums, scaled, strict=True)]
        assert sums is not None
        return sums

    text = batcher(stretch=1, epoch=count)
    parts = [text.at(step) for step in range(count)]
    whole = parts[0]._replace(
        inputs_TB=torch.cat([each.inputs_TB for each in parts]),
        targets_TB=torch.cat([each.targets_TB for each in parts]),
        coming=None,
    )
    learner = make_learner(None, dropout)
    learner.model.eval()
    train_step(learner, whole, PLAIN, learning_rate=0.0)
    right = [g * whole.targets_TB.numel() for g in gradients(learner)]
    found = total(with_adjoint(dropout, stretch=stretch, exact=True), INJECT)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)  # float64: order of sums
    truncated = total(with_adjoint(dropout, stretch=stretch, exact=True), PLAIN)
    assert max((a - b).abs().max() for a, b in zip(truncated, right, strict=True)) > 1e-4


def test_where_targets_are_the_models_own_draws_the_mean_is_zero() -> None:
    """The score identity: E[∂ log p(y)/∂s] = 0 for y drawn from p. Not so for other text."""
    lanes, steps = 4000, 3
    model, generator = a_model(), torch.Generator().manual_seed(1)
    state = model.start_state(lanes)
    ids = [torch.zeros(lanes, dtype=torch.int64)]
    running = state
    with torch.no_grad():
        for _ in range(steps):
            features_TBH, running = model.features(ids[-1][None], running)
            p_BV = model.logits(features_TBH[0]).softmax(-1)
            ids.append(torch.multinomial(p_BV, 1, generator=generator)[:, 0])
    drawn = ComingText(torch.stack(ids[:-1]), torch.stack(ids[1:]))
    other = ComingText(drawn.inputs_CB, torch.ones_like(drawn.targets_CB))

    def standard_errors(text: ComingText) -> float:
        (gradient_BS,) = adjoint_gradients(
            model,
            state,
            text,
            window=steps,
            boundaries=1,
            residual=lambda outputs, targets: softmax_residual(model, outputs, targets),
        )
        error_S = gradient_BS.std(dim=0) / lanes**0.5
        return float((gradient_BS.mean(dim=0) / error_S).abs().max())

    assert standard_errors(drawn) < 4.5  # the largest of 12: by chance once in ten thousand
    assert standard_errors(other) > 20


def test_what_q_learns_from_is_the_expected_row() -> None:
    """∂(nats)/∂h + W[y] = Wᵀ·softmax(Wh + b), with dropout, injected or not."""
    seen: list[tuple[Tensor, Tensor]] = []
    learner = with_adjoint(EVERY_DROPOUT)
    q, model = q_of(learner), learner.model
    observe = q.observe
    q.mean_error.fill_(1.0)  # it passes for better than the mean, so that something is injected

    def watched(
        features_NH: Tensor, expected_NH: Tensor, has_target_N: Tensor, **named: Any
    ) -> tuple[Tensor, Tensor]:
        right_NH = model.logits(features_NH).softmax(-1) @ model.output_weight
        seen.append((expected_NH, right_NH.detach()))
        return observe(features_NH, expected_NH, has_target_N, **named)

    q.observe = watched  # type: ignore[method-assign]
    for step, decision in enumerate((PLAIN, INJECT)):
        train_step(learner, batcher(stretch=1).at(step), decision, learning_rate=1e-2)
    gradients_PBS = estimator_of(learner)._gradients_PBS
    assert gradients_PBS is not None
    assert float(gradients_PBS.abs().sum() * estimator_of(learner).factor) > 0
    for expected_NH, right_NH in seen:
        torch.testing.assert_close(expected_NH, right_NH, rtol=1e-10, atol=1e-12)  # order of sums
    assert len(seen) == 2


@pytest.mark.parametrize("tied", [True, False])
def test_the_true_residual_of_an_adaptive_softmax_is_the_gradient_of_its_loss(tied: bool) -> None:
    model = a_model(tied=tied, cutoffs=(2, 4))
    features = torch.randn(10, B, 6, dtype=torch.float64, requires_grad=True)
    targets_TB = some_text(10).targets_CB.clone()
    targets_TB[3, 1] = IGNORED
    (right,) = torch.autograd.grad(model.nll(features, targets_TB), features)
    found = softmax_residual(model, features.detach(), targets_TB)
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)  # order of sums


def test_of_an_adaptive_softmax_q_learns_what_each_cluster_adds() -> None:
    """Three clusters of targets whose rows differ by the cluster alone, which no feature tells."""
    torch.manual_seed(0)
    q, rows_KH = ExpectedRow(6, clusters=3).double(), torch.randn(3, 6, dtype=torch.float64)
    clusters_N = torch.arange(60) % 3
    features_NH = torch.randn(60, 6, dtype=torch.float64)
    optimizer = torch.optim.Adam(q.parameters(), lr=0.05)
    for _ in range(150):
        loss, _ = q.observe(
            features_NH,
            rows_KH[clusters_N],
            torch.ones(60, dtype=torch.bool),
            clusters_N=clusters_N,
            ranks=ALONE,
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    wrong = (q(features_NH, clusters_N) - rows_KH[clusters_N]).square().mean()
    assert wrong < 0.01 * rows_KH.square().mean()


def test_a_lesson_is_of_some_steps_and_all_get_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_lessons, "_LESSON_TOKENS", 5)  # of twelve: every third of four steps
    learner = with_adjoint()
    q, window = q_of(learner), batcher(stretch=1).at(0)
    observe, taken = q.observe, []

    def watched(features_NH: Tensor, *others: Tensor, **named: Any) -> tuple[Tensor, Tensor]:
        taken.append(features_NH.unflatten(0, (-1, B)))
        return observe(features_NH, *others, **named)

    q.observe = watched  # type: ignore[method-assign]
    for _ in range(3):
        train_step(learner, window, PLAIN, learning_rate=0.0)
    features_TBH, _ = learner.model.features(window.inputs_TB, learner.model.start_state(B))
    for first, features in enumerate(taken):
        assert torch.equal(features, features_TBH[first::3].detach())


def test_while_it_injects_nothing_training_is_plain_truncation_bitwise() -> None:
    """Its reading draws no masks, and its own weights no numbers."""
    results = []
    adjoint = with_adjoint(EVERY_DROPOUT, factor=0.0, stretch=2)
    for learner in (make_learner(None, EVERY_DROPOUT), adjoint):
        torch.manual_seed(9)
        text = batcher(stretch=2)
        for step in range(8):
            window = text.at(step)
            decision = PROBE if window.is_last else (INJECT, PROBE, PLAIN)[step % 3]
            train_step(learner, window, decision, learning_rate=1e-2)
        results.append(weights(learner.model))
        assert learner.model.training
    assert all_equal(*results)


@pytest.mark.parametrize("learning_rate", [0.0, 5e-2])
def test_nothing_is_injected_before_q_beats_the_mean_of_its_targets(learning_rate: float) -> None:
    """On windows that it has not learned from; one that never learns is no better."""
    learner, text = with_adjoint(learning_rate=learning_rate), batcher(stretch=1, epoch=20)
    factors = []
    for step in range(55):  # not to the end of a text
        train_step(learner, text.at(step), PLAIN, learning_rate=0.0)
        factors.append(float(estimator_of(learner).factor))
    assert factors[0] == 0  # it has learned from all that there was
    assert factors[-1] == (1 if learning_rate else 0)
    injected_BS = estimator_of(learner).estimate(learner.state)
    assert bool(injected_BS.abs().max() > 0) == bool(learning_rate)


def test_it_comes_near_the_exact_gradient() -> None:
    """With q learned, on text that it did not learn from; the bare target rows do not."""
    learner = with_adjoint(learning_rate=2e-2, stretch=1, hidden=32)
    model = learner.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # a softmax that depends on the feature
    estimator, text = estimator_of(learner), batcher(stretch=1, epoch=200)
    for step in range(400):
        train_step(learner, text.at(step), PLAIN, learning_rate=0.0)
    coming, state = some_text(4 * T), model.start_state(B)
    _, right_PBS = future_gradients(StretchBeginning(model, state, coming, T), 1)

    def unexplained(residual: Any) -> float:
        found_PBS = adjoint_gradients(
            model, state, coming, window=T, boundaries=1, residual=residual
        )
        return float((found_PBS - right_PBS).square().sum() / right_PBS.square().sum())

    def target_rows(outputs_CBH: Tensor, targets_CB: Tensor) -> Tensor:
        return -model.output_weight.detach()[targets_CB]

    assert unexplained(estimator.residual) < 0.1
    assert unexplained(target_rows) > 0.3


def test_a_probe_compares_with_the_window_alone() -> None:
    """With the true residual prediction and observation are the same, though more text is shown."""
    learner = with_adjoint(exact=True, stretch=2, factor=None)
    text = batcher(stretch=2)
    for step in range(3):
        result = train_step(learner, text.at(step), PROBE, learning_rate=1e-2)
        assert result.agreement is not None
        # The observed one is float32's sum in no case: float64, in another order
        assert float(result.agreement.relative_mse) < 1e-20
    assert estimator_of(learner).status().probes == 3
    # One standard error is taken off; of nearly equal ones little
    assert float(estimator_of(learner).factor) > 0.5


def test_gradients_of_a_stretch_are_read_once_and_from_the_first_outgoing_state() -> None:
    learner = with_adjoint(exact=True, stretch=3)
    estimator, text = estimator_of(learner), batcher(stretch=3)
    train_step(learner, text.at(0), INJECT, learning_rate=1e-2)
    kept_PBS = estimator._gradients_PBS
    assert kept_PBS is not None
    assert len(kept_PBS) == 3  # boundaries 1 to 3
    train_step(learner, text.at(1), INJECT, learning_rate=1e-2)
    assert estimator._gradients_PBS is kept_PBS
    # Where the first window was a probe, the reading begins at the second one's end.
    learner = with_adjoint(exact=True, stretch=3)
    train_step(learner, text.at(0), PROBE, learning_rate=1e-2)
    assert estimator_of(learner)._gradients_PBS is None
    train_step(learner, text.at(1), INJECT, learning_rate=1e-2)
    later_PBS = estimator_of(learner)._gradients_PBS
    assert later_PBS is not None
    assert len(later_PBS) == 2


def test_after_long_windows_it_reads_its_reach_once_a_stretch() -> None:
    """From the state of the moment; between readings it injects nothing."""
    learner, text = with_adjoint(exact=True, stretch=2, reach=3), batcher(stretch=2)
    model = learner.model
    for step in range(4):
        window = text.at(step)
        train_step(learner, window, PLAIN, learning_rate=0.0)
        # What it would have injected after that window.
        injected_BS = estimator_of(learner).estimate(learner.state)
        if step % 2:
            assert not injected_BS.any()
            continue
        beginning = StretchBeginning(model, learner.state, text.ahead(step, 3), T)
        _, (right_BS,) = future_gradients(beginning, 1)
        torch.testing.assert_close(injected_BS, right_BS, rtol=1e-10, atol=1e-12)  # order of sums


@pytest.mark.parametrize(("reach", "lessons"), [(3, 2), (10, 4)])
def test_of_long_windows_q_learns_once_a_stretch(reach: int, lessons: int) -> None:
    learner, text = with_adjoint(stretch=2, reach=reach), batcher(stretch=2)
    for step in range(4):
        train_step(learner, text.at(step), PLAIN, learning_rate=0.0)
    assert int(q_of(learner).windows) == lessons


def test_a_probe_reads_no_further_than_what_is_injected() -> None:
    learner, text = with_adjoint(exact=True, reach=2), batcher(stretch=1)
    train_step(learner, text.at(0), PLAIN, learning_rate=0.0)
    window, state = text.at(1), learner.state
    found = train_step(learner, window, PROBE, learning_rate=0.0).agreement
    assert found is not None
    ahead = ComingText(window.inputs_TB[:2], window.targets_TB[:2])
    _, (predicted_BS,) = future_gradients(StretchBeginning(learner.model, state, ahead, T), 1)
    whole = ComingText(window.inputs_TB, window.targets_TB)
    _, (observed_BS,) = future_gradients(StretchBeginning(learner.model, state, whole, T), 1)
    right = (predicted_BS - observed_BS).square().sum() / observed_BS.square().sum()
    assert float(found.relative_mse) == pytest.approx(float(right), rel=1e-6)  # a float32 number


def test_a_step_that_is_not_finite_teaches_nothing() -> None:
    learner, text = with_adjoint(), batcher(stretch=1)
    train_step(learner, text.at(0), PLAIN, learning_rate=1e-2)
    before = capture(learner)["estimator"]["expected_row"]
    before = {name: value.clone() for name, value in before.items()}
    with torch.no_grad():
        learner.model.softmax_bias[0] = float("nan")
    result = train_step(learner, text.at(1), PROBE, learning_rate=1e-2)
    assert not bool(result.taken)
    after = q_of(learner).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert estimator_of(learner).status().probes == 0


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
@pytest.mark.parametrize("exact", [True, False])
def test_it_goes_on_from_the_midst_of_a_stretch_bitwise(stop: int, exact: bool) -> None:
    """With what it read, which cannot be read again; and with what q has learned."""

    def run(learner: Learner, first: int, last: int) -> None:
        for step in range(first, last):
            decision = PROBE if step == 4 else INJECT
            train_step(learner, batcher(stretch=3).at(step), decision, learning_rate=1e-2)

    def fresh() -> Learner:
        if exact:  # injects from the first window on
            return with_adjoint(stretch=3, exact=True, reach=T + 1)
        return with_adjoint(stretch=3, learning_rate=5e-2, factor=None)

    whole = fresh()
    run(whole, 0, 7)
    assert float(estimator_of(whole).factor) > 0
    first, second = fresh(), fresh()
    run(first, 0, stop)
    restore(second, capture(first))
    run(second, stop, 7)
    assert all_equal(weights(whole.model), weights(second.model))
    if not exact:
        assert all_equal(weights(q_of(whole)), weights(q_of(second)))


def without_some_targets(window: Window) -> Window:
    """The first step of the text has none, nor has any of the last lane; what they were is gone."""

    def without(targets: Tensor) -> Tensor:
        targets = targets.clone()
        targets[0] = targets[:, -1] = IGNORED
        return targets

    coming = window.coming
    if coming is not None:
        coming = ComingText(coming.inputs_CB, without(coming.targets_CB))
    return window._replace(targets_TB=without(window.targets_TB), coming=coming)


@pytest.mark.parametrize("exact", [False, True])
def test_where_nothing_is_to_be_predicted_nothing_comes_back(exact: bool) -> None:
    learner = with_adjoint(exact=exact)
    train_step(learner, batcher(stretch=1).at(0), PLAIN, learning_rate=0.0)  # q is not zero
    targets_TB = without_some_targets(batcher(stretch=1).at(1)).targets_TB
    outputs_TBH = torch.randn(T, B, 5, dtype=torch.float64)
    residual_TBH = estimator_of(learner).residual(outputs_TBH, targets_TB)
    assert torch.equal(residual_TBH.abs().amax(dim=2) > 0, targets_TB != IGNORED)


def test_with_targets_left_out_it_is_still_the_exact_gradient() -> None:
    learner, text = with_adjoint(exact=True, factor=None), batcher(stretch=1)
    for step in range(2):
        window = without_some_targets(text.at(step))
        result = train_step(learner, window, PROBE, learning_rate=1e-2)
        assert result.agreement is not None
        assert float(result.agreement.relative_mse) < 1e-20  # float64, in another order
    train_step(learner, without_some_targets(text.at(2)), INJECT, learning_rate=1e-2)
    gradients_PBS = estimator_of(learner)._gradients_PBS
    assert gradients_PBS is not None
    lanes_B = gradients_PBS[0].abs().amax(dim=1) > 0
    assert lanes_B.tolist() == [True] * (B - 1) + [False]


def test_q_learns_nothing_from_what_has_no_target() -> None:
    """The same as from the others alone; and from a window without any, nothing at all."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 8, 4, generator=generator) for _ in range(3)]
    has_target_N = torch.tensor([True, False] * 4)
    found, right, nothing = (ExpectedRow(4, 3) for _ in range(3))
    for each in (right, nothing):
        each.load_state_dict(found.state_dict())

    def learn(
        q: ExpectedRow, features_NH: Tensor, expected_NH: Tensor, has_target_N: Tensor
    ) -> Tensor:
        loss, finite = q.observe(features_NH, expected_NH, has_target_N, ranks=ALONE)
        q.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in q.parameters():
                assert parameter.grad is not None
                parameter -= (0.1 * parameter.grad).where(finite, 0.0)
        return finite

    start = weights(nothing) + [each.clone() for each in nothing.buffers()]
    for features_NH, expected_NH in draws:
        assert learn(found, features_NH, expected_NH, has_target_N)
        assert learn(right, features_NH[::2], expected_NH[::2], has_target_N[::2])
        assert not learn(nothing, features_NH, expected_NH, ~has_target_N & has_target_N)
    for name, value in right.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value)  # float32, in another order
    assert all_equal(weights(nothing) + list(nothing.buffers()), start)
    assert not all_equal(weights(found), start[:4])


def test_what_q_is_shown_has_a_target() -> None:
    learner, shown = with_adjoint(), []
    q, observe = q_of(learner), q_of(learner).observe

    def watched(features: Tensor, expected: Tensor, has_target_N: Tensor, **named: Any) -> Any:
        shown.append(has_target_N)
        return observe(features, expected, has_target_N, **named)

    q.observe = watched  # type: ignore[method-assign]
    window = without_some_targets(batcher(stretch=1).at(0))
    train_step(learner, window, INJECT, learning_rate=1e-2)
    assert torch.equal(shown[0], window.targets_TB.flatten() != IGNORED)
    assert all(bool(each.isfinite().all()) for each in weights(q))


def test_with_loss_scaling_q_learns_in_nats() -> None:
    """fp16: what comes back is divided by the scale; eleven binary digits are left."""
    rows = []
    for dtype in ("fp16", "fp32"):
        learner = with_adjoint(dtype=dtype)
        train_step(learner, batcher(stretch=1).at(0), PLAIN, learning_rate=0.0)
        rows.append(q_of(learner).mean_H)
    torch.testing.assert_close(rows[0], rows[1], rtol=0.05, atol=1e-3)


def test_expected_row_starts_as_the_mean_of_its_targets() -> None:
    q = ExpectedRow(4, 3)
    expected_NH = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    features_NH = torch.ones(10, 4)
    _, finite = q.observe(features_NH, expected_NH, torch.ones(10, dtype=torch.bool), ranks=ALONE)
    assert bool(finite)
    torch.testing.assert_close(q(features_NH[0]), expected_NH.mean(0))
    assert not bool(q.is_better)
    # The first window is none that it was measured on: its mean was not known.
    assert (float(q.error), float(q.mean_error)) == (0, 0)


def test_q_is_not_better_by_rounding() -> None:
    """A new network's targets are all but constant: the processes of a training must not differ in
    what they make of a tie."""
    q = ExpectedRow(4, 3)
    q.mean_error.fill_(1.0)
    for error, is_better in ((1.0, False), (1 - 1e-6, False), (0.99, True)):
        q.error.fill_(error)
        assert bool(q.is_better) is is_better


def test_the_activation_penalty_is_part_of_the_true_residual() -> None:
    """As it is of what q learns from: α·mean(h²) per token, times the tokens."""
    learner = with_adjoint(exact=True, activation=2.0)
    model, coming = learner.model, some_text(T)
    leaf = model.start_state(B).as_leaf()
    features_TBH, _ = model.features(coming.inputs_CB, leaf)
    penalty = 2.0 * features_TBH.square().mean() * coming.targets_CB.numel()
    (model.nll(features_TBH, coming.targets_CB) + penalty).backward()
    (found_BS,) = adjoint_gradients(
        model,
        model.start_state(B),
        coming,
        window=T,
        boundaries=1,
        residual=estimator_of(learner).residual,
    )
    # float64: the same sums in another order
    torch.testing.assert_close(found_BS, leaf.packed_gradient(), rtol=1e-10, atol=1e-12)


def test_past_the_end_of_the_text_there_is_nothing() -> None:
    """A reading for three boundaries where the text ends at the second."""
    learner, text = with_adjoint(exact=True, stretch=3), batcher(stretch=3, epoch=2)
    text.lookahead = 4 * T
    train_step(learner, text.at(0), INJECT, learning_rate=0.0)
    kept_PBS = estimator_of(learner)._gradients_PBS
    assert kept_PBS is not None
    assert [bool(each_BS.abs().max() > 0) for each_BS in kept_PBS] == [True, False, False]


def test_noise_has_the_gradients_lengths() -> None:
    injected = []
    for noise in (None, torch.Generator().manual_seed(0)):
        learner = with_adjoint(exact=True, noise=noise)
        train_step(learner, batcher(stretch=1).at(0), PROBE, learning_rate=0.0)
        train_step(learner, batcher(stretch=1).at(1), PLAIN, learning_rate=0.0)
        injected.append(estimator_of(learner).estimate(learner.state))
    one_BS, other_BS = injected
    torch.testing.assert_close(one_BS.norm(dim=1), other_BS.norm(dim=1))  # float32's noise
    assert not torch.allclose(one_BS, other_BS)


def test_with_another_lanes_text_only_what_is_injected_is_another() -> None:
    """Each lane's own state with the text of the lane before; probes measure with its own text."""
    learner, text = with_adjoint(exact=True, other_lane=True), batcher(stretch=1)
    found = train_step(learner, text.at(0), PROBE, learning_rate=0.0).agreement
    assert found is not None
    assert float(found.relative_mse) < 1e-20  # float64
    own = text.ahead(0, 3)
    before = ComingText(*(torch.stack([ids[:, lane - 1] for lane in range(B)], 1) for ids in own))
    model, state = learner.model, learner.state
    _, (right_BS,) = future_gradients(StretchBeginning(model, state, before, T), 1)
    _, (own_BS,) = future_gradients(StretchBeginning(model, state, own, T), 1)
    injected_BS = estimator_of(learner).estimate(state)
    torch.testing.assert_close(injected_BS, right_BS, rtol=1e-10, atol=1e-12)  # order of sums
    assert not torch.allclose(injected_BS, own_BS)


def test_the_bound_trusts_nothing_before_a_first_probe_and_caps_afterwards() -> None:
    learner, text = with_adjoint(exact=True, trust_bound=True), batcher(stretch=1)
    train_step(learner, text.at(1), PLAIN, learning_rate=0.0)
    estimator = estimator_of(learner)
    assert float(estimator.estimate(learner.state).abs().max()) == 0
    train_step(learner, text.at(2), PROBE, learning_rate=0.0)
    within_BS = estimator.estimate(learner.state)
    assert float(within_BS.abs().max()) > 0
    assert estimator._gradients_PBS is not None
    estimator._gradients_PBS *= 1e6
    lengths_B = estimator.estimate(learner.state).norm(dim=1)
    # float32's bound times float64's direction
    torch.testing.assert_close(
        lengths_B, estimator.trust.longest.expand_as(lengths_B).double(), rtol=1e-6, atol=0
    )


def test_the_factor_is_calibrated_on_what_it_predicts() -> None:
    """One that predicts the opposite is not injected."""

    class Opposite(AdjointEstimator):
        def residual(self, outputs_CBH: Tensor, targets_CB: Tensor) -> Tensor:
            return -super().residual(outputs_CBH, targets_CB)

    factors = []
    for kind in (AdjointEstimator, Opposite):
        learner, text = make_learner(), batcher(stretch=1)
        learner.estimator = kind(learner.model, exact=True, trust_bound=False)
        for step in range(4):
            result = train_step(learner, text.at(step), PROBE, learning_rate=0.0)
        assert result.agreement is not None
        factors.append((float(estimator_of(learner).factor), float(result.agreement.cosine)))
    (right, cosine), (wrong, opposite) = factors
    assert right > 0.5
    assert wrong == 0
    assert cosine == pytest.approx(1)
    assert opposite == pytest.approx(-1)


def test_the_configuration_reaches_the_estimator() -> None:
    config = parse_config(
        {
            "synthesizer": {
                "kind": "adjoint",
                "every": 3,
                "hidden": 9,
                "factor": 0.25,
                "trust_bound": False,
                "learning_rate": 0.125,
            },
            "regularizer": {"activation": 1.5},
        },
        "test",
    )
    estimator = build_estimator(config, a_model(words=50))
    assert isinstance(estimator, AdjointEstimator)
    assert estimator.expected_row is not None
    assert (estimator.stretch, estimator.activation) == (3, 1.5)
    assert estimator.expected_row.hidden.out_features == 9
    assert (float(estimator.factor), estimator.injection.bounded) == (0, False)  # q is no better
    assert float(estimator.injection.factor) == 0.25
    assert estimator.row_lessons.optimizer.param_groups[0]["lr"] == 0.125
