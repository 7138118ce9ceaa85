"""Sources: plugins that fetch files by URL. Start with `file.py`."""
