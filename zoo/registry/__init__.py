"""From registry files to entries that can be looked up: the shipped rows, those of plugins, bridged models.

Start with `registry.py`; `strict_yaml.py` parses the files.
"""
