"""Parts of the bridge `hf/` that its families of texts and of images share. Start with `labels.py`."""
