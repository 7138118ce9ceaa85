"""The command line: one module a verb, on top of zoo's public names."""
