"""The shipped recipes, one TOML each. Installed as `sglm.configs`."""
