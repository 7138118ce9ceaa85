"""Nothing heavy is imported before it is needed. Each case runs in its own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "onnxruntime",
    "onnx",
    "numpy",
    "transformers",
    "huggingface_hub",
    "pydantic",
    "PIL",
    "tokenizers",
    "timm",
)

REPORT = f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"


def heavy_after(code: str) -> str:
    """The heavy modules that are loaded after `code` ran in a new interpreter."""
    script = f"import atexit, sys\natexit.register(lambda: {REPORT})\n{code}\n"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert child.returncode == 0, child.stderr
    return child.stderr.strip().splitlines()[-1]


def test_the_report_sees_what_is_there() -> None:
    assert heavy_after("import PIL") == "['PIL']"


@pytest.mark.parametrize(
    "code",
    [
        "import zoo",
        "import zoo.registry.registry",
        "import zoo.plugin.manager",
        "from zoo.registry.registry import builtin_registry_path as path, load_registry; load_registry([path()])",
        "import zoo_plugins.backbones.resnet, zoo_plugins.backbones.inception, zoo_plugins.backbones.efficientnet",
        "from zoo.plugin.manager import Plugins; Plugins().describe()",
        "from zoo.plugin.manager import Plugins; plugins = Plugins(); "
        "[plugins.backbone(name) for name in plugins.families()]",
        "from zoo.plugin.manager import Plugins; plugins = Plugins(); "
        "[plugins.bridge(name) for name in plugins.prefixes()]",
    ],
)
def test_the_library_imports_nothing_heavy(code: str) -> None:
    assert heavy_after(code) == "[]"


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["list"],
        ["list", "--json"],
        ["show", "resnet50.tv_in1k"],
        ["show", "all-minilm-l6-v2", "--json"],
        ["pull", "--help"],
        ["finetune", "--help"],
        ["run", "--help"],
        ["bench", "--help"],
    ],
    ids=" ".join,
)
def test_the_command_line_imports_nothing_heavy(argv: list[str]) -> None:
    code = f"sys.argv[1:] = {argv!r}\nfrom zoo_cli.app import main\nsys.exit(main())"
    assert heavy_after(code) == "[]"


def test_no_plugin_is_loaded_by_list() -> None:
    code = "sys.argv[1:] = ['list']\nfrom zoo_cli.app import main\ncode = main()\n"
    code += "assert not [name for name in sys.modules if name.startswith('zoo_plugins')]\nsys.exit(code)"
    assert heavy_after(code) == "[]"


def test_a_slow_plugin_does_not_slow_down_help(tmp_path: Path) -> None:
    """A plugin that sleeps when imported is found by its metadata and not imported."""
    (tmp_path / "toy_sleeper.py").write_text("import time\ntime.sleep(30)\n")
    info = tmp_path / "toy_sleeper-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-sleeper\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[zoo.backbones]\nsleeper = toy_sleeper\n")
    code = f"sys.path.insert(0, {os.fspath(tmp_path)!r})\n"
    code += "from zoo.plugin.manager import Plugins\nassert 'sleeper' in Plugins().families()\n"
    code += "sys.argv[1:] = ['--help']\nfrom zoo_cli.app import main\nsys.exit(main())"
    assert heavy_after(code) == "[]"
