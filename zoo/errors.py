"""Everything that can go wrong, as types: one root, data as attributes, a hint that fixes it.

    ZooError                                   exit 1
      UsageError                               exit 2   an option, or a combination of options, that makes no sense
        DataError                              exit 2   the data given cannot be used (empty class, missing column, ...)
        RegistryError                          exit 2   a registry file that breaks its schema
      NotFoundError                            exit 3   no such entry, bundle, file
        UnknownEntryError                      exit 3
        MissingExtraError                      exit 3   an optional package is not installed
      NetworkError                             exit 4   no source answered
        OfflineError                           exit 4
      IntegrityError                           exit 5   bytes that are not the pinned ones
        UnpinnedError                          exit 5   a digest that nobody has pinned yet
      GateError                                exit 6   parity, accuracy or a floor was not reached
      DeviceError                              exit 7   the device asked for cannot be used
        OutOfMemoryError                       exit 7   training needs more memory than there is
      AccessError                              exit 8   license, credentials, file permissions
      PluginError                              exit 9
        UnknownPluginError                     exit 9   no plugin provides that family or scheme
      DivergedError                            exit 10  training produced non-finite numbers

`exit_code` is the process exit code of the command line and `code` the stable name that `--json` prints.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar


class ZooError(Exception):
    """Root of every error that zoo raises on purpose: `message` says what happened, `hint` how to fix it."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        #: Numbers behind the error, for `--json`: plain data or one of zoo's nouns.
        self.report: object = None

    @staticmethod
    def restore(code: str, message: str, hint: str | None) -> "ZooError":
        """The error that a child process reported, as the type that `code` names; its data stayed in the child."""
        kinds = [ZooError]
        for kind in kinds:
            kinds += kind.__subclasses__()
        kind = next((kind for kind in kinds if kind.code == code), ZooError)
        error = kind.__new__(kind)
        ZooError.__init__(error, message, hint=hint)
        return error


class UsageError(ZooError):
    """Raised when an option, or a combination of options, makes no sense."""

    exit_code = 2
    code = "usage"


class DataError(UsageError):
    """Raised when the data given cannot be used; `path` is the file or folder at fault.

    `index` is the place of the item at fault where only that is known of it: see `naming`.
    """

    code = "data"

    def __init__(self, message: str, *, path: object = None, index: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.index = index


class RegistryError(UsageError):
    """Raised when a registry file breaks its schema; `source` is the file."""

    code = "registry"

    def __init__(self, message: str, *, source: object = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.source = source


class NotFoundError(ZooError):
    """Raised when an entry, a bundle or a file does not exist."""

    exit_code = 3
    code = "not-found"


class UnknownEntryError(NotFoundError):
    """Raised when no registry row has that name; `suggestions` are the nearest ones."""

    code = "unknown-model"

    def __init__(self, name: str, suggestions: Sequence[str] = ()) -> None:
        hint = f"did you mean {' or '.join(suggestions)}?" if suggestions else "zoo list shows every name"
        super().__init__(f"no model named '{name}' in the registry", hint=hint)
        self.name = name
        self.suggestions = tuple(suggestions)


class MissingExtraError(NotFoundError):
    """Raised when an optional package is not installed; `extra` is the one that brings it."""

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
    """Raised when no source delivered; `url` is the last one tried."""

    exit_code = 4
    code = "network"

    def __init__(self, message: str, *, url: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.url = url


class OfflineError(NetworkError):
    """Raised when something must be fetched and ZOO_OFFLINE (or --offline) forbids it."""

    code = "offline"


class IntegrityError(ZooError):
    """Raised when bytes differ from the pinned ones: `expected` and `actual` are digests or sizes."""

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
    """Raised when a row has a file without a pinned digest and the caller did not ask to trust the first bytes."""

    code = "unpinned"


class GateError(ZooError):
    """Raised when parity, accuracy or a floor is not reached; `report` holds the numbers."""

    exit_code = 6
    code = "gate"

    def __init__(self, message: str, *, report: object = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.report = report


class DeviceError(ZooError):
    """Raised when the device asked for cannot be used; `device` is what was asked for."""

    exit_code = 7
    code = "device"

    def __init__(self, message: str, *, device: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.device = device


class OutOfMemoryError(DeviceError):
    """Raised when a training step needs more memory than the device has."""

    code = "out-of-memory"


class AccessError(ZooError):
    """Raised when a license, a credential or a file permission forbids it."""

    exit_code = 8
    code = "access"


class PluginError(ZooError):
    """Raised when a plugin fails; `plugin` names it and its distribution."""

    exit_code = 9
    code = "plugin"

    def __init__(self, message: str, *, plugin: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.plugin = plugin


class UnknownPluginError(PluginError):
    """Raised when no plugin provides what is needed; `plugin` is the name that was looked for."""

    code = "unknown-plugin"


class DivergedError(ZooError):
    """Raised when training produced non-finite numbers; `epoch` is where."""

    exit_code = 10
    code = "diverged"

    def __init__(self, message: str, *, epoch: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.epoch = epoch


@contextmanager
def naming(names: Sequence[str], items: Sequence[object]) -> Iterator[None]:
    """Name the item at fault (`tickets.csv:17`) in a DataError that knows only its place among `items`."""
    try:
        yield
    except DataError as error:
        if error.index is not None:
            named(error, names[error.index], items[error.index])
        raise


def named(error: ZooError, name: str, item: object) -> ZooError:
    """The same error with the item's `name` before its message, where that does not tell the item already."""
    # A text that is its own name is in the message, and whatever has a path says it.
    is_own_name = isinstance(item, str) and item == name
    if not is_own_name and getattr(error, "path", None) is None:
        error.message = f"{name}: {error.message}"
        error.args = (error.message,)
        if isinstance(error, DataError):
            error.path = name
    return error


def quote(value: object) -> str:
    """A stranger's word in quotes, fit to be printed inside one line."""
    return f"'{short(str(value))}'"


def short(text: str) -> str:
    """A stranger's words, fit to be printed inside one line."""
    text = text if text.isprintable() else repr(text[:64])
    return text if len(text) <= 64 else text[:61] + "..."


def brief(text: str) -> str:
    """The first line of `text`, at most 200 characters of it."""
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= 200 else line[:197] + "..."
