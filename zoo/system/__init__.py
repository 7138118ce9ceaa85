"""The operating system: files, small JSON records, child processes, the CPU count and Ctrl-C.

Start with `files.py` (atomic writes, checksums, locks); `process.py` is the protocol with child processes.
"""
