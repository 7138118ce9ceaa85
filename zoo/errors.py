"""Every error that zoo raises on purpose: a message, a hint, and an exit code for each type.

`make docs` writes the table of docs/errors.md from the docstrings, codes and exit codes below.
"""

from collections.abc import Sequence
from typing import ClassVar


class ZooError(Exception):
    """Raised when a child process fails unexpectedly, or some of many inputs fail; the base class of all errors.

    `message` describes the problem, `hint` its solution. The command line exits with `exit_code`; `code` is the stable
    name that `--json` prints.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        #: The numbers behind the error, for `--json`: plain data or a struct of zoo.schema or zoo.results.
        self.report: object = None

    @staticmethod
    def restore(code: str, message: str, hint: str | None) -> "ZooError":
        """The error that a child process reported, as the type that `code` names. Its attributes are not restored."""
        kinds = [ZooError]
        for kind in kinds:
            kinds += kind.__subclasses__()
        kind = next((kind for kind in kinds if kind.code == code), ZooError)
        error = kind.__new__(kind)
        ZooError.__init__(error, message, hint=hint)
        return error


class UsageError(ZooError):
    """Raised when an option or a combination of options is invalid, or a model of another library is unsupported."""

    exit_code = 2
    code = "usage"


class DataError(UsageError):
    """Raised when the data cannot be used: an empty class, a missing column, a broken image, no known word in a text.

    `path` is the file or folder at fault, `index` the index of the item among those that were given.
    """

    code = "data"

    def __init__(self, message: str, *, path: object = None, index: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.index = index


class RegistryError(UsageError):
    """Raised when a registry file breaks its schema; the message names the line and field, `source` is the file."""

    code = "registry"

    def __init__(self, message: str, *, source: object = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.source = source


class NotFoundError(ZooError):
    """Raised when a registry row, a bundle, a file, a bridged model or a word of a table does not exist."""

    exit_code = 3
    code = "not-found"


class MissingFileError(DataError, NotFoundError):
    """Raised when data or an input file does not exist; `path` and `index` are those of a DataError."""

    exit_code = 3
    code = "not-found"


class UnknownEntryError(NotFoundError):
    """Raised when no registry row has that name; `suggestions` are similar names, also in the hint."""

    code = "unknown-model"

    def __init__(self, name: str, suggestions: Sequence[str] = ()) -> None:
        hint = f"did you mean {' or '.join(suggestions)}?" if suggestions else "zoo list shows every name"
        super().__init__(f"no model named '{name}' in the registry", hint=hint)
        self.name = name
        self.suggestions = tuple(suggestions)


class MissingExtraError(NotFoundError):
    """Raised when an optional package is not installed; `extra` installs it, see the hint."""

    code = "missing-extra"

    def __init__(self, package: str, extra: str, purpose: str, *, alternative: str | None = None) -> None:
        install = f"pip install 'backbone-zoo[{extra}]'"
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed",
            hint=f"{install}{'; or ' + alternative if alternative else ''}",
        )
        self.package = package
        self.extra = extra


class NetworkError(ZooError):
    """Raised when every source of a file failed; `url` is the last one tried."""

    exit_code = 4
    code = "network"

    def __init__(self, message: str, *, url: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.url = url


class OfflineError(NetworkError):
    """Raised when a file has to be fetched and `ZOO_OFFLINE` or `--offline` forbids it."""

    code = "offline"


class IntegrityError(ZooError):
    """Raised when a file differs from its pinned size or sha256 (`expected`, `actual`), or has a wrong format."""

    exit_code = 5
    code = "integrity"

    def __init__(
        self,
        message: str,
        *,
        expected: str | int | None = None,
        actual: str | int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.expected = expected
        self.actual = actual


class UnpinnedError(IntegrityError):
    """Raised when a file has no pinned sha256 and `--trust-first` was not given."""

    code = "unpinned"


class GateError(ZooError):
    """Raised when a parity check, `--max-drop`, `--fail-under` or a check of a plugin fails: see `report`."""

    exit_code = 6
    code = "gate"

    def __init__(self, message: str, *, report: object = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.report = report


class DeviceError(ZooError):
    """Raised when the requested `device` cannot be used."""

    exit_code = 7
    code = "device"

    def __init__(self, message: str, *, device: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.device = device


class OutOfMemoryError(DeviceError):
    """Raised when a training step needs more memory than the device has: use a smaller `--batch`, or `--auto-batch`."""

    code = "out-of-memory"


class AccessError(ZooError):
    """Raised when a license, a credential or a file permission does not allow the operation."""

    exit_code = 8
    code = "access"


class PluginError(ZooError):
    """Raised when a plugin is broken, or two distributions claim its name; `plugin` names it and its distribution."""

    exit_code = 9
    code = "plugin"

    def __init__(self, message: str, *, plugin: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.plugin = plugin


class UnknownPluginError(PluginError):
    """Raised when no plugin provides the family, URL scheme or prefix with the name `plugin`."""

    code = "unknown-plugin"


class DivergedError(ZooError):
    """Raised when a training loss is no longer finite in epoch `epoch`, counted from 1."""

    exit_code = 10
    code = "diverged"

    def __init__(self, message: str, *, epoch: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.epoch = epoch


def named(error: ZooError, name: str, item: object) -> ZooError:
    """The same error with the item's `name` before its message, unless the message names the item already."""
    # The message already contains a text that is its own name. If the error has a path, it contains that path.
    is_own_name = isinstance(item, str) and item == name
    if not is_own_name and getattr(error, "path", None) is None:
        error.message = f"{name}: {error.message}"
        error.args = (error.message,)
        if isinstance(error, DataError):
            error.path = name
    return error


def quote(value: object) -> str:
    """Untrusted text in quotes, printable on one line."""
    return f"'{short(str(value))}'"


def counted(number: int, noun: str) -> str:
    """The number and its noun: 1 item, 2 items."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def short(text: str) -> str:
    """Untrusted text, printable on one line, at most 64 characters long."""
    text = text if text.isprintable() else repr(text[:64])
    return text if len(text) <= 64 else text[:61] + "..."


def brief(text: str) -> str:
    """The first line of `text`, at most 200 characters."""
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= 200 else line[:197] + "..."
