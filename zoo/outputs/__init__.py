"""Rows into files: CSV, JSON lines, Parquet and .npy, for `zoo run -o`, `zoo embed` and `zoo similar`.

Start with `write_rows.py`; `resumable_file.py` is the file that an interrupted run continues.
"""
