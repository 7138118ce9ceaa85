"""Installed plugins: find, load and isolate them; write the files of a new plugin.

Start with `manager.py`; `entry_points.py` reads the metadata of installed distributions.
"""
