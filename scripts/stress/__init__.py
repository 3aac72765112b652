"""What should not break sglm: kills at any moment, days of work, input of all kinds."""
