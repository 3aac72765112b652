"""The run folder: the files of a run, and the checks when a run starts in a folder."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglm import __version__
from sglm.config import Config, config_to_toml, differences, parse_config, plain_values
from sglm.errors import ConfigError, InputError, short_repr
from sglm.model.folder import read_card, save_model
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.new_folder import write_new_folder
from sglm.storage.checkpoint import Checkpoint, clear_up, load_checkpoint, save_checkpoint
from sglm.storage.durable import locked, replace_text
from sglm.storage.names import BEST_MODEL, CHECKPOINTS, CYCLE, RUN_CONFIG, RUN_FILE, SNAPSHOTS
from sglm.storage.untrusted import read_json
from sglm.text.store import TokenStore
from sglm.train.starting_point import StartingPoint

FORMAT_VERSION = 1
_LOCK = ".lock"
# What a folder may hold if its run was killed before its first file was complete.
_MAY_COME_FIRST = {_LOCK, f".{RUN_FILE}.aside"}
_OWN_LINKS = {"latest", "latest.partial"}
_MAY_DIFFER = (
    *("train.checkpoint_every_steps:", "train.keep_checkpoints:"),
    "train.cuda_graph:",  # changes results by rounding only
)


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run on disk: `config.toml`, `run.json`, `model/` (the best), `last/`, `snapshots/`,
    `checkpoints/`, `metrics.jsonl`, `tensorboard/`; for `sessions.jsonl` and `train.lines` see
    `record.py`."""

    path: Path = field(kw_only=False)

    @property
    def metrics(self) -> Path:
        """The file of validations: one line with a JSON object for each."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of the event files, one for each session."""
        return self.path / "tensorboard"

    @property
    def best_model(self) -> Path:
        """The model folder with the lowest validation loss, which `sglm.load(RUN)` loads."""
        return self.path / BEST_MODEL

    @property
    def last_model(self) -> Path:
        """The model folder of the last step."""
        return self.path / "last"

    @property
    def checkpoints(self) -> Path:
        """The folder of the newest complete states of the training."""
        return self.path / CHECKPOINTS

    @property
    def config(self) -> Path:
        """The run's configuration as a TOML file."""
        return self.path / RUN_CONFIG

    @property
    def identity(self) -> Path:
        """The JSON file that makes a folder a run: its configuration, corpus and starting point."""
        return self.path / RUN_FILE

    @contextmanager
    def opened(
        self,
        config: Config,
        store: TokenStore,
        *,
        resume: bool,
        start: StartingPoint | None = None,
    ) -> Iterator[None]:
        """Starts a new run here, or continues the one that is here if it is the same; no other
        process can open it until the block ends.

        Raises:
            ConfigError: The run here has another configuration.
            InputError: The run here has another corpus or started from other weights; the folder
                holds something else; another process trains here; or there is a run here and
                `resume` is off.
        """
        self._refuse_foreign()
        self.path.mkdir(parents=True, exist_ok=True)
        self._refuse_links()
        with locked(self.path / _LOCK):
            if not self.identity.exists():
                self._create(config, store, start)
            else:
                self.check_same(config, store, start)
                if not resume:
                    raise InputError(
                        f"{self.path}: already holds a run; give another --out, or leave out"
                        " --no-resume to continue it"
                    )
            clear_up(self.checkpoints)
            yield

    def _refuse_foreign(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; give --out a folder")
        names = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        if not self.identity.exists() and CHECKPOINTS in names:
            raise InputError(
                f"{self.identity}: is missing, so the run cannot be continued; copy the run again,"
                " or give another --out"
            )
        if not self.identity.exists() and (foreign := sorted(names - _MAY_COME_FIRST)):
            raise InputError(
                f"{self.path}: holds something that is not a run ({', '.join(foreign[:3])});"
                " give another --out"
            )

    def _refuse_links(self) -> None:
        """Refuses links and devices: writes must not end up elsewhere, and reads must end."""
        for folder, folders, files in os.walk(self.path):
            for name in (*folders, *files):
                path = Path(folder, name)
                if path.parent == self.checkpoints and name in _OWN_LINKS:
                    continue
                mode = path.lstat().st_mode
                if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                    raise InputError(
                        f"{path}: a link or a device; a run is continued only if it consists of"
                        " ordinary files: copy it with `cp -rL`, or give another --out"
                    )

    def _create(self, config: Config, store: TokenStore, start: StartingPoint | None) -> None:
        identity = {
            "format_version": FORMAT_VERSION,
            "sglm": __version__,
            "corpus_fingerprint": store.fingerprint,
            "tokenizer_fingerprint": store.tokenizer().fingerprint,
            "started_from": None if start is None else start.weights_sha256,
        }
        # run.json makes the folder a run, so it holds the configuration too, in one atomic write.
        replace_text(
            self.identity,
            json.dumps({**identity, "config": plain_values(config)}, indent=1) + "\n",
        )
        replace_text(self.config, config_to_toml(config))

    def check_same(
        self, config: Config, store: TokenStore, start: StartingPoint | None = None
    ) -> None:
        """Checks that the run here is the one described by the arguments.

        Raises:
            ConfigError, InputError: The run here has another configuration or another corpus, or
                started from other weights.
        """
        try:
            identity = read_json(self.identity)
            version = identity["format_version"]
            corpus, begun = identity["corpus_fingerprint"], identity.get("started_from")
            own = parse_config(identity["config"], str(self.identity))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{self.identity}: damaged ({error}); start in another --out"
            ) from None
        if version != FORMAT_VERSION:
            raise InputError(
                f"{self.identity}: format {short_repr(version)}, this sglm reads {FORMAT_VERSION};"
                " use the version that wrote it, or start in another --out"
            )
        if not self.config.exists():
            replace_text(self.config, config_to_toml(own))
        if begun != (None if start is None else start.weights_sha256):
            raise InputError(
                f"{self.path}: holds a run that started from"
                f" {'random' if begun is None else 'other'} weights; give"
                f" {'no --from' if begun is None else 'the --from it was started with'},"
                " or another --out"
            )
        # How often a run is saved, how many checkpoints are kept and how kernels are launched does
        # not change what it learns.
        changed = [each for each in differences(own, config) if not each.startswith(_MAY_DIFFER)]
        if changed:
            raise ConfigError(
                f"{self.path}: holds a run with another configuration ({'; '.join(changed[:3])});"
                "\ngive another --out for a new run"
            )
        if corpus != store.fingerprint:
            raise InputError(
                f"{self.path}: holds a run on another corpus;"
                " give the --data it was started with, or another --out"
            )

    def check_has_model(self) -> None:
        """Checks that the model of a finished run is there: no step is left that would rewrite it.

        Raises:
            InputError: The model is missing or damaged.
        """
        problem = f"{self.best_model} is not there"
        if self.best_model.exists():
            try:
                read_card(self.best_model)
                return
            except InputError as error:
                problem = str(error)
        raise InputError(
            f"{self.path}: the training is finished, but {problem}; copy the run again, take"
            f" {self.last_model} instead, or give another --out"
        )

    def load_checkpoint(self) -> Checkpoint | None:
        """Reads the newest intact checkpoint, if there is one."""
        return load_checkpoint(self.checkpoints)

    def save_checkpoint(self, step: int, state: Any, keep: int) -> None:
        save_checkpoint(self.checkpoints, step, state, keep=keep)

    def save_model(self, folder: Path, model: LSTMLanguageModel, store: TokenStore) -> None:
        """Writes a model folder, which can be loaded by itself wherever it is copied.

        A new folder appears complete. In an existing one the weights are replaced atomically;
        nothing else in it changes within a run.

        Args:
            folder: The model folder.
            model: The model to save.
            store: The store that the model is trained on.
        """
        tokenizer, extra = store.tokenizer(), {"bos_id": store.bos_id}
        if folder.exists():
            save_model(model, folder, tokenizer.fingerprint, extra=extra)
        else:
            aside = folder.with_name(f"{folder.name}.partial")
            write_new_folder(model, folder, tokenizer, aside=aside, extra=extra)

    def save_snapshot(self, cycle: int, model: LSTMLanguageModel, store: TokenStore) -> None:
        """Saves the model at the end of a cycle; cycles count from 0."""
        self.save_model(self.path / SNAPSHOTS / f"{CYCLE}{cycle:03d}", model, store)
