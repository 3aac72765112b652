"""Where a run is: what its log tells and every checkpoint keeps."""

from dataclasses import dataclass

SKIPS_BEFORE_GOING_BACK = 100


class Diverged(Exception):
    """Too many steps in a row were not finite, or a weight is not."""


@dataclass(kw_only=True)
class Progress:
    """Where a run is, beside what the learner holds; saved with every checkpoint.

    Attributes:
        step: steps done.
        settled: the step up to which evaluations and snapshots are done as well.
        tokens_seen: predictions trained on.
        seconds: wall-clock time over all sessions.
        best_nll: lowest validation loss so far in nats per token, or None.
        skipped: steps that changed nothing, because their loss or gradient was not finite.
        skipped_in_row: how many of them were the last ones.
        went_back_to: the step to which such steps have made the run go back, or None.
        event_files: of TensorBoard, with this session's.
    """

    step: int = 0
    settled: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0
    best_nll: float | None = None
    skipped: int = 0
    skipped_in_row: int = 0
    went_back_to: int | None = None
    event_files: int = 0

    def advance(self, tokens: int) -> None:
        """Counts one step."""
        self.step += 1
        self.tokens_seen += tokens

    def count_skips(self, taken: list[bool]) -> None:
        """Takes in whether each of the last steps updated anything.

        Raises:
            Diverged: too many steps in a row did not.
        """
        for each in taken:
            self.skipped += not each
            self.skipped_in_row = 0 if each else self.skipped_in_row + 1
            if self.skipped_in_row == SKIPS_BEFORE_GOING_BACK:
                raise Diverged
