"""The progress of a run, which its log shows and every checkpoint keeps."""

from dataclasses import dataclass

SKIPS_BEFORE_GOING_BACK = 100


class Diverged(Exception):
    """Too many steps in a row had a loss or gradient that was not finite, or a weight is not."""


@dataclass(kw_only=True)
class Progress:
    """The progress of a run, apart from what the learner holds; saved with every checkpoint.

    Attributes:
        step: Number of steps done.
        settled: The step up to which validations and snapshots are done as well.
        tokens_seen: Number of predictions trained on.
        seconds: Wall-clock time over all sessions.
        best_nll: The lowest validation loss so far in nats per token, or None.
        skipped: Number of steps that changed nothing: their loss or gradient was not finite.
        skipped_in_row: Number of consecutive skipped steps up to the latest step counted.
        went_back_to: The step that the run went back to because it had diverged, or None.
        event_files: Number of TensorBoard's event files, this session's included.
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
        """Counts the skipped ones of the latest steps.

        Args:
            taken: Whether each of these steps updated the weights.

        Raises:
            Diverged: Too many steps in a row were skipped.
        """
        for each in taken:
            self.skipped += not each
            self.skipped_in_row = 0 if each else self.skipped_in_row + 1
            if self.skipped_in_row == SKIPS_BEFORE_GOING_BACK:
                raise Diverged
