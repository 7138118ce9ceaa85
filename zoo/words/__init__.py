"""Word-vector tables: published formats, the prepared form on disk, and exact search of nearest words.

Start with `table.py`; `formats.py` reads published files. Only the names listed here are public.
"""

from zoo.words import formats, plain_reader
from zoo.words.table import VECTORS, InPlace, WordTable, is_prepared, prepare

__all__ = ["VECTORS", "InPlace", "WordTable", "formats", "is_prepared", "plain_reader", "prepare"]
