"""The page: a Gradio app that owns nothing. No torch, no SQL, no file formats in here."""
