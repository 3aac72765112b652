"""The configuration of a run: `schema` defines its keys, `load` reads it from TOML."""

from sglm.config.load import (
    config_to_toml,
    differences,
    load_config,
    parse_config,
    plain_values,
    shipped_configs,
)
from sglm.config.schema import Config, OptimizerConfig, RegularizerConfig, SynthesizerConfig

__all__ = [
    "Config",
    "OptimizerConfig",
    "RegularizerConfig",
    "SynthesizerConfig",
    "config_to_toml",
    "differences",
    "load_config",
    "parse_config",
    "plain_values",
    "shipped_configs",
]
