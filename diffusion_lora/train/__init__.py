"""Training: the loop (`trainer`), what it needs before the first step (`prepare`), and what it saves."""
