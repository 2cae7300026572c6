"""Every exception a user can cause, as one tree.

    ParallelMindError
    ├── DataError                a file, row or field of the user's data (also ValueError)
    ├── SettingsError            a flag, parameter or combination of them (also ValueError)
    ├── UnsupportedModelError    a model that cannot run parallel branches
    ├── AdapterError             a LoRA file that does not fit, or is not safe to read
    ├── TrainingError            a training run that cannot go on: loss not a number, no memory, no disk
    ├── JobError                 an output that belongs to another job, is locked or damaged
    └── RequestError             one request or branch the engine cannot run (also ValueError)

Messages name the file, row, field or flag, the value found, and the remedy.
"""

from __future__ import annotations


class ParallelMindError(Exception):
    """Base of all errors that a user can cause and remedy."""


class DataError(ParallelMindError, ValueError):
    """A data file, row or field is wrong."""


class SettingsError(ParallelMindError, ValueError):
    """A flag or parameter, or a combination of them, is wrong."""


class UnsupportedModelError(ParallelMindError):
    """The model cannot run parallel branches."""


class AdapterError(ParallelMindError):
    """A LoRA file does not fit the model or cannot be read safely."""


class TrainingError(ParallelMindError):
    """A training run cannot go on."""


class JobError(ParallelMindError):
    """An output belongs to another job, is in use, or is damaged."""


class RequestError(ParallelMindError, ValueError):
    """The engine cannot run a request or one of its branches."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, for a message of ours: its first line, or its kind where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the processor.

    torch has a type for it, but where another process took the memory, or where the processor's runs out, it raises
    AcceleratorError or RuntimeError and only the text tells. (No type of torch is named here: it is slow to import.)
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_RAN_OUT)


_MEMORY_RAN_OUT = ("CUDA error: out of memory", "not enough memory", "can't allocate memory")
