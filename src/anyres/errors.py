"""Every error that anyres raises on purpose, in one tree.

::

    AnyresError
    ├── InputError (ValueError)      what the caller passed cannot be used
    │   ├── ImageError               a picture that is missing, broken, empty or too large
    │   └── PromptError              a point, box, label or mask that makes no sense here
    ├── WeightsError (ValueError)    a checkpoint that is corrupt, foreign or does not fit the model
    ├── StateError (RuntimeError)    a call out of order, such as ``predict`` before ``set_image``
    ├── MemoryLimitError (MemoryError)   a run that would need more memory than there is or may be
    ├── MissingExtraError (ImportError)  an optional dependency that is not installed
    ├── OutputError (OSError)        a file that cannot be written: no folder, no space, not allowed
    └── RecordError (ValueError)     an append-only record file whose content is damaged

Each message says what was wrong, with what, and what to do next. Mistakes in how a command
was called (``InputError`` and below) end it with exit code 2, everything else with 1.
"""


class AnyresError(Exception):
    """Base of all errors raised by anyres."""

    exit_code = 1


class InputError(AnyresError, ValueError):
    """An argument that cannot be used: wrong shape, type, range or name."""

    exit_code = 2


class ImageError(InputError):
    """A picture that cannot be read: missing, truncated, empty, foreign or too large."""

    exit_code = 1


class PromptError(InputError):
    """A prompt that is malformed or does not lie in the picture."""


class WeightsError(AnyresError, ValueError):
    """A checkpoint that is corrupt, foreign, or does not fit the model."""


class StateError(AnyresError, RuntimeError):
    """A call out of order, such as ``predict`` before ``set_image``."""


class MemoryLimitError(AnyresError, MemoryError):
    """A run would take more memory than is available or allowed; found before it begins."""


class MissingExtraError(AnyresError, ImportError):
    """An optional dependency is needed and not installed."""


class OutputError(AnyresError, OSError):
    """A file that cannot be written: its folder is missing, the disk is full, or it is closed."""


class RecordError(AnyresError, ValueError):
    """An append-only record file whose content is damaged."""
