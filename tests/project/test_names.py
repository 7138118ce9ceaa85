"""The names of tests mirror the tree of zoo/."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Modules without a test file of their name, with the files that test them.
TESTED_BY = {
    "api": "every test that makes a Zoo",
    "diagnostics.gpu_probe": "tests/diagnostics/test_runtime_checks.py, by `zoo doctor`",
    "evaluation.evaluate": "tests/evaluation/test_evaluate.py, by `zoo evaluate`",
    "hub": "tests/data/test_dataset_hub.py and tests/plugins/test_source_hub.py",
    "outputs.vector_file": "tests/outputs/test_embed.py, by `zoo embed`",
    "results": "every test that reads an answer of a verb",
    "runtime.in_order": "tests/runtime/test_per_core.py",
    "testing.child": "tests/plugin/test_child.py, by `zoo plugins check`",
    "testing.families": "tests/testing/test_conformance.py, by `zoo plugins check`",
    "textkit": "tests/plugins/test_sentence_models.py, by models with dense layers",
    "training.objective": "tests/training/test_loop.py and test_finetune_tasks.py",
    "training.convex": "tests/training/test_solver.py, by the optimum of every loss",
    "training.strength_path": "tests/training/test_fit_linear.py, by the heads it chooses",
    "training.trained_head": "every test that trains a head",
    "training.write_bundle": "every test that fine-tunes",
    "workspace": "every test that makes a Zoo",
}


def modules() -> set[str]:
    """The modules of zoo/, such as `store.pull`, except the templates of a new plugin."""
    found = set()
    for path in (ROOT / "zoo").rglob("*.py"):
        parts = path.relative_to(ROOT / "zoo").with_suffix("").parts
        if parts[-1] != "__init__" and parts[0] != "templates":
            found.add(".".join(parts))
    return found


def named(test: str, folder: str) -> set[str]:
    """The modules of `folder` that the test file `test` may test: test_MODULE or test_MODULE_SUBJECT."""
    about = test.removeprefix("test_")
    stems = {module.rpartition(".")[2]: module for module in modules() if module.rpartition(".")[0] == folder}
    return {module for stem, module in stems.items() if about == stem or about.startswith(f"{stem}_")}


def test_every_test_file_has_the_name_of_a_module() -> None:
    folders = {path.name for path in (ROOT / "zoo").iterdir() if (path / "__init__.py").is_file()}
    for folder in ["", *folders]:
        for path in (ROOT / "tests" / folder).glob("test_*.py"):
            assert named(path.stem, folder), f"{path.relative_to(ROOT)} has no module of zoo/{folder}"


def test_every_module_has_a_test() -> None:
    tests = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    untested = set()
    for module in modules():
        folder, _, stem = module.rpartition(".")
        mention = re.compile(rf"zoo\.{module}\b|from zoo\.{folder} import [^\n]*\b{stem}\b")
        has_name = any(module in named(path.stem, folder) for path in (ROOT / "tests" / folder).glob("test_*.py"))
        if not has_name and not any(map(mention.search, tests)):
            untested.add(module)
    assert untested <= TESTED_BY.keys(), "these need a test file, or a line in TESTED_BY"
    # The list has no removed modules.
    assert TESTED_BY.keys() <= modules()
