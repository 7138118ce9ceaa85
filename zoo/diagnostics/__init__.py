"""`zoo doctor` and `zoo bench`: what is wrong with this machine, and how fast a model is on it.

Start with `doctor.py` and `bench.py`.
"""
