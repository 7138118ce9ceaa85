"""The files under ZOO_HOME: pulled rows, graphs, caches, `zoo.lock`.

Start with `store.py` (the layout of the folders); `pull.py` decides whether a download is whole.
"""
