"""The laws of the training step (docs/algorithm.md), in float64 on tiny sizes."""

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sglm.config import RegularizerConfig
from sglm.dni.estimator import Observation, PlainTruncation, StateGradientEstimator
from sglm.dni.learned import LearnedEstimator
from sglm.dni.synthesizer import LinearSynthesizer, Prediction, Synthesizer, make_synthesizer
from sglm.model.language_model import DropoutRates, LSTMLanguageModel, ModelShape
from sglm.optim.precision import unchecked_precision
from sglm.optim.schedule import Mode, StepPlan
from sglm.text.batcher import Window
from sglm.train.learner import Learner
from sglm.train.step import StepResult, train_step
from sglm.train.window_decision import DecisionRule, WindowDecision
from sglm.train.window_pass import WindowPass
from tests.dni.test_learned import observe

B, T, V = 3, 4, 7
CPU = torch.device("cpu")
REAL, SYNTHETIC = StepPlan(1.0, Mode.REAL, 0), StepPlan(1.0, Mode.SYNTHETIC, 0)


class Oracle(Synthesizer):
    """Knows the true future gradient."""

    def __init__(self, truth_BS: Tensor) -> None:
        super().__init__(truth_BS.shape[1])
        self.truth_BS = truth_BS
        self.weight = nn.Parameter(torch.zeros((), dtype=truth_BS.dtype))

    def forward(self, state_BS: Tensor, memory: Tensor | None = None) -> Prediction:
        return Prediction(self.truth_BS + 0 * self.weight, None, None)


def windows(count: int, steps: int = T, seed: int = 0) -> list[Window]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (count * steps + 1, B), generator=generator)
    return [
        Window(
            ids[k * steps : (k + 1) * steps],
            ids[k * steps + 1 : (k + 1) * steps + 1],
            is_first=k == 0,
            is_last=False,
        )
        for k in range(count)
    ]


def make_learner(
    estimator: StateGradientEstimator | None = None,
    dropout: DropoutRates | None = None,
    dtype: str = "fp64",
) -> Learner:
    torch.manual_seed(0)
    model = LSTMLanguageModel(
        ModelShape(vocab_size=V, layers=2, hidden=5, embedding=5, tied=True), dropout
    )
    if dtype == "fp64":
        model = model.double()
        precision = unchecked_precision("fp32", CPU)
    else:
        precision = unchecked_precision(dtype, CPU)
        model.compute_dtype = precision.compute_dtype
    return Learner(
        model=model,
        window_pass=WindowPass(model),
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True),
        precision=precision,
        estimator=estimator or PlainTruncation(),
        state=model.start_state(B),
        learning_rate=1e-2,
    )


def take_step(
    learner: Learner,
    window: Window,
    plan: StepPlan,
    step: int,
    *,
    probe_every: int = 2,
) -> StepResult:
    """A step as a run with such a rule takes it."""
    estimator = learner.estimator
    rule = DecisionRule(
        probe_every=None if isinstance(estimator, PlainTruncation) else probe_every,
    )
    decision = rule.decide(step, plan, window)
    return train_step(learner, window, decision, learning_rate=learner.rate(plan))


def gradients(learner: Learner) -> list[Tensor]:
    return [p.grad.clone() for p in learner.model.parameters() if p.grad is not None]


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def all_equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) for a, b in zip(left, right, strict=True)
    )


def learned(net: Synthesizer, learning_rate: float = 1e-3, **settings: Any) -> LearnedEstimator:
    return LearnedEstimator(net, learning_rate=learning_rate, factor=1.0, **settings)


def random_estimator(seed: int, kind: str = "mlp") -> LearnedEstimator:
    torch.manual_seed(seed)
    net = make_synthesizer(kind, 20, hidden=6).double()
    nn.init.normal_(net.heads.weight)  # type: ignore[union-attr, arg-type]
    return learned(net)


