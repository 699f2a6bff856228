"""Facts of each model family as data. No torch, no code that runs a model: import `diffusion_lora.layouts.layout`."""
