"""The whole configuration of a training run: typed and strict, with a description of every field.

It is read from a TOML file with one table per section. A key that is not listed here is an error
that names the most similar key. "Off" is None in Python and the string "none" in TOML, which has no
null.
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
# The keys that give the lengths of cycles as a geometric series, instead of the list `cycles`.
GEOMETRIC_CYCLES = ("first", "growth", "count")
_REACH = 10  # tokens


class Section(BaseModel):
    """One table of the file. Unknown keys are errors, and values are never converted or changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelConfig(Section):
    """The network."""

    layers: Annotated[int, Field(ge=1, le=64)] = 2
    """Number of LSTM layers."""
    hidden: PositiveInt = 256
    """Number of units of each layer (`embedding` units in the last one if `tied`)."""
    embedding: Annotated[PositiveInt | None, Off] = None
    """Size of the word vectors; none: the same as `hidden`."""
    tied: bool = True
    """Whether the softmax uses the embedding matrix as its weights."""
    softmax: Literal["full", "adaptive"] = "full"
    """Kind of softmax. adaptive: a softmax over the frequent words and the clusters of the others,
    and one inside each cluster (Grave et al. 2017); for tens of thousands of words on a CPU."""
    cutoffs: Annotated[
        Annotated[list[PositiveInt], Field(min_length=1, max_length=100)] | None, Off
    ] = None
    """Number of words, the most frequent ones, before each cluster of an adaptive softmax; none:
    the words before the first cluster make up 80 % of the training text, and those before the
    second 95 %."""

    @model_validator(mode="after")
    def _check_cutoffs(self) -> "ModelConfig":
        if self.cutoffs is None:
            return self
        if self.softmax == "full":
            raise ValueError('cutoffs are for an adaptive softmax; set softmax = "adaptive"')
        if sorted(set(self.cutoffs)) != self.cutoffs:
            raise ValueError(f"cutoffs = {self.cutoffs} must ascend")
        return self


class DropoutConfig(Section):
    """Dropout rates, all off by default; each mask stays the same for a whole window."""

    input: Rate = 0.0
    """Rate for the word vectors that enter the first layer."""
    between: Rate = 0.0
    """Rate between layers."""
    output: Rate = 0.0
    """Rate for the inputs of the softmax."""
    embedding: Rate = 0.0
    """Rate at which whole words are dropped from the embedding."""
    weight: Rate = 0.0
    """Rate for the entries of the recurrent matrices (DropConnect); their initial values are
    multiplied by √(1 − rate)."""


class RegularizerConfig(Section):
    """Penalties on the last layer's outputs, added to the loss in nats per token; off by default
    (Merity, McCann & Socher 2017; AWD-LSTM trains with 2 and 1)."""

    activation: NonNegative = 0.0
    """Coefficient of the mean square of the outputs after dropout, which keeps them small."""
    temporal: NonNegative = 0.0
    """Coefficient of the mean square of the outputs' change from one step to the next, before
    dropout, which keeps the change slow."""


