"""Base models: where they lie, how they load, what they can do. Import `diffusion_lora.families.family`."""
