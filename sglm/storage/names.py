"""The names in a run, a model folder and a token store by which all parts of sglm know them."""

# A run.
RUN_FILE = "run.json"
RUN_CONFIG = "config.toml"
BEST_MODEL = "model"
SNAPSHOTS = "snapshots"
CYCLE = "cycle-"  # and its number: a snapshot
CHECKPOINTS = "checkpoints"
CHECKPOINT_SUMS = "SHA256SUMS"
# A model folder.
CONFIG_FILE = "config.json"
# A token store.
META_FILE = "meta.json"
