"""What the rank of a LoRA is worth, measured on pocket: `python -m bench.rank make` writes docs/rank.md."""
