"""Everything that can go wrong for a reason the user can act on.

Each message says what was found and what to do. The command line prints it without a traceback and exits with
`exit_code`.
"""


class DffgError(Exception):
    """Base of all errors dffg raises on purpose."""

    exit_code = 2


class InputError(DffgError):
    """An argument, file or name that cannot be used."""


class DataError(InputError):
    """A part of the data that cannot be read; it may be found only after long work, which is kept."""


class ShortageError(InputError):
    """Memory that is short, perhaps only now; work that was done is kept."""


class CaptureError(DffgError):
    """A network that cannot be turned into one graph."""


class StatisticsError(DffgError):
    """BatchNorm statistics that are missing or unusable."""


class OutputError(DffgError):
    """A place that cannot be written to."""


class ExportError(DffgError):
    """A file that could not be written as standard ONNX."""


class StoppedError(DffgError):
    """Work that the user has stopped, and that can be gone on with."""

    exit_code = 130


def first_line(error: Exception) -> str:
    """What an error of another library says first, without what it prints below; its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
