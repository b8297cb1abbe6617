"""Other people's weights → a folder that `from_pretrained` loads: one file a source, `python -m convert SOURCE …`."""
