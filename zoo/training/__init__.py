"""Fine-tuning: cached features, heads, unfrozen stages, and the resulting bundle.

Start with `finetune.py`. `fit_head.py` trains a head; `loop.py` is the training loop that it uses.
"""
