"""Where sglm runs: the process, its ranks, its device."""
