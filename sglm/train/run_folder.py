"""What a run leaves on disk, and what is there already when one starts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglm import __version__
from sglm.checkpoint import load_checkpoint, remove, save_checkpoint
from sglm.config import Config, config_to_toml, differences, parse_config, plain_values
from sglm.durable import replace_text, sync
from sglm.errors import ConfigError, InputError
from sglm.model.folder import save_model
from sglm.model.language_model import LSTMLanguageModel
from sglm.text.store import TokenStore
from sglm.text.tokenizer import Tokenizer

FORMAT_VERSION = 1


@dataclass(frozen=True)
class RunFolder:
    """`config.toml`, `run.json`, `model/` (the best), `last/`, `snapshots/`, `checkpoints/`,
    `metrics.jsonl`, `tensorboard/`; `sessions.jsonl`, `train.lines`: see `record.py`."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def best_model(self) -> Path:
        return self.path / "model"

    @property
    def last_model(self) -> Path:
        return self.path / "last"

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def identity(self) -> Path:
        return self.path / "run.json"

    def open(self, config: Config, store: TokenStore, resume: bool) -> None:
        """Starts a new run here, or makes sure that the one here is the same.

        Raises:
            ConfigError: the run here has another configuration.
            InputError: another corpus; something that is not a run; or `resume` is off and a run
                is here.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; give --out a folder")
        contents = sorted(entry.name for entry in self.path.iterdir()) if self.path.exists() else []
        if self.identity.exists():
            self._check_same(config, store)
            if not resume:
                raise InputError(
                    f"{self.path}: already holds a run; give another --out, or leave out"
                    " --no-resume to continue it"
                )
        elif contents:
            raise InputError(
                f"{self.path}: holds something that is not a run ({', '.join(contents[:3])});"
                " give another --out"
            )
        else:
            self._create(config, store)

    def _create(self, config: Config, store: TokenStore) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        identity = {
            "format_version": FORMAT_VERSION,
            "sglm": __version__,
            "corpus_fingerprint": store.fingerprint,
            "tokenizer_fingerprint": store.tokenizer().fingerprint,
        }
        # run.json makes the folder a run, so the configuration goes with it in one piece.
        replace_text(
            self.identity,
            json.dumps({**identity, "config": plain_values(config)}, indent=1) + "\n",
        )
        replace_text(self.config, config_to_toml(config))

    def _check_same(self, config: Config, store: TokenStore) -> None:
        try:
            identity = json.loads(self.identity.read_text(encoding="utf-8"))
            corpus = identity["corpus_fingerprint"]
            own = parse_config(identity["config"], str(self.identity))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.identity}: damaged ({error}); start in another --out"
            ) from None
        if not self.config.exists():
            replace_text(self.config, config_to_toml(own))
        changed = differences(own, config)
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

    def load_checkpoint(self) -> tuple[int, Any] | None:
        """The newest checkpoint, if there is one."""
        return load_checkpoint(self.path / "checkpoints")

    def save_checkpoint(self, step: int, state: Any) -> None:
        save_checkpoint(self.path / "checkpoints", step, state)

    def save_model(self, folder: Path, model: LSTMLanguageModel, tokenizer: Tokenizer) -> None:
        """Writes a model folder, loadable by itself wherever it is copied.

        A new one appears whole; in one that is there the weights are exchanged in one piece, and
        nothing else differs within a run.
        """
        if folder.exists():
            save_model(model, folder, tokenizer.fingerprint)
            return
        aside = folder.with_name(folder.name + ".partial")
        if aside.exists():
            remove(aside)
        aside.mkdir(parents=True)
        save_model(model, aside, tokenizer.fingerprint)
        tokenizer.save(aside)
        sync(aside)
        aside.rename(folder)

    def save_snapshot(self, cycle: int, model: LSTMLanguageModel, tokenizer: Tokenizer) -> None:
        """The model at the end of a cycle, counted from 0."""
        self.save_model(self.path / "snapshots" / f"cycle-{cycle:03d}", model, tokenizer)
