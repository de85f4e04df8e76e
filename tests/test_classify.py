"""The task `classify`: the weights of the classes."""

import json

import numpy as np
import pytest

from minisft.errors import UserError
from minisft.jobs.classify import class_weights


def test_class_weights():
    labels = [0, 0, 0, 1, 1, 2]
    assert class_weights("none", "abc", labels) is None
    np.testing.assert_allclose(class_weights("balanced", "abc", labels), [6 / 9, 1, 2])
    np.testing.assert_allclose(class_weights("c=2.5,a=0.5", "abc", labels), [0.5, 1, 2.5])
    np.testing.assert_allclose(class_weights("a=b=3", ("a=b", "c"), [0, 1]), [3, 1])


@pytest.mark.parametrize("name", ["a, b", "a=b", 'say "so"', "{x}", "ä, 'b'=", "{", '"', "a,b=1"])
def test_any_class_can_be_named(name):
    quoted = '"' + name.replace('"', '""') + '"'
    for text in (f"{quoted}=3,c=2", f'"{quoted[1:-1]}=3",c=2', json.dumps({name: 3, "c": "2"})):
        np.testing.assert_allclose(class_weights(text, (name, "c"), [0, 1]), [3, 2])
    with pytest.raises(UserError, match="a name with a comma stands in quotes"):
        class_weights("a, b=3", ("a, b", "c"), [0, 1])


@pytest.mark.parametrize("text", ["", "a", '{"a": null}', '{"a": 1, "a": 2}', '{"a": [1]}', "{a}=1",
                                  "a=1\nb=2", "d=1", "a=x", "a=0", "a=-1", "a=nan", "a=inf", "a=1,",
                                  "a=1e-50", "a=1e39",
                                  "a=1,a=2"])
def test_class_weights_that_make_no_sense(text):
    with pytest.raises(UserError, match="class_weights"):
        class_weights(text, "abc", [0, 1, 2])


def test_balance_needs_a_text_of_each_class():
    with pytest.raises(UserError, match="balanced': no training text of c"):
        class_weights("balanced", "abc", [0, 1, 1])
