"""The whole configuration of a training run: typed, strict, with a sentence about every field.

Read from a TOML file with one table per section. A key that is not listed here is an error that
names the nearest one. "Off" is None in Python and the string "none" in TOML, which has no null.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _none_from_text(value: Any) -> Any:
    return None if value == "none" else value


PositiveInt = Annotated[int, Field(gt=0, le=2**31)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Off = BeforeValidator(_none_from_text)
_LONGEST_SCHEDULE = 1e9
# One way to give the lengths of cycles; `cycles`, a list of them, is the other.
GEOMETRIC_CYCLES = ("first", "growth", "count")
_REACH = 10  # of what reads text


class Section(BaseModel):
    """One table of the file: unknown keys fail, no value is converted or changed later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelConfig(Section):
    """The network."""

    layers: Annotated[int, Field(ge=1, le=64)] = 2
    """Number of LSTM layers."""
    hidden: PositiveInt = 256
    """Units of each layer (the last one has `embedding` units when tied)."""
    embedding: Annotated[PositiveInt | None, Off] = None
    """Size of the word vectors; none: as `hidden`."""
    tied: bool = True
    """The softmax uses the embedding as its weights."""
    softmax: Literal["full", "adaptive"] = "full"
    """adaptive: for vocabularies of ten thousands of words on a CPU: a softmax over the frequent
    words and the clusters of the others, and one inside each cluster (Grave et al. 2017)."""
    cutoffs: Annotated[
        Annotated[list[PositiveInt], Field(min_length=1, max_length=100)] | None, Off
    ] = None
    """Of an adaptive softmax: how many words, by count, come before each cluster; none: so many
    that 80 % of the training text are words before the first, and 95 % before the second."""

    @model_validator(mode="after")
    def _cutoffs_ascend(self) -> "ModelConfig":
        if self.cutoffs is None:
            return self
        if self.softmax == "full":
            raise ValueError('cutoffs are of an adaptive softmax; set softmax = "adaptive"')
        if sorted(set(self.cutoffs)) != self.cutoffs:
            raise ValueError(f"cutoffs = {self.cutoffs} must ascend")
        return self


class DropoutConfig(Section):
    """Probabilities of dropping, all off by default; masks are locked for a whole window."""

    input: Rate = 0.0
    """On the word vectors that go into the first layer."""
    between: Rate = 0.0
    """Between layers."""
    output: Rate = 0.0
    """On the inputs of the softmax."""
    embedding: Rate = 0.0
    """Whole words of the embedding."""
    weight: Rate = 0.0
    """Entries of the recurrent matrices (DropConnect), which start √(1 − rate) times as large."""


class RegularizerConfig(Section):
    """Penalties on the last layer's outputs, added to the loss in nats per token; off by default
    (Merity, McCann & Socher 2017; AWD-LSTM trains with 2 and 1)."""

    activation: NonNegative = 0.0
    """Times the mean square of the outputs after dropout: keeps them small."""
    temporal: NonNegative = 0.0
    """Times the mean square of their change from one step to the next: keeps them slow."""


class OptimizerConfig(Section):
    """How the model's weights move."""

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    """adamw: decoupled weight decay; adam: weight decay as an L2 term; sgd: with momentum."""
    learning_rate: Positive = 4e-3
    """The peak at every restart; 4e-3 suits the default size, larger models take less."""
    weight_decay: NonNegative = 0.0
    """On matrices only, never on biases."""
    weight_decay_until: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the run after which nothing decays any more (Bjorck, Weinberger & Gomes 2021);
    on a language model the weights then grew again (docs/results.md)."""
    beta1: Rate = 0.9
    """Adam's decay of the mean gradient."""
    beta2: Rate = 0.999
    """Adam's decay of the mean squared gradient."""
    momentum: Rate = 0.0
    """For sgd."""
    averaging: Rate = 0.1
    """Fraction of the steps so far whose weights are averaged; what is validated and saved is that
    mean. 0: the last weights, which suits rates that end near zero (schedule.final_rate)."""
    clip_norm: Annotated[Positive | None, Off] = 1.0
    """Cap on the norm of the whole gradient (per-token units); none: no clipping."""

    @model_validator(mode="after")
    def _of_its_kind(self) -> "OptimizerConfig":
        if self.momentum and self.kind != "sgd":
            raise ValueError(
                f'momentum is for kind = "sgd"; leave it out, or set beta1, which {self.kind} has'
            )
        if self.kind == "sgd" and (self.beta1, self.beta2) != (0.9, 0.999):
            raise ValueError("beta1 and beta2 are Adam's; leave them out, or set momentum")
        return self