def test_an_exact_synthesizer_makes_two_windows_into_one() -> None:
    """Gradients of two windows of T add up to those of one of 2T: the definition of exactness."""
    still = StepPlan(0.0, Mode.SYNTHETIC, 0)  # rate zero: look at gradients, move nothing
    (whole,) = windows(1, 2 * T)
    learner = make_learner()
    take_step(learner, whole, StepPlan(0.0, Mode.REAL, 0), 0)
    expected = [g * whole.targets_TB.numel() for g in gradients(learner)]

    first, second = windows(2)
    learner = make_learner()
    _, middle = learner.model.features(first.inputs_TB, learner.state)
    leaf = middle.as_leaf()
    features, _ = learner.model.features(second.inputs_TB, leaf)
    learner.model.nll(features, second.targets_TB).backward()
    truth = leaf.packed_gradient()

    learner = make_learner(learned(Oracle(truth), trust_bound=False))
    tokens = first.targets_TB.numel()
    take_step(learner, first, still, 1)
    total = [g * tokens for g in gradients(learner)]
    take_step(learner, second, StepPlan(0.0, Mode.REAL, 0), 2)
    total = [a + g * tokens for a, g in zip(total, gradients(learner), strict=True)]
    for found, right in zip(total, expected, strict=True):
        # float64: sums of a few hundred products, in another order
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)

    learner = make_learner()  # and plain truncation does not have the law
    take_step(learner, first, still, 1)
    missing = [g * tokens for g in gradients(learner)]
    take_step(learner, second, still, 2)
    truncated = [a + g * tokens for a, g in zip(missing, gradients(learner), strict=True)]
    assert max((a - b).abs().max() for a, b in zip(truncated, expected, strict=True)) > 1e-3


def test_observed_gradient_is_that_of_summed_nats_per_lane() -> None:
    """Lane b's target is ∂(nats of lane b)/∂(its state): independent of batch and window."""
    first, second = windows(2)
    seen: list[Tensor] = []

    class Spy(PlainTruncation):
        """Takes notes of what it is handed."""

        def end_window(self, observation: Observation) -> None:
            seen.append(observation.gradient_BS)

    learner = make_learner(Spy())
    still = StepPlan(0.0, Mode.REAL, 0)
    take_step(learner, first, still, 0)
    take_step(learner, second, still, 1)
    model = learner.model
    for lane in range(B):
        _, state = model.features(first.inputs_TB[:, [lane]], model.start_state(1))
        leaf = state.as_leaf()
        features, _ = model.features(second.inputs_TB[:, [lane]], leaf)
        model.nll(features, second.targets_TB[:, [lane]]).backward()
        torch.testing.assert_close(seen[1][[lane]], leaf.packed_gradient(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "mlp", "recurrent"])
def test_a_synthesizer_that_returns_zero_is_plain_truncation_bitwise(kind: str) -> None:
    torch.manual_seed(3)
    zero = make_synthesizer(kind, 20, hidden=6).double()
    rates = DropoutRates(input=0.2, between=0.2, output=0.2, embedding=0.2, weight=0.2)
    plain = make_learner(None, rates)
    augmented = make_learner(learned(zero, learning_rate=0.0), rates)
    results = []
    for learner in (plain, augmented):
        torch.manual_seed(9)
        results.append(
            [take_step(learner, w, SYNTHETIC, k).nll_nats for k, w in enumerate(windows(15))]
        )
    assert all_equal(*results)
    assert all_equal(weights(plain.model), weights(augmented.model))


def test_real_phases_do_not_depend_on_the_synthesizer() -> None:
    learners = [make_learner(random_estimator(seed)) for seed in (1, 2)]
    for learner in learners:
        for k, window in enumerate(windows(6)):
            take_step(learner, window, REAL, k)
    assert all_equal(weights(learners[0].model), weights(learners[1].model))
    for learner in learners:  # while in synthetic phases they do
        for k, window in enumerate(windows(6)):
            take_step(learner, window, SYNTHETIC, k)
    assert not all_equal(weights(learners[0].model), weights(learners[1].model))


