"""Finding, loading and isolating installed plugins, and writing a new one.

Start with `manager.py`; `entry_points.py` reads the metadata that it works from.
"""
