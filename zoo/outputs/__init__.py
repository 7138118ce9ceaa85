"""Files of rows: CSV, JSON lines, Parquet and .npy, for `zoo run -o`, `zoo embed` and `zoo evaluate --predictions`.

Start with `write_rows.py`. `table.py` formats every table; `resumable_file.py` has the files that can be resumed.
"""
