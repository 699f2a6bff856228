"""LoRA adapters: as files, as values, and alive in a model.

`header` and `formats` know keys and metadata and import no torch; `adapter` is the value; `layer`, `inject` and `bank`
put adapters into a model. This file imports nothing, so that the torch-free parts stay torch-free.
"""
