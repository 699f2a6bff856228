"""The mathematics of discrete-time diffusion: schedule, objective, a sampler for previews. Knows no model."""
