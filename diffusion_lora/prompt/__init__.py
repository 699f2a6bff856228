"""One grammar for prompts: weights, schedules, chunks, wildcards, adapter tags. No torch, no tokenizer of its own."""
