"""Word vectors: word2vec, GloVe and fastText files, or any table with a separate list of words.

word2vec: Mikolov et al., https://arxiv.org/abs/1301.3781; GloVe: Pennington et al., https://aclanthology.org/D14-1162;
fastText: Bojanowski et al., https://arxiv.org/abs/1607.04606. A text's features are the mean of its words' vectors.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.backbone import Backbone
from zoo.errors import RegistryError
from zoo.extras import require
from zoo.hookspecs import hookimpl
from zoo.progress import SILENT, Progress
from zoo.schema import Entry, ExportOptions, WordsPreprocess
from zoo.words import VECTORS, InPlace, WordTable, formats, is_prepared, plain_reader, prepare

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from zoo.backbone import TensorMap

#: Rows copied at once.
ROWS = 1 << 14


class Word2Vec(Backbone):
    """The family `word2vec`.

    `config.format` is one of `zoo.words.formats.LAYOUTS`; a row needs it if the suffix of the table is ambiguous.
    `config.column` names the column of the words in a Parquet list with several columns. Raises RegistryError for an
    inconsistent row.
    """

    family = "word2vec"

    def __init__(self, entry: Entry, weights: Path) -> None:
        super().__init__(entry, weights)
        preprocess, config = entry.preprocess, entry.config
        if not isinstance(preprocess, WordsPreprocess):
            raise RegistryError(
                f"{entry.name}: the family word2vec needs preprocess kind words", hint="preprocess: {kind: words, ...}"
            )
        self.preprocess = preprocess
        if unknown := sorted(config.keys() - {"format", "column"}):
            raise RegistryError(f"{entry.name}: unknown config.{unknown[0]}", hint="known: format, column")
        layout = formats.layout(entry)
        if layout is None:
            hint = f"config.format is one of {', '.join(formats.LAYOUTS)}"
            raise RegistryError(f"{entry.name}: the format of {preprocess.table} is unknown", hint=hint)
        if (layout in formats.TABLES) != (preprocess.words is not None):
            needs = "needs a list of words" if preprocess.words is None else "contains its words"
            raise RegistryError(f"{entry.name}: a {layout} file {needs}", hint="see preprocess.words")
        self.layout = layout

    @property
    def packages(self) -> tuple[str, ...]:
        """numpy, and pyarrow if the list of words is a Parquet file."""
        return ("numpy", "pyarrow") if str(self.preprocess.words).endswith(".parquet") else ("numpy",)

    def prepare(self, progress: Progress = SILENT) -> None:
        """Convert the row's files to the memory-mapped form of zoo.words; a float32 table is not copied.

        Raises IntegrityError for files of another format.
        """
        if is_prepared(self.weights):
            return
        require(f"preparing {self.entry.name}", *self.packages)
        with progress.task(f"preparing {self.entry.name}", None):
            self._convert()

    def _convert(self) -> None:
        dim, table = self.entry.dim, self.weights / self.preprocess.table
        if self.preprocess.words is None:
            prepare(self.weights, formats.read(table, self.layout, dim), dim)
            return
        listed = self.weights / self.preprocess.words
        vectors, offset = formats.read_table(table, self.layout, dim)
        words = formats.read_words(listed, self.entry.config.get("column"))
        # If a word is repeated, its later rows are left out, and ids are not row indices of the file.
        is_table = vectors.dtype.str == "<f4" and vectors.flags.c_contiguous and offset % 4 == 0
        is_table = is_table and len(set(words)) == len(words)
        in_place = InPlace(table.name, offset) if is_table else None
        prepare(self.weights, formats.pair(listed, words, vectors), dim, in_place)

    def export(self, path: Path, options: ExportOptions) -> None:
        """Write the look-up and masked mean as ONNX; the table is external data in `vectors.bin` beside `path`."""
        self.prepare()
        import onnx

        vectors = WordTable.open(self.weights).vectors
        with path.with_name(VECTORS).open("wb") as file:
            for start in range(0, len(vectors), ROWS):
                file.write(vectors[start : start + ROWS].tobytes())
        counts_unknown = self.preprocess.unknown == "zero"
        model = mean_graph(len(vectors), self.entry.dim, options, counts_unknown=counts_unknown)
        onnx.save(model, path)

    def reference(self, feeds: "TensorMap") -> "TensorMap":
        """The same mean in numpy, from the original files, which are read row by row without the prepared form."""
        import numpy as np

        ids, mask = feeds["input_ids"], feeds["attention_mask"]
        rows = self._plain({int(index) for index in np.unique(ids)})
        features = np.zeros((len(ids), self.entry.dim), np.float32)
        for item, (row, present) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
            words = [index for index, is_word in zip(row, present, strict=True) if is_word]
            known = [rows[index] for index in words if index in rows]
            count = len(words) if self.preprocess.unknown == "zero" else len(known)
            if known:
                features[item] = np.sum(known, 0, np.float64) / count
        return {"features": features}

    def _plain(self, wanted: set[int]) -> "dict[int, NDArray[np.float32]]":
        """The vectors of these ids. The id of a word is its index in the file, counted without repeated words."""
        found: dict[int, NDArray[np.float32]] = {}
        seen: set[bytes] = set()
        last = max(wanted, default=-1)
        for word, vector in plain_reader.rows(self.entry, self.weights, self.layout):
            if len(seen) > last:
                break
            if word not in seen:
                if len(seen) in wanted:
                    found[len(seen)] = plain_reader.parse(vector)
                seen.add(word)
        return found


def mean_graph(count: int, dim: int, options: ExportOptions, *, counts_unknown: bool) -> "onnx.ModelProto":
    """A graph whose `features` [batch, dim] are means over words of a table [count, dim] in `vectors.bin`.

    Positions with `attention_mask` 0 are ignored. An id outside the table is ignored; with `counts_unknown` it counts
    as a zero vector. A text without words gives zeros. A MatMul applies the mask, which avoids an element-wise product
    of shape [batch, sequence, dim].
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    table = TensorProto(name="vectors", data_type=TensorProto.FLOAT, dims=[count, dim])
    table.data_location = TensorProto.EXTERNAL
    for key, value in (("location", VECTORS), ("offset", 0), ("length", 4 * count * dim)):
        table.external_data.add(key=key, value=str(value))
    numbers = (("zero", 0, "int64"), ("count", count, "int64"), ("last", [1], "int64"), ("one", 1, "float32"))
    node = helper.make_node
    nodes = [
        node("Equal", ["attention_mask", "zero"], ["is_padding"]),
        node("Not", ["is_padding"], ["is_word"]),
        node("Less", ["input_ids", "count"], ["is_below"]),
        node("GreaterOrEqual", ["input_ids", "zero"], ["is_above"]),
        node("And", ["is_below", "is_above"], ["is_known"]),
        node("And", ["is_word", "is_known"], ["is_used"]),
        node("Where", ["is_used", "input_ids", "zero"], ["ids"]),
        node("Gather", ["vectors", "ids"], ["gathered"]),
        node("Cast", ["is_used"], ["weights"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["weights", "last"], ["weight_rows"]),
        node("MatMul", ["weight_rows", "gathered"], ["sum_rows"]),
        node("Squeeze", ["sum_rows", "last"], ["sum"]),
        node("Cast", ["is_word" if counts_unknown else "is_used"], ["counted"], to=TensorProto.FLOAT),
        node("ReduceSum", ["counted", "last"], ["total"], keepdims=1),
        node("Max", ["total", "one"], ["divisor"]),
        node("Div", ["sum", "divisor"], ["features"]),
    ]
    shape = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", dim])],
        [table, *(numpy_helper.from_array(np.array(value, dtype), name) for name, value, dtype in numbers)],
    )
    opset = [helper.make_opsetid("", options.opset)]
    return helper.make_model(graph, opset_imports=opset, ir_version=options.ir_version)


@hookimpl
def zoo_register_backbones() -> Iterable[type[Backbone]]:
    """The family of this module."""
    return [Word2Vec]
