"""pocket, the embedded base: an ordinary diffusers folder in `base/`, and the words it knows in `words`."""