class ScheduleConfig(Section):
    """Learning rate and mode: cosine cycles with warm restarts (Loshchilov & Hutter 2017)."""

    mode: Literal["alternating", "real", "synthetic"] = "alternating"
    """alternating: the kind of gradient flips at every restart; or the same kind throughout."""
    start: Literal["real", "synthetic"] = "real"
    """The kind of the first cycle, when alternating."""
    unit: Literal["epochs", "steps"] = "epochs"
    """What the lengths of cycles are counted in."""
    cycles: Annotated[list[Positive], Field(min_length=1)] | None = None
    """Lengths of the cycles one by one; instead of the three keys below."""
    first: Positive = 1.0
    """Length of the first cycle."""
    growth: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    """Each cycle is this many times as long as the one before."""
    count: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Number of cycles."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps at the very start over which the rate rises linearly."""
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.3
    """The rate at the end of a cycle, as a fraction of the peak; high, for an average of weights
    (optimizer.averaging) to be better than the last ones."""

    @model_validator(mode="before")
    @classmethod
    def _cycles_are_given_in_one_way(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("cycles") == "none":
            values = {key: value for key, value in values.items() if key != "cycles"}
        if isinstance(values, Mapping) and values.get("cycles") is not None:
            geometric = set(GEOMETRIC_CYCLES) & values.keys()
            if geometric:
                raise ValueError(f"give either cycles or {', '.join(sorted(geometric))}, not both")
        return values

    @model_validator(mode="after")
    def _length_is_bounded(self) -> "ScheduleConfig":
        try:
            total = sum(self.cycle_lengths())
        except OverflowError:
            total = float("inf")
        if total > _LONGEST_SCHEDULE:
            raise ValueError(f"its cycles add up to more than {_LONGEST_SCHEDULE:.0e} {self.unit}")
        return self

    def cycle_lengths(self) -> list[float]:
        """Lengths of all cycles, in `unit`."""
        if self.cycles is not None:
            return list(self.cycles)
        return [self.first * self.growth**index for index in range(self.count)]


class SynthesizerConfig(Section):
    """What predicts the state gradient of the future."""

    kind: Literal["adjoint", "feedback", "direct", "critic", "mlp", "recurrent", "linear"] = (
        "adjoint"
    )
    """adjoint: reads the tokens that come next with the model itself, predicts what the softmax
    sends back, and goes back through the model; feedback: the same, back through fixed random
    matrices (Lillicrap et al. 2016); direct: one fixed random matrix maps it to the state (Nøkland
    2016). The others read the state alone. critic: learns a state's future loss, and injects its
    derivative. These learn from what every next window sends back: mlp: one net over all of it
    (Jaderberg et al. 2017); recurrent: a small GRU applied to every coordinate (Shang & Zhang
    2019); linear: one matrix."""
    hidden: Annotated[PositiveInt | None, Off] = None
    """Units of its hidden layer; none: 128, or 50 (the paper's) for a recurrent one."""
    learning_rate: Positive = 2e-3
    """Of its own Adam; constant, restarts do not touch it."""
    factor: Annotated[float, Field(ge=0, le=1)] | Literal["calibrated"] = "calibrated"
    """What the synthetic gradient is multiplied with before it is injected; calibrated: the best
    linear shrinkage, measured on probe windows: 0 while it explains nothing."""
    trust_bound: bool = True
    """No lane's synthetic gradient may be longer than four times the mean observed one."""
    probe_every: Annotated[int, Field(ge=2)] = 10
    """One window in so many injects nothing, whatever the cycle, and measures the synthesizer."""
    auxiliary: bool = False
    """Also predict the next window's gradient from this window's state."""
    every: Annotated[PositiveInt | None, Off] = None
    """Windows from one reading of coming text to the next. Windows shorter than `reach` are read
    along, and what is read for the last one ages the longest; after longer ones it injects at
    every reading and not in between. none: 1 for shorter windows, 32 for longer ones."""
    reach: PositiveInt = _REACH
    """Tokens that are read past the last boundary that a reading is for."""
    inject: Literal["prediction", "noise", "other-lane"] = "prediction"
    """Controls for experiments: noise injects random directions of the prediction's length;
    other-lane what is read from another lane's coming text."""

    @property
    def reads_text(self) -> bool:
        """Whether it reads the coming tokens, or the state alone."""
        return self.kind in ("adjoint", "feedback", "direct")

    @model_validator(mode="after")
    def _reads_what_it_is_told_to(self) -> "SynthesizerConfig":
        for key, value, default in (("every", self.every, None), ("reach", self.reach, _REACH)):
            if value != default and not self.reads_text:
                raise ValueError(
                    f'{key} = {value} is for what reads text, which kind = "{self.kind}" does not;'
                    f' leave out {key}, or set kind = "adjoint"'
                )
        return self

    @model_validator(mode="after")
    def _reads_another_lane(self) -> "SynthesizerConfig":
        if self.inject == "other-lane" and not self.reads_text:
            raise ValueError(
                f'inject = "other-lane" is for what reads text, which kind = "{self.kind}" does'
                ' not; set kind = "adjoint"'
            )
        return self

    @model_validator(mode="after")
    def _can_learn_an_auxiliary_task(self) -> "SynthesizerConfig":
        if self.auxiliary and self.kind not in ("mlp", "recurrent", "linear"):
            raise ValueError(
                f'auxiliary is for what learns from gradients, and kind = "{self.kind}" does not;'
                " leave out auxiliary"
            )
        return self


class TrainConfig(Section):
    """Windows, bookkeeping, seed."""

    batch: PositiveInt = 20
    """Lanes of contiguous text that are read in parallel."""
    window: PositiveInt = 35
    """Steps between truncations (on average, where they are random)."""
    truncation: Literal["fixed", "random"] = "fixed"
    """random: truncation points are drawn and gradients compensated for it, so that they are
    unbiased (ARTBP: Tallec & Ollivier 2017)."""
    horizon: Annotated[PositiveInt | None, Off] = None
    """Steps through which the loss of each window is backpropagated, a multiple of `window`: the
    past is read again for it (BPTT(h; T): Williams & Peng 1990); none: as far as the window."""
    past: Literal["gradient", "state"] = "gradient"
    """What the past is read again for, with a horizon: to backpropagate through it; or only for
    the state before the window, as today's weights make it: a control for experiments."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Initial weights and dropout."""
    evaluate_every_steps: Annotated[PositiveInt | None, Off] = None
    """Validation runs this often, and at the end of every cycle; none: every epoch."""
    checkpoint_every_steps: Annotated[PositiveInt | None, Off] = None
    """A checkpoint this often; and, also with none, every 30 seconds, or less often where that
    would take more than 2 % of the time: how much work an unexpected end can cost."""
    keep_checkpoints: PositiveInt = 2
    """The newest ones; of the others, one can be gone back to where the newest is damaged."""
    cuda_graph: bool | Literal["auto"] = "auto"
    """Replay the kernels of a window, and of an adjoint, from recorded graphs, on a GPU; auto:
    where windows are of one length and always computed alike, in a single process, and without
    `--deterministic`."""
    log_every_steps: PositiveInt = 50
    """TensorBoard and progress lines."""

    @property
    def windows_are_alike(self) -> bool:
        """Whether all windows are of one length."""
        return self.truncation == "fixed" and self.horizon is None

    @property
    def random_window(self) -> int | None:
        """Mean length of randomly truncated windows; None where it is fixed."""
        return self.window if self.truncation == "random" else None

    @model_validator(mode="after")
    def _horizon_in_windows(self) -> "TrainConfig":
        if self.horizon is not None and self.horizon % self.window:
            raise ValueError(f"horizon = {self.horizon} is no multiple of window = {self.window}")
        if self.past == "state" and self.horizon is None:
            raise ValueError('past = "state" needs a horizon: set horizon to how far to read again')
        if self.past == "state" and self.horizon == self.window:
            raise ValueError('past = "state" with a horizon of one window reads nothing again')
        if self.horizon is not None and self.truncation == "random":
            raise ValueError("give either a horizon or random truncation, not both")
        if self.cuda_graph is True and not self.windows_are_alike:
            raise ValueError(
                'cuda_graph needs windows of one length: set truncation = "fixed", and no horizon'
            )
        return self


class Config(Section):
    """Everything that decides what a run does; equal configurations make equal runs."""

    model: ModelConfig = ModelConfig()
    dropout: DropoutConfig = DropoutConfig()
    regularizer: RegularizerConfig = RegularizerConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    synthesizer: SynthesizerConfig = SynthesizerConfig()

    @model_validator(mode="after")
    def _there_is_another_lane(self) -> "Config":
        if self.synthesizer.inject == "other-lane" and self.train.batch == 1:
            raise ValueError('synthesizer.inject = "other-lane" needs two lanes; raise train.batch')
        return self

    @model_validator(mode="after")
    def _graphs_are_always_alike(self) -> "Config":
        if self.train.cuda_graph is True and self.model.softmax == "adaptive":
            raise ValueError(
                "cuda_graph needs windows that are always computed alike; leave it out, or set"
                ' model.softmax = "full"'
            )
        return self

    @model_validator(mode="after")
    def _long_horizons_are_for_real_gradients(self) -> "Config":
        train = self.train
        if self.schedule.mode != "real" and (train.horizon or train.truncation == "random"):
            what = "train.horizon" if train.horizon else 'train.truncation = "random"'
            raise ValueError(f'{what} is for real gradients; set schedule.mode = "real"')
        return self
