"""`zoo doctor` finds faults of this machine, and `zoo bench` measures the speed of a model on it.

Start with `doctor.py` and `bench.py`.
"""
