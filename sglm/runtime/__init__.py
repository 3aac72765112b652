"""The environment in which sglm runs: process, ranks, device, memory, terminal."""
