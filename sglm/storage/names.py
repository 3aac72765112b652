"""The file names by which sglm recognizes runs, model folders and token stores."""

# A run.
RUN_FILE = "run.json"
RUN_CONFIG = "config.toml"
BEST_MODEL = "model"
SNAPSHOTS = "snapshots"
CYCLE = "cycle-"  # prefix of a snapshot's name, before the number of its cycle
CHECKPOINTS = "checkpoints"
CHECKPOINT_SUMS = "SHA256SUMS"
# A model folder.
CONFIG_FILE = "config.json"
# A token store.
META_FILE = "meta.json"
