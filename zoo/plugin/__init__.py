"""Installed plugins: found, loaded and isolated; and the files of a new one.

Start with `manager.py`; `entry_points.py` reads the metadata of installed distributions.
"""