def test_real_phases_draw_no_noise() -> None:
    """They are plain truncation, bitwise, however loud the net is that learns meanwhile."""
    rates = DropoutRates(input=0.2, between=0.2, output=0.2, embedding=0.2, weight=0.2)
    estimator, noise = random_estimator(1), torch.Generator().manual_seed(0)
    estimator.injection.noise, before = noise, noise.get_state()
    plain, augmented = make_learner(None, rates), make_learner(estimator, rates)
    for learner in (plain, augmented):
        torch.manual_seed(9)
        for step, window in enumerate(windows(6)):
            take_step(learner, window, REAL, step)
    assert all_equal(weights(plain.model), weights(augmented.model))
    assert torch.equal(noise.get_state(), before)
    for step, window in enumerate(windows(6)):  # while in synthetic phases it is heard
        for learner in (plain, augmented):
            take_step(learner, window, SYNTHETIC, step)
    assert not all_equal(weights(plain.model), weights(augmented.model))


def test_regression_never_moves_the_model_nor_the_loss_the_synthesizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    estimator = random_estimator(1)
    learner = make_learner(estimator)
    first, second = windows(2)
    take_step(learner, first, REAL, 0)

    model_before, net_before = weights(learner.model), weights(estimator.synthesizer)
    gradients_before = gradients(learner)
    observe(estimator, torch.randn(B, 20).double(), learner.state)
    assert all_equal(weights(learner.model), model_before)
    assert all_equal(gradients(learner), gradients_before)
    assert not all_equal(weights(estimator.synthesizer), net_before)

    estimator.teaching.optimizer.zero_grad()
    monkeypatch.setattr(estimator.teaching, "learn", lambda lesson: None)
    net_before = weights(estimator.synthesizer)
    take_step(learner, second, SYNTHETIC, 1)
    assert not all_equal(weights(learner.model), model_before)
    assert all_equal(weights(estimator.synthesizer), net_before)
    assert all(p.grad is None for p in estimator.synthesizer.parameters())


def test_the_loss_scale_is_that_of_what_is_injected_too() -> None:
    """In fp16 the loss is multiplied by 2¹⁶ before its backward pass."""
    (window,) = windows(1)
    found = {}
    for precision in ("fp32", "fp16"):
        torch.manual_seed(1)
        net = LinearSynthesizer(20)
        nn.init.normal_(net.heads.weight)
        learner = make_learner(learned(net, trust_bound=False), dtype=precision)
        take_step(learner, window, StepPlan(0.0, Mode.SYNTHETIC, 0), 1)
        found[precision] = torch.cat([g.flatten() for g in gradients(learner)])
    # fp16 has eleven binary digits; without the synthetic part the difference is about as large
    # as the gradient.
    error = (found["fp16"] - found["fp32"]).norm() / found["fp32"].norm()
    assert error < 1e-2


def test_what_is_injected_is_no_part_of_the_reported_loss() -> None:
    first, _ = windows(2)
    estimator = random_estimator(1)
    estimator.injection.bounded = False
    with_it, without = make_learner(estimator), make_learner()
    synthetic = take_step(with_it, first, SYNTHETIC, 1)
    real = take_step(without, first, REAL, 1)
    assert torch.equal(synthetic.nll_nats, real.nll_nats)
    assert not torch.equal(synthetic.grad_norm, real.grad_norm)


@pytest.mark.parametrize(
    ("make", "pure", "measured"),
    [
        (lambda w: (w, REAL, 1), True, False),
        (lambda w: (w, REAL, 2), True, True),  # a probe
        (lambda w: (w, SYNTHETIC, 1), False, False),
        (lambda w: (w, SYNTHETIC, 2), True, True),  # a probe
        (lambda w: (w._replace(is_last=True), SYNTHETIC, 1), True, True),  # no future to speak for
    ],
)
def test_only_probes_measure_the_synthesizer_and_they_are_pure(
    make: Callable[[Window], tuple[Window, StepPlan, int]], pure: bool, measured: bool
) -> None:
    estimator = random_estimator(1)
    estimator.injection.bounded = False
    learner, plain = make_learner(estimator), make_learner()
    window, plan, step = make(windows(1)[0])
    result = take_step(learner, window, plan, step)
    assert (result.agreement is not None) == measured
    take_step(plain, window, REAL, step)
    assert all_equal(gradients(learner), gradients(plain)) == pure


