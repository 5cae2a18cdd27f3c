"""The one error that is the user's to mend."""


class BadInput(ValueError):
    """A file, value or option given by the user that cannot be used.

    The message is a single line: what is wrong, where, and how to mend it. The command line prints it and
    exits with code 2; everything else that goes wrong is a defect and exits with code 1.
    """
