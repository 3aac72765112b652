"""Files on disk: their names, durable writes, untrusted reads, checkpoints."""
