"""Turns text into windows of token ids: sources, tokenizers, the store on disk, the batcher."""