class OptimizerConfig(Section):
    """The optimizer of the model's weights."""

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    """Kind of optimizer. adamw: Adam with decoupled weight decay; adam: Adam with weight decay as
    an L2 term; sgd: SGD, optionally with momentum."""
    learning_rate: Positive = 4e-3
    """Peak rate at every restart; 4e-3 suits the default size, larger models need less."""
    weight_decay: NonNegative = 0.0
    """Weight decay of matrices; biases do not decay."""
    weight_decay_until: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the run after which weight decay ends (Bjorck, Weinberger & Gomes 2021); in a
    language model the weights then grew again (docs/results.md)."""
    beta1: Rate = 0.9
    """Adam's decay of the mean gradient."""
    beta2: Rate = 0.999
    """Adam's decay of the mean squared gradient."""
    momentum: Rate = 0.0
    """Momentum of sgd."""
    averaging: Rate = 0.1
    """Fraction of the steps so far over which weights are averaged, for validation and saving.
    0: no average, which suits rates that end near zero (schedule.final_rate)."""
    clip_norm: Annotated[Positive | None, Off] = 1.0
    """Largest allowed norm of the whole gradient (of the loss per token); none: no clipping."""

    @model_validator(mode="after")
    def _check_keys_of_kind(self) -> "OptimizerConfig":
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
    """Kind of gradient. alternating: it flips at every restart; real, synthetic: it is the same
    throughout."""
    start: Literal["real", "synthetic"] = "real"
    """Kind of gradient in the first cycle, when alternating."""
    unit: Literal["epochs", "steps"] = "epochs"
    """Unit of the lengths of cycles."""
    cycles: Annotated[list[Positive], Field(min_length=1)] | None = None
    """Length of each cycle; replaces the three keys below."""
    first: Positive = 1.0
    """Length of the first cycle."""
    growth: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    """Length of each cycle divided by that of the one before."""
    count: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Number of cycles."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps at the start of the run over which the rate rises linearly."""
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Rate at the end of a cycle, as a fraction of the peak; high by default, because averaged
    weights (optimizer.averaging) are then better than the last ones."""

    @model_validator(mode="before")
    @classmethod
    def _check_cycles(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("cycles") == "none":
            values = {key: value for key, value in values.items() if key != "cycles"}
        if isinstance(values, Mapping) and values.get("cycles") is not None:
            geometric = set(GEOMETRIC_CYCLES) & values.keys()
            if geometric:
                raise ValueError(f"give either cycles or {', '.join(sorted(geometric))}, not both")
        return values

    @model_validator(mode="after")
    def _check_length(self) -> "ScheduleConfig":
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
    """The estimator of the gradient that later windows would send back across a boundary."""

    kind: Literal["adjoint", "feedback", "direct", "critic", "mlp", "recurrent", "linear"] = (
        "adjoint"
    )
    """Kind of estimator. adjoint: reads the coming tokens with the model itself, predicts the
    gradients that the softmax would send back, and backpropagates them through the model; feedback:
    the same, but back through fixed random matrices (Lillicrap et al. 2016); direct: the same, but
    one fixed random matrix maps them to the state (Nøkland 2016). The other kinds read only the
    state. critic: learns to predict the future loss from the state, and injects the derivative of
    that prediction. The last three learn from the gradients that later windows send back. mlp: one
    network for the whole state (Jaderberg et al. 2017); recurrent: a small GRU for every coordinate
    (Shang & Zhang 2019); linear: one matrix."""
    hidden: Annotated[PositiveInt | None, Off] = None
    """Units of the estimator's hidden layer; none: 128, or for recurrent 50, as in the paper."""
    learning_rate: Positive = 2e-3
    """Learning rate of the estimator's own Adam; constant, restarts do not change it."""
    factor: Annotated[float, Field(ge=0, le=1)] | Literal["calibrated"] = "calibrated"
    """Factor that multiplies the synthetic gradient before it is injected; calibrated: the best
    linear shrinkage, measured on probe windows: 0 as long as the prediction explains nothing."""
    trust_bound: bool = True
    """Whether each lane's synthetic gradient is capped at four times the mean observed norm."""
    probe_every: Annotated[int, Field(ge=2)] = 10
    """Windows from one probe to the next; a probe injects nothing, whatever the cycle's mode, and
    measures the estimator."""
    auxiliary: bool = False
    """Whether the synthesizer also predicts the next window's gradient from this window's state."""
    every: Annotated[PositiveInt | None, Off] = None
    """Windows from one reading of the coming text to the next. If windows are shorter than `reach`,
    each reading gives the gradients at the ends of all of them; the last one waits longest until it
    is injected. If windows are longer, a gradient is injected at each reading and none in between.
    none: 1 for shorter windows, 32 for longer ones."""
    reach: PositiveInt = _REACH
    """Tokens that a reading extends beyond the last boundary for which it gives a gradient."""
    inject: Literal["prediction", "noise", "other-lane"] = "prediction"
    """The gradient that is injected: the prediction, or a control for experiments. noise: random
    directions with the prediction's norm; other-lane: a prediction from another lane's text."""

    @property
    def reads_text(self) -> bool:
        """Whether it reads the coming tokens, and not only the state."""
        return self.kind in ("adjoint", "feedback", "direct")

    @model_validator(mode="after")
    def _check_reading_keys(self) -> "SynthesizerConfig":
        for key, value, default in (("every", self.every, None), ("reach", self.reach, _REACH)):
            if value != default and not self.reads_text:
                raise ValueError(
                    f'{key} = {value} is for kinds that read text; kind = "{self.kind}" does not:'
                    f' leave out {key}, or set kind = "adjoint"'
                )
        return self

    @model_validator(mode="after")
    def _check_other_lane(self) -> "SynthesizerConfig":
        if self.inject == "other-lane" and not self.reads_text:
            raise ValueError(
                f'inject = "other-lane" is for kinds that read text; kind = "{self.kind}" does'
                ' not: set kind = "adjoint"'
            )
        return self

    @model_validator(mode="after")
    def _check_auxiliary(self) -> "SynthesizerConfig":
        if self.auxiliary and self.kind not in ("mlp", "recurrent", "linear"):
            raise ValueError(
                f'auxiliary is for kinds that learn from gradients; kind = "{self.kind}" does not:'
                " leave out auxiliary"
            )
        return self


