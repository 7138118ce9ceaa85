"""What lies under ZOO_HOME: pulled files, graphs, caches, `zoo.lock`.

Start with `store.py` (what lies where); `pull.py` decides whether a download is whole.
"""
