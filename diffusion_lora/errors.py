"""Every error a user can cause, as one tree. The faces (command line, page) catch `UserError` and nothing else.

    UserError                  one clear sentence: the value, where it came from, what to do
    ├── ConfigError            a key, a type or a range in a TOML file or in --set
    ├── DatasetError           the folder of pictures and captions
    ├── CaptionerError         a captioner: unknown name, incomplete folder, a library that it lacks
    ├── AdapterFileError       a LoRA file that cannot be read or belongs to another model family
    ├── BaseModelError         the base model: unknown name, incomplete folder, no network
    ├── RunError               a run folder, its checkpoints, a training that cannot go on
    │   └── RunInterrupted      Ctrl-C or SIGTERM: everything is saved, the sentence says how to go on
    ├── WorkspaceError         an adopted folder, a name that is found nowhere or twice, notes beside a model
    ├── OutputError            a place that cannot be written: below a file, no permission, disk full
    ├── PromptError            a prompt or a request for a picture
    │   └── PromptSyntaxError   a place in a prompt that has no meaning; it knows the place
    ├── DeviceError            a device that is not there, or lacks what was asked of it
    └── ServiceError           the page, the engine or the worker: an address, a port, a process that does not start

`str(error)` is the sentence; there is nothing else to format. Anything that is not a `UserError` is a bug and keeps its
traceback.
"""


_SHOWN_CHARS = 20  # of a prompt, on either side of a mistake


class UserError(Exception):
    """A mistake or circumstance the user can mend; `str(error)` is the one sentence to show."""


class ConfigError(UserError):
    """A key, type or range in a configuration."""


class DatasetError(UserError):
    """Pictures or captions that cannot be used."""


class CaptionerError(UserError):
    """A model that describes pictures and cannot be found or loaded."""


class AdapterFileError(UserError):
    """A LoRA file that cannot be read, or does not fit the model."""


class BaseModelError(UserError):
    """A base model that cannot be found or loaded."""


class RunError(UserError):
    """A run folder or a run in a state from which it cannot go on."""


class RunInterrupted(RunError):  # noqa: N818 -- an end that was asked for is no error
    """The run was asked to stop; its state is saved and the sentence names the command that goes on."""


class WorkspaceError(UserError):
    """A folder that cannot be adopted, a name that is found nowhere or twice, notes that cannot be kept."""


class OutputError(UserError):
    """A file or folder that cannot be written."""


class PromptError(UserError):
    """A prompt or picture request that cannot be carried out."""


class PromptSyntaxError(PromptError):
    """A place in a prompt that has no meaning: `at` counts characters from 0; the sentence shows what stands there."""

    def __init__(self, problem: str, prompt: str, at: int) -> None:
        shown = f"{prompt[max(0, at - _SHOWN_CHARS) : at]}▸{prompt[at : at + _SHOWN_CHARS]}"
        shown = "".join(letter if letter.isprintable() else " " for letter in shown)
        super().__init__(f"in the prompt, at character {at + 1} (`{shown}`): {problem}")
        self.at = at


class DeviceError(UserError):
    """A compute device that is missing or unable."""


class ServiceError(UserError):
    """A process that serves (page, engine, worker) and cannot be started, reached or placed where it was asked to."""
