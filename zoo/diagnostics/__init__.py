"""`zoo doctor` and `zoo bench`: faults of this machine, and the speed of a model on it.

Start with `doctor.py` and `bench.py`.
"""
