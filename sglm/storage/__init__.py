"""What is on disk: durable writes, untrusted reads, checkpoints."""
