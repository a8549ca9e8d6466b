"""The errors a user can meet; each message is one sentence that says what to do."""


class MedkdError(ValueError):
    """Bad input or a bad setting: names the file or parameter, what was expected and the way out."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook: the sentence alone."""
        return [f"{type(self).__name__}: {self}"]


class DataError(MedkdError):
    """A cohort's files are missing, unreadable or not in the layout that the reader expects."""


class ParameterError(MedkdError):
    """A stage parameter is unknown or out of range."""


class TrainingError(MedkdError):
    """Training cannot go on, for example because the loss is no longer finite."""
