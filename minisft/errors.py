"""The error of a public door: something a user gave us is wrong, and they can mend it."""


class UserError(ValueError):
    """One line: the file, the line or tensor, what was found and what was expected."""


class NotFittedError(UserError, AttributeError):
    """An estimator was asked before `fit`; scikit-learn's own error has the same two parents."""
