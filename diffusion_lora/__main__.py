"""`python -m diffusion_lora` is `diffusion-lora`."""

from diffusion_lora.cli import main

if __name__ == "__main__":
    main()
