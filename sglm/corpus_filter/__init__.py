"""Adds scores to the records of a corpus, file by file: `sglm score RUN SOURCE… --out DIR`."""
