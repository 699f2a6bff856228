"""Spokes around the canonical layer keys: one module a file format, key logic only, no torch."""
