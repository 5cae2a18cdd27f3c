"""Errors with a message for the user."""


class BadInput(ValueError):
    """Error in a file, value or option of the user.

    The message is one line with the cause, the location and a fix. The command line prints it and exits with code 2;
    other errors are defects and exit with code 1.
    """


class TrainingStopped(RuntimeError):
    """Error of a run that cannot continue, such as a non-finite loss.

    The message is one line with the step, the cause, the images and a fix. The command line exits with code 1.
    """
