"""TextClassifier within scikit-learn: its model selection, its pipelines, its estimator checks.

The checks of `sklearn.utils.estimator_checks` fit tables of numbers. `OfNumbers` is TextClassifier
behind a step that writes each row as a text, so that everything they ask of an estimator's form is
asked of ours. What is not asked, or not met, stands in EXPECTED_FAILURES with its reason.
"""

import warnings

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn", minversion="1.6")

from sklearn.base import clone, is_classifier  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402
from sklearn.utils.validation import check_is_fitted  # noqa: E402

import minisft  # noqa: E402
from minisft.data import toy_news  # noqa: E402
from minisft.estimators import CompletionModel, TextClassifier  # noqa: E402

TEXTS, LABELS = (list(part[:48]) for part in toy_news.generate("train"))
SMALL = {"model": "scratch", "layers": 1, "width": 16, "heads": 2, "vocab_size": 257,
         "context_length": 64, "epochs": 1, "quiet": True}

NOT_OF_TEXTS = "about what a table of numbers may hold: OfNumbers is no part of minisft"
NO_FEATURES = "a text has no number of features, so none is kept or compared"
WORDING = "raises a ValueError, in words about texts and labels"
EXPECTED_FAILURES = {
    "check_complex_data": NOT_OF_TEXTS,
    "check_dtype_object": NOT_OF_TEXTS,
    "check_estimator_sparse_array": NOT_OF_TEXTS,
    "check_estimator_sparse_matrix": NOT_OF_TEXTS,
    "check_estimator_sparse_tag": NOT_OF_TEXTS,
    "check_estimators_nan_inf": NOT_OF_TEXTS,
    "check_n_features_in": NO_FEATURES,
    "check_n_features_in_after_fitting": NO_FEATURES,
    "check_classifiers_train": NO_FEATURES + " (the last thing that it asks; all before passes)",
    "check_estimators_empty_data_messages": WORDING,
    "check_fit2d_1sample": WORDING,
    "check_requires_y_none": WORDING,
    "check_fit_score_takes_y": "the second argument is called labels; scikit-learn passes it by "
                               "position",
    "check_supervised_y_2d": "labels in a column are refused: scikit-learn warns and flattens them",
}


class OfNumbers(TextClassifier):
    """A row of numbers is written as a text, each number rounded to one digit."""

    def __init__(self, lr=1e-2, epochs=1):
        super().__init__(**SMALL | {"lr": lr, "epochs": epochs})

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False
        tags.input_tags.string = False
        return tags

    @staticmethod
    def texts(X):
        X = np.asarray(X)
        if X.ndim == 1:
            raise ValueError("Reshape your data: expected a row for each text")
        return [" ".join(f"{x:.1f}" for x in row) for row in X]

    def fit(self, X, y):
        return super().fit(self.texts(X), y)

    def predict_proba(self, X):
        return super().predict_proba(self.texts(X))


def test_every_check_passes_or_is_listed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")     # that it does not inherit from BaseEstimator
        results = check_estimator(OfNumbers(), on_fail=None, on_skip=None,
                                  expected_failed_checks=EXPECTED_FAILURES)
    failed = {r["check_name"]: repr(r["exception"])[:300] for r in results
              if r["status"] == "failed"}
    assert not failed, failed
    met = {r["check_name"] for r in results if r["status"] == "xfail"}
    assert met == EXPECTED_FAILURES.keys()
    assert sum(r["status"] == "passed" for r in results) >= 20


def test_cross_validation():
    scores = cross_val_score(TextClassifier(**SMALL), TEXTS, LABELS, cv=3)
    assert scores.shape == (3,) and np.isfinite(scores).all()
    p = cross_val_predict(TextClassifier(**SMALL), TEXTS, LABELS, cv=2, method="predict_proba")
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(scores, cross_val_score(TextClassifier(**SMALL),
                                                          np.array(TEXTS), LABELS, cv=3))


def test_grid_search():
    search = GridSearchCV(TextClassifier(**SMALL), {"lr": [1e-3, 1e-2], "epochs": np.array([1, 2])},
                          cv=2, scoring="neg_log_loss").fit(TEXTS, LABELS)
    assert search.best_params_.keys() == {"lr", "epochs"}
    assert search.predict(TEXTS[:2]).shape == (2,) and (search.classes_ == np.unique(LABELS)).all()
    assert "GridSearchCV" in search._repr_html_()


def test_the_end_of_a_pipeline():
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipeline = make_pipeline(lower, TextClassifier(**SMALL))
    with pytest.raises(NotFittedError):
        check_is_fitted(pipeline)
    pipeline.fit(TEXTS, LABELS)
    check_is_fitted(pipeline)
    assert pipeline.set_params(textclassifier__epochs=2).get_params()["textclassifier__epochs"] == 2
    assert 0 <= pipeline.score(TEXTS, LABELS) <= 1 and is_classifier(pipeline)


def test_clones_and_errors():
    estimator = TextClassifier(**SMALL).fit(TEXTS, LABELS)
    again = clone(estimator)
    assert again.get_params() == estimator.get_params() and not hasattr(again, "model_")
    for kind in TextClassifier, CompletionModel:
        with pytest.raises(NotFittedError):
            check_is_fitted(kind())
        assert clone(kind(epochs=7)).get_params()["epochs"] == 7
    for error in NotFittedError, minisft.NotFittedError:
        with pytest.raises(error):
            again.predict(TEXTS)
    assert is_classifier(estimator) and not is_classifier(CompletionModel())


def test_completions_are_cross_validated_by_their_loss():
    scores = cross_val_score(CompletionModel(**SMALL), TEXTS, LABELS, cv=2)
    assert (scores < 0).all()
