"""Registry entries by name: from the shipped registry file, those of the user and of plugins, and from bridges.

Start with `registry.py`; `strict_yaml.py` parses the files.
"""
