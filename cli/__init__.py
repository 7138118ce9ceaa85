"""The command line: one module for each verb, on top of zoo's public names. Start with `app.py`."""
