"""How fast sglm is, and what memory it takes: measured, and against what the machine allows."""
