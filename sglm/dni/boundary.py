"""The truncation boundary: where one window's state becomes the next one's input.

Plain truncated backpropagation lets no gradient through. Here a synthesizer stands in for the
future: it says what gradient would come back, and learns from what the next window does send back.
`docs/algorithm.md` derives the terms. Shapes: B lanes, S coordinates of a lane's state, C steps of
coming text, P boundaries of a stretch, K sequences that are read for them, N numbers of a summary,
M states. Gradients are state gradients: of nats summed over a lane's window, not divided by batch
or window.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sglm.dni.injection import injected_gradient
from sglm.dni.synthesizer import LookaheadSynthesizer, Prediction, Synthesizer
from sglm.dni.teaching import Lesson, Reading, regression_loss
from sglm.dni.trust import Agreement, Trust, agreement
from sglm.kernels.choice import chosen
from sglm.model.state import LSTMState
from sglm.optim.optimizer import step_where_finite
from sglm.runtime.ranks import ALONE, Ranks

_ECHO_MEAN_OVER = 20  # windows; a runaway feeds on itself within about so many
_CAPPED_MEAN_OVER = 20  # injections

TokenFeatures = Callable[[Tensor, Tensor], Tensor]


def reads_side_by_side(window: int, lookahead: int) -> bool:
    """Whether each boundary's coming text is read by itself, or that of a stretch in one go.

    Windows shorter than the lookahead are read along, so that no token is read twice. Longer ones
    are read from each boundary only as far as the lookahead, side by side as if they were lanes of
    their own: what lies further on tells little.
    """
    return window >= lookahead


class Boundary:
    """Predicts, injects, bounds and learns; owns the synthesizer and its optimizer.

    No method waits for a number from the device: what depends on one is decided there.

    Args:
        synthesizer: predicts a state gradient from the packed state.
        learning_rate: of the synthesizer's own Adam, constant (Shang & Zhang 2019, sec. 4).
        factor: multiplies what is injected; None calibrates itself (`Trust.factor`).
        trust_bound: cap each lane's synthetic gradient (`Trust.bounded`), without which
            bootstrapped targets can feed on themselves.
        probe_every: one window in so many injects nothing, whatever its mode, and is measured.
        stretch: windows whose lessons are learned together.
        token_features: `(inputs_CB, targets_CB) -> (C, B, F)`: what the tokens of a step look like
            to a synthesizer that looks ahead.
        lookahead: steps past a boundary that it surely reads.
        noise: inject random directions of the prediction's length, drawn from here (a control).
        bootstrapped: learn from what next windows send back; otherwise only from `teach`.
        ranks: the processes that share the lanes.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        learning_rate: float,
        factor: float | None,
        trust_bound: bool = True,
        probe_every: int = 10,
        stretch: int = 1,
        token_features: TokenFeatures | None = None,
        lookahead: int = 10,
        noise: torch.Generator | None = None,
        bootstrapped: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        self.synthesizer = synthesizer
        self.optimizer = torch.optim.Adam(synthesizer.parameters(), lr=learning_rate, fused=True)
        self.trust_bound = trust_bound
        self.probe_every = probe_every
        self.stretch = stretch
        self.token_features = token_features
        self.lookahead = lookahead
        self.noise = noise
        self.bootstrapped = bootstrapped
        self.ranks = ranks
        self._injected_gradient = chosen(injected_gradient)
        device = next(synthesizer.parameters()).device
        self.trust = Trust(synthesizer.size, device, ranks)
        self._one = torch.ones((), device=device)
        self.fixed_factor = None if factor is None else torch.full((), factor, device=device)
        self.memory: Tensor | None = None
        # The stretch that is being walked along: what its tokens look like, at which of them what
        # lies ahead of a boundary starts, the boundaries' summaries (with the graph that made them,
        # for lessons are learned through it), the lessons so far.
        self.features_CKF: Tensor | None = None
        self.starts: Tensor | None = None
        self.summaries: tuple[Tensor, ...] | None = None  # (B, N), a boundary each
        self.index = 0
        self.lessons: list[Lesson] = []
        # Running means: how much of what it hears is its own word; how often the bound cut.
        self.echo = torch.zeros((), device=device)
        self.capped = torch.zeros((), device=device)

    def is_probe(self, step: int) -> bool:
        """Whether this step injects nothing, whatever its mode.

        Where probes and stretches would fall into step, so that some places of a stretch are never
        measured, the probes move on by one each time the pattern comes round.
        """
        if math.gcd(self.stretch, self.probe_every) > 1:
            step += step // math.lcm(self.stretch, self.probe_every)
        return step % self.probe_every == 0

    def reset(self) -> None:
        """The lanes start anew: what the synthesizer remembers of them is void."""
        self.memory = None

    def look_ahead(self, inputs_CB: Tensor, targets_CB: Tensor, window: int) -> None:
        """A new stretch begins: summarises what lies ahead of each of its boundaries.

        Args:
            inputs_CB, targets_CB: token ids of the stretch and beyond, as far as is to be read.
            window: T, the distance of the boundaries.
        """
        assert self.token_features is not None
        # Where the text ends earlier, its last token is read instead.
        last, device = inputs_CB.shape[0] - 1, inputs_CB.device
        boundaries_P = torch.arange(self.stretch + 1, device=device) * window
        self.starts = boundaries_P.clamp_max(last)
        if reads_side_by_side(window, self.lookahead):
            steps_RP = torch.arange(self.lookahead, device=device)[:, None] + boundaries_P
            inputs_CB, targets_CB = (
                ids_CB[steps_RP.clamp_max(last)].transpose(1, 2).flatten(1)
                for ids_CB in (inputs_CB, targets_CB)
            )
            self.starts = boundaries_P[:1]
        self.features_CKF = self.token_features(inputs_CB, targets_CB).detach()
        self._summarise()

    def read(self, incoming: LSTMState) -> Reading:
        """Takes in the incoming state, and moves on to the window's end."""
        reading = Reading(incoming.detach().packed(), self.memory, self.index)
        if self.synthesizer.remembers:
            with torch.no_grad():
                self.memory = self.synthesizer(*reading[:2]).memory
        self.index += 1
        return reading

    @torch.no_grad()
    def synthesize(self, outgoing: LSTMState) -> Tensor:
        """What is injected at these states after the window: `(B, S)`, detached.

        That is factor·ŝ(s), bounded; or noise of that length.
        """
        said: Prediction = self.synthesizer(outgoing.packed(), self._context())
        # A synthesizer that has diverged injects nothing, and the model goes on.
        gradient_BS, kept_B1 = self._injected_gradient(
            said.gradient_BS, unit=self.trust.unit, longest=self._longest, factor=self.factor
        )
        if self.trust_bound and self.index == 1:  # once a stretch
            weight = min(1.0, self.stretch / _CAPPED_MEAN_OVER)
            self.capped.lerp_((kept_B1 < 1).float().mean(), weight)
        if self.noise is None:
            return gradient_BS
        lanes, size = gradient_BS.shape
        random_BS = self.ranks.own(
            torch.randn(
                lanes * self.ranks.count, size, generator=self.noise, device=gradient_BS.device
            )
        )
        lengths_B1 = gradient_BS.norm(dim=1, keepdim=True)
        noise_BS: Tensor = random_BS * (lengths_B1 / random_BS.norm(dim=1, keepdim=True))
        return noise_BS

    @property
    def factor(self) -> Tensor:
        """What multiplies the prediction: the given number, or the calibrated one."""
        return self.trust.factor if self.fixed_factor is None else self.fixed_factor

    @property
    def _longest(self) -> Tensor | None:
        return self.trust.longest if self.trust_bound else None

    def observe(
        self,
        reading: Reading,
        observed_BS: Tensor,
        outgoing: LSTMState,
        pure: bool,
        probe: bool = True,
    ) -> None:
        """Takes in the gradient that the window's backward pass left at the incoming state.

        Args:
            reading: from `read` at the window's incoming state.
            observed_BS: the state gradient there. Lanes that are not finite teach nothing.
            outgoing: the state after the window; the auxiliary task's target comes from it.
            pure: whether the window injected nothing. Otherwise the observation contains the
                synthesizer's own word about a later future.
            probe: whether the synthesizer is measured on it, if it is pure.
        """
        probe = pure and probe
        if self.bootstrapped or probe:
            next_BS = self._foreseen(outgoing) if self.synthesizer.auxiliary else None
            self.lessons.append(Lesson(*reading, observed_BS.detach(), next_BS, pure, probe))

    def end_window(self, is_last: bool) -> Agreement | None:
        """The window is done; a stretch, or the text, may end with it.

        Then the stretch's probes measure the synthesizer, and its lessons are learned. What it says
        of them now, before it learns, is what it said when they were read: its weights have stood
        still.

        Returns:
            How good it was on those probes, if there were any; NaN where one was not finite.
        """
        if self.index < self.stretch and not is_last:
            return None
        lessons, self.lessons, self.index = self.lessons, [], 0
        if not lessons:
            return None
        with torch.set_grad_enabled(self.bootstrapped):
            said = self._say(lessons)
        found = self._measure(lessons, said)
        if self.bootstrapped:
            self._regress(lessons, said)
        return found

    def teach(self, states_PBS: Tensor, gradients_PBS: Tensor) -> None:
        """Learns from exact gradients at the first boundaries of the stretch that begins.

        Args:
            states_PBS: packed states at the stretch's boundaries, the first one first.
            gradients_PBS: the gradients there. Lanes that are not finite teach nothing.
        """
        taught = zip(states_PBS, gradients_PBS, strict=True)
        lessons = [
            Lesson(state_BS, None, place, gradient_BS, None, pure=True, probe=False)
            for place, (state_BS, gradient_BS) in enumerate(taught)
        ]
        said = self._say(lessons)
        self._update_trust(said.gradient_BS.detach() * self.trust.unit, gradients_PBS.flatten(0, 1))
        self._regress(lessons, said)
        if self.features_CKF is not None:
            self._summarise()  # as it is read now

    def _say(self, lessons: list[Lesson]) -> Prediction:
        """What the synthesizer says of their states, in its own unit."""
        said: Prediction = self.synthesizer(
            torch.cat([lesson.state_BS for lesson in lessons]), self._contexts(lessons)
        )
        return said

    @torch.no_grad()
    def _measure(self, lessons: list[Lesson], said: Prediction) -> Agreement | None:
        """How good it was on the probes among them; and how much it hears its own word."""
        predicted_PBS = (said.gradient_BS * self.trust.unit).chunk(len(lessons))
        heard = list(zip(predicted_PBS, lessons, strict=True))
        probes = [(said_BS, lesson.observed_BS) for said_BS, lesson in heard if lesson.probe]
        found = None
        if probes:
            predicted_MS, observed_MS = map(torch.cat, zip(*probes, strict=True))
            observed_MS = observed_MS.where(torch.isfinite(observed_MS).all(), math.nan)
            found = agreement(predicted_MS, observed_MS, self.ranks)
            if self.bootstrapped:
                for said_BS, observed_BS in probes:
                    self._update_trust(said_BS, observed_BS)
        # Its own echo is only looked for once in a stretch: it does not come and go.
        mixed = next(((said_BS, each) for said_BS, each in heard if not each.pure), None)
        if mixed is not None:
            told = agreement(mixed[0], mixed[1].observed_BS, self.ranks)
            echo = 1 - told.relative_mse.float()
            weight = min(1.0, self.stretch / _ECHO_MEAN_OVER)
            self.echo.lerp_(echo.where(torch.isfinite(echo), self.echo), weight)
        return found

    def _update_trust(self, predicted_MS: Tensor, observed_MS: Tensor) -> None:
        """One pure observation, of the prediction as it would be injected."""
        bounded_MS, _ = self._injected_gradient(
            predicted_MS, unit=self._one, longest=self._longest, factor=self._one
        )
        self.trust.observe(bounded_MS, observed_MS)

    def _context(self) -> Tensor | None:
        """What the synthesizer is given beside the state at the current boundary."""
        return self.memory if self.summaries is None else self.summaries[self.index]

    def _contexts(self, lessons: list[Lesson]) -> Tensor | None:
        """The same for all of these lessons."""
        if self.summaries is not None:
            return torch.cat([self.summaries[lesson.place] for lesson in lessons])
        memories = [lesson.memory for lesson in lessons if lesson.memory is not None]
        return torch.cat(memories) if memories else None  # a net that remembers has one lesson

    def _summarise(self) -> None:
        assert isinstance(self.synthesizer, LookaheadSynthesizer)
        assert self.features_CKF is not None
        assert self.starts is not None
        found = self.synthesizer.summarise(self.features_CKF, self.starts)
        # Each lane was read once for all boundaries, or once for each of them.
        each = (self.stretch + 1) // len(self.starts)
        by_place = torch.unflatten(found, 1, (-1, each)).transpose(1, 2).flatten(0, 1)
        self.summaries = by_place.unbind()

    @torch.no_grad()
    def _foreseen(self, outgoing: LSTMState) -> Tensor:
        """The auxiliary task's target (Jaderberg et al. 2017, sec. 3.1): one's own next word."""
        said: Prediction = self.synthesizer(outgoing.detach().packed(), self._context())
        return said.gradient_BS

    def _regress(self, lessons: list[Lesson], said: Prediction) -> None:
        """One step of the synthesizer's optimizer on the mean squared error over all lanes."""
        loss = regression_loss(lessons, said, self.trust.unit, self.ranks)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        told = loss.detach().clone()
        gradients = [p.grad for p in self.synthesizer.parameters() if p.grad is not None]
        self.ranks.average([*gradients, told])
        # One that is not finite (or of which no lane teaches anything) leaves everything as it is.
        step_where_finite(self.optimizer, torch.isfinite(told))

    def state_dict(self) -> dict[str, Any]:
        """Everything here that steps change, of all ranks' lanes; to be called by all of them."""
        self.ranks.average([self.capped])
        return {
            "synthesizer": self.synthesizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "trust": self.trust.state_dict(),
            "memory": _every(self.ranks, self.memory),
            "stretch": {
                "features": _every(self.ranks, self.features_CKF, dim=1),
                "boundaries": self.starts,
                "index": self.index,
                "lessons": [
                    [_every(self.ranks, each) for each in lesson] for lesson in self.lessons
                ],
            },
            "noise": None if self.noise is None else self.noise.get_state(),
            "echo": self.echo,
            "capped": self.capped,
        }

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave, as far as it is this rank's."""
        device = self.echo.device

        def place(value: Any, dim: int = 0) -> Any:
            if not isinstance(value, Tensor):
                return value
            return (self.ranks.own(value, dim) if value.dim() else value).to(device)

        self.synthesizer.load_state_dict(tree["synthesizer"])
        self.optimizer.load_state_dict(tree["optimizer"])
        self.trust.load_state_dict(tree["trust"])
        self.memory = place(tree["memory"])
        stretch = tree["stretch"]
        self.features_CKF = place(stretch["features"], dim=1)
        self.index = stretch["index"]
        self.lessons = [
            Lesson(*map(place, self._of_today(values))) for values in stretch["lessons"]
        ]
        if self.features_CKF is not None:
            self.starts = stretch["boundaries"].to(device)
            self._summarise()
        if self.noise is not None:
            self.noise.set_state(tree["noise"])
        self.echo, self.capped = place(tree["echo"]), place(tree["capped"])

    def _of_today(self, saved: list[Any]) -> list[Any]:
        """A lesson's values. Earlier code measured at once, so that it did not say what was pure,
        and kept the auxiliary target in the unit of the gradients."""
        if len(saved) == len(Lesson._fields):
            return saved
        next_BS = saved[4] if saved[4] is None else saved[4] / self.trust.unit.to(saved[4].device)
        return [*saved[:4], next_BS, True, False]


def _every(ranks: Ranks, own: Any, dim: int = 0) -> Any:
    """The lanes of all ranks, where it has lanes."""
    return ranks.gather(own, dim) if isinstance(own, Tensor) and own.dim() else own
