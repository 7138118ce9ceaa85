"""Registry entries by name, from the registry files of zoo, the user and plugins, and from bridges.

Start with `registry.py`; `strict_yaml.py` parses the files.
"""
