"""A fixture that runs the command line in the process of the tests."""

from collections.abc import Callable

import pytest
from zoo_cli import app


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """A function that runs the command in this process and returns its exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["zoo", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        said = capfd.readouterr()
        return int(str(ended.value.code)), said.out, said.err

    return call
