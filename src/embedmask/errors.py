"""The errors that have a line of their own for the user."""


class BadInput(ValueError):
    """A file, value or option given by the user that cannot be used.

    The message is a single line: what is wrong, where, and how to mend it. The command line prints it and
    exits with code 2; everything else that goes wrong is a defect and exits with code 1.
    """


class TrainingStopped(RuntimeError):
    """A run that must not go on, such as one whose loss is no longer a number.

    The message is a single line: the step, what happened, in which images, and what to try. Exit code 1.
    """