def test_lanes_start_anew_at_the_first_window_of_an_epoch() -> None:
    learner = make_learner(random_estimator(1, "recurrent"))
    first, second = windows(2)
    take_step(learner, first, StepPlan(0.0, Mode.REAL, 0), 0)
    once = learner.state.packed()
    take_step(learner, second, StepPlan(0.0, Mode.REAL, 0), 1)
    take_step(learner, first, StepPlan(0.0, Mode.REAL, 0), 2)
    assert torch.equal(learner.state.packed(), once)


def test_clipping_caps_the_gradient_and_reports_what_it_was() -> None:
    window = windows(1)[0]
    free, capped = make_learner(), make_learner()
    capped.clip_norm = 1e-3
    norm = take_step(free, window, REAL, 0).grad_norm
    assert torch.equal(take_step(capped, window, REAL, 0).grad_norm, norm)
    total = torch.stack([g.norm() for g in gradients(capped)]).norm()
    assert total.item() == pytest.approx(1e-3, rel=1e-4)  # clip_grad_norm_ adds 1e-6 to the norm


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    estimator = random_estimator(1)
    learner = make_learner(estimator)
    first, second = windows(2)
    take_step(learner, first, REAL, 0)
    with torch.no_grad():
        good = learner.model.softmax_bias.clone()
        learner.model.softmax_bias[0] = float("inf")
    before = weights(learner.model), weights(estimator.synthesizer)
    result = take_step(learner, second, REAL, 1)
    assert not result.taken
    assert all_equal(weights(learner.model), before[0])
    assert all_equal(weights(estimator.synthesizer), before[1])
    assert torch.isfinite(learner.state.packed()).all()
    with torch.no_grad():
        learner.model.softmax_bias.copy_(good)
    assert take_step(learner, second, REAL, 2).taken


def test_fp16_overflow_lowers_the_scale_and_skips_both_nets_then_recovers() -> None:
    torch.manual_seed(1)
    estimator = learned(LinearSynthesizer(20))
    learner = make_learner(estimator, dtype="fp16")
    start = learner.precision.loss_scale()
    assert start > 1
    learner.precision.scaler.load_state_dict(
        {**learner.precision.scaler.state_dict(), "scale": 2.0**40}
    )
    before = weights(learner.model), weights(estimator.synthesizer)
    scales, taken = [], []
    for k, window in enumerate(windows(40)):
        taken.append(take_step(learner, window, SYNTHETIC, k).taken)
        scales.append(learner.precision.loss_scale())
        if k == 0:
            assert not taken[0]
            assert scales[0] == 2.0**39
            assert all_equal(weights(learner.model), before[0])
            assert all_equal(weights(estimator.synthesizer), before[1])
    assert taken[-1]
    assert not all_equal(weights(learner.model), before[0])
    assert not all_equal(weights(estimator.synthesizer), before[1])


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_types_observe_the_unscaled_gradient(dtype: str) -> None:
    """The synthesizer's target has the same unit in every precision."""
    first, second = windows(2)
    norms = {}
    for name in ("fp32", dtype):
        estimator = learned(LinearSynthesizer(20))
        learner = make_learner(estimator, dtype=name)
        take_step(learner, first, StepPlan(0.0, Mode.REAL, 0), 0)
        take_step(learner, second, StepPlan(0.0, Mode.REAL, 0), 10)
        norms[name] = estimator.trust.norm.item()
    # 8 bits of precision in bfloat16, over a handful of products in a row
    assert norms[dtype] == pytest.approx(norms["fp32"], rel=0.05)


