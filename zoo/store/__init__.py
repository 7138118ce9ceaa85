"""The files under ZOO_HOME: pulled rows, graphs, caches, `zoo.lock`.

Start with `store.py` (what lies where); `pull.py` decides whether a download is whole.
"""