class TrainConfig(Section):
    """Windows, seed, validation, checkpoints and logging."""

    batch: PositiveInt = 20
    """Number of lanes of contiguous text that are read in parallel."""
    window: PositiveInt = 35
    """Steps from one truncation to the next (on average, if truncation is random)."""
    truncation: Literal["fixed", "random"] = "fixed"
    """Kind of truncation. random: truncation points are drawn at random, and gradients are
    compensated so that they are unbiased (ARTBP: Tallec & Ollivier 2017)."""
    horizon: Annotated[PositiveInt | None, Off] = None
    """Steps through which each window's loss is backpropagated, a multiple of `window`: the steps
    before the window are read again for it (BPTT(h; T): Williams & Peng 1990); none: only the
    window's."""
    past: Literal["gradient", "state"] = "gradient"
    """Why the past is read again, with a horizon. gradient: to backpropagate through it; state:
    only to recompute the state before the window with the current weights, a control for
    experiments."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights and of dropout."""
    evaluate_every_steps: Annotated[PositiveInt | None, Off] = None
    """Steps from one validation to the next; none: an epoch. Every cycle also ends with one."""
    checkpoint_every_steps: Annotated[PositiveInt | None, Off] = None
    """Steps from one checkpoint to the next, besides one every 30 seconds (less often if saving
    would take more than 2 % of the time); none: only those."""
    keep_checkpoints: PositiveInt = 2
    """Number of checkpoints to keep, the newest ones; if the newest is damaged, the run continues
    from the one before."""
    cuda_graph: bool | Literal["auto"] = "auto"
    """Whether a GPU replays the kernels of a window, and of an adjoint, from recorded CUDA graphs;
    auto: if all windows have one length and are computed alike, in a single process and without
    `--deterministic`."""
    log_every_steps: PositiveInt = 50
    """Steps from one progress line and TensorBoard entry to the next."""

    @property
    def windows_are_alike(self) -> bool:
        """Whether all windows have the same number of steps: fixed truncation and no horizon."""
        return self.truncation == "fixed" and self.horizon is None

    @property
    def random_window(self) -> int | None:
        """Mean length of randomly truncated windows; None: truncation is fixed."""
        return self.window if self.truncation == "random" else None

    @model_validator(mode="after")
    def _check_horizon(self) -> "TrainConfig":
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
    """All settings that decide what a run does; equal configurations give equal runs."""

    model: ModelConfig = ModelConfig()
    dropout: DropoutConfig = DropoutConfig()
    regularizer: RegularizerConfig = RegularizerConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    synthesizer: SynthesizerConfig = SynthesizerConfig()

    @model_validator(mode="after")
    def _check_number_of_lanes(self) -> "Config":
        if self.synthesizer.inject == "other-lane" and self.train.batch == 1:
            raise ValueError('synthesizer.inject = "other-lane" needs two lanes; raise train.batch')
        return self

    @model_validator(mode="after")
    def _check_cuda_graph(self) -> "Config":
        if self.train.cuda_graph is True and self.model.softmax == "adaptive":
            raise ValueError(
                "cuda_graph needs windows that are always computed alike; leave it out, or set"
                ' model.softmax = "full"'
            )
        return self

    @model_validator(mode="after")
    def _check_horizon_and_mode(self) -> "Config":
        train = self.train
        if self.schedule.mode != "real" and (train.horizon or train.truncation == "random"):
            what = "train.horizon" if train.horizon else 'train.truncation = "random"'
            raise ValueError(f'{what} is for real gradients; set schedule.mode = "real"')
        return self
