"""diffusion-lora: train LoRAs for diffusion models and mix them freely.

The import rule. A room may import, directly or through others, only what its line names; `scripts/lint` holds it.
Base = config, run, events, inbox, workspace, processes, device_lock, images, errors, layouts, prompt: no torch.

    base                     nothing but base
    jobs                     base
    webui                    jobs, base and the torch-free parts
    lora, data, diffusion    base (never each other)
    families                 lora, diffusion, base
    generate                 families, lora, diffusion, base          (does not know that training exists)
    serve                    generate, families, lora, base
    caption                  data, base, and of families how to find a device and a hub id
    train                    families, data, lora, diffusion, base    (does not know the generator)
    faces                    base and the torch-free parts
    demo                     all of them
    cli                      all of them, inside its command functions

Base, jobs, webui, data.folder, lora.header, lora.formats, generate.request and generate.infotext import no torch, so
this file and the `__init__` of every room import nothing: `diffusion-lora --help` answers before torch could have been
loaded.

Third parties have walls: diffusers only in families and generate, transformers only in families and caption,
bitsandbytes only in train.optimizers, onnxruntime only in caption.tagger, gradio only in webui, sqlite3 only in
jobs.store, subprocess only in jobs.launch, lark only in prompt, peft nowhere.
Nothing runs at import.
"""

__version__ = "0.1.0"
