"""Files, child processes, the CPU count and Ctrl-C: what zoo asks of the operating system.

Start with `files.py` (atomic writes, checksums, locks); `process.py` is the protocol with child processes.
"""
