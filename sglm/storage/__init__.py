"""What is on disk: its names, durable writes, untrusted reads, checkpoints."""
