"""Pictures and captions: the folder, the latents kept of it, and which picture comes when. `folder` needs no torch."""
