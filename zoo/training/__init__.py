"""Fine-tuning: cached features, heads, unfrozen stages, and the bundle that comes of it.

Start with `finetune.py`; `fit_head.py` trains a head, `loop.py` is the training loop below it.
"""
