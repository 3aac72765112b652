"""The files that TensorBoard reads its curves from: one a session, in the order of their names."""

from pathlib import Path

_PREFIX = "events.out.tfevents."


def keep_event_files(folder: Path, count: int | None) -> int:
    """Numbers the files of earlier sessions, and drops those of sessions that came to nothing.

    TensorBoard's writer names a file by the second in which it was opened. Sessions within one
    second, and a clock that was set back, would be read in a wrong order, and what a session hides
    of the ones before it (`purge_step`) would be hidden of the wrong ones. So each file is given
    the number of its session before the next one is opened.

    Args:
        folder: of the event files; it need not exist.
        count: how many files there were when the checkpoint was saved that is continued: what is
            in later ones will be written again. None keeps all.

    Returns:
        How many files there are now.
    """
    files = sorted(folder.glob(f"{_PREFIX}*"))
    kept = files if count is None else files[:count]
    for number, path in enumerate(kept):
        # The second 0: before whatever a writer calls its file.
        path.rename(folder / f"{_PREFIX}{0:010d}.{number:06d}")
    for path in files[len(kept) :]:
        path.unlink()
    return len(kept)
