"""The command line: one thin file per command. Installed as `sglm.cli`."""