def test_the_penalty_is_in_nats_per_token_and_reaches_every_layer() -> None:
    (window,) = windows(1)
    still = StepPlan(0.0, Mode.REAL, 0)

    def after(activation: float, temporal: float) -> tuple[list[Tensor], Tensor]:
        learner = make_learner()
        weights = RegularizerConfig(activation=activation, temporal=temporal)
        learner.window_pass = WindowPass(learner.model, regularizer=weights)
        result = take_step(learner, window, still, 0)
        return gradients(learner), result.nll_nats

    plain, plain_nll = after(0.0, 0.0)
    found, nll = after(2.0, 1.0)
    learner = make_learner()
    outputs_TBH, _ = learner.model.outputs(learner.model.embed(window.inputs_TB)[0], learner.state)
    penalty = 2 * outputs_TBH.square().mean() + outputs_TBH.diff(dim=0).square().mean()
    extra = torch.autograd.grad(penalty, list(learner.model.parameters()), materialize_grads=True)
    for each, before, added in zip(found, plain, extra, strict=True):
        # float64: one sum in two orders
        torch.testing.assert_close(each, before + added, rtol=1e-10, atol=1e-12)
    assert nll == plain_nll  # what is reported stays the likelihood


def test_without_coefficients_a_penalty_leaves_no_trace() -> None:
    def after(regularizer: RegularizerConfig | None) -> list[Tensor]:
        learner = make_learner(
            random_estimator(1),
            DropoutRates(input=0.2, between=0.2, output=0.2, embedding=0.2, weight=0.2),
        )
        if regularizer is not None:
            learner.window_pass = WindowPass(learner.model, regularizer=regularizer)
        for step, window in enumerate(windows(4)):
            take_step(learner, window, SYNTHETIC, step)
        return weights(learner.model)

    off = RegularizerConfig(activation=0.0, temporal=0.0)
    assert all_equal(after(off), after(None))
    assert not all_equal(after(RegularizerConfig(temporal=1.0)), after(None))


def test_both_uses_of_tied_weights_go_through_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The softmax gets the matrix as the embedding handed it on, else the cheaper way is lost."""
    learner, given = make_learner(), []
    plain = LSTMLanguageModel.nll

    def nll(self: LSTMLanguageModel, *args: Any, **named: Any) -> Tensor:
        given.append(named["output_weight"])
        return plain(self, *args, **named)

    monkeypatch.setattr(LSTMLanguageModel, "nll", nll)
    take_step(learner, windows(1)[0], REAL, 0)
    assert learner.model.shape.tied
    assert "TiedEmbedding" in given[0].grad_fn.name()


def test_a_renewed_state_is_that_of_todays_weights_and_passes_no_gradient_on() -> None:
    """Plain truncation from the state to which today's weights come, from before the past windows;
    with the gradient through the past, and with the state as it was carried, it is another."""
    first, second, third = windows(3)
    learner = make_learner()
    learner.past, learner.renews_state = deque(maxlen=2), True
    for window in (first, second):
        train_step(learner, window, WindowDecision(mode=Mode.REAL), learning_rate=1e-2)
    model, carried = learner.model, learner.state
    with torch.no_grad():
        inputs_TB = torch.cat((first.inputs_TB, second.inputs_TB))
        _, renewed = model.features(inputs_TB, model.start_state(B))
    assert not torch.allclose(renewed.packed(), carried.packed())  # the weights have moved
    model.zero_grad()
    features_TBH, _ = model.features(third.inputs_TB, renewed)
    (model.nll(features_TBH, third.targets_TB) / (T * B)).backward()
    right = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    train_step(learner, third, WindowDecision(mode=Mode.REAL), learning_rate=0.0)
    for found, expected in zip(gradients(learner), right, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)  # float64, order of sums


def test_a_recurrent_synthesizer_starts_anew_with_the_lanes() -> None:
    estimator = learned(make_synthesizer("recurrent", 20, hidden=6).double(), learning_rate=0.0)
    learner, still = make_learner(estimator), StepPlan(0.0, Mode.REAL, 0)
    memories = []
    for step, window in enumerate([*windows(2), windows(1)[0]]):
        take_step(learner, window, still, step)
        assert estimator.recurrent_state is not None
        memories.append(estimator.recurrent_state.clone())
    assert torch.equal(memories[2], memories[0])
    assert not torch.equal(memories[1], memories[0])
