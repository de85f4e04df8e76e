"""ONNX's backend tests of single nodes, on every path of ours. They have no gradients.

Their numbers are in float32, and so are right to a few times 1e-7.
"""

import warnings
from inspect import signature
from types import SimpleNamespace

import numpy as np
import pytest

from tests.peers.nodes import LIKE_OURS, NODES, NOT_OURS

pytestmark = [pytest.mark.parity, pytest.mark.slow]
EXACT = 1e-6
KINDS = {"Adam": 4, "Momentum": 3}     # of tensors, as many of each as there are parameters


@pytest.fixture(scope="module")
def onnx_nodes():
    """The test cases of one node each, and what is asked of its operator's schema."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # theirs, while they load
        onnx = pytest.importorskip("onnx")
        from onnx.backend.test.case.node import collect_testcases
        cases = [case for case in collect_testcases(None) if len(case.model.graph.node) == 1]
    return SimpleNamespace(onnx=onnx, cases=[
        (case.model.graph.node[0], case) for case in cases if case.data_sets])


def made(onnx, operator, node, case):
    """-> the arguments of `paths.compare`."""
    (inputs, outputs), *_ = case.data_sets
    function, y = NODES[operator][0], np.asarray(outputs[0])
    if operator in KINDS:
        n = len(inputs[2:]) // KINDS[operator]
        given = {"R": inputs[0], "T": inputs[1], "tensors": inputs[2:]}
        y = np.concatenate(outputs[:n])
    else:
        version = next(o.version for o in case.model.opset_import if o.domain == node.domain)
        names = [slot.name for slot in onnx.defs.get_schema(operator, version, node.domain).inputs]
        # the versions of an operator call its first input by several names
        names[0] = next(iter(signature(function).parameters))
        used = [name for name, there in zip(names, node.input, strict=False) if there]
        given = dict(zip(used, inputs, strict=True))
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        given[attribute.name] = value.decode() if isinstance(value, bytes) else value
    if operator == "Dropout":
        given["kept"] = y != 0
    express, arguments = function(**given)
    return {"express": express, "arguments": arguments, "y": y, "exact": EXACT}


@pytest.mark.parametrize("operator", NODES)
def test_nodes_of_onnx(onnx_nodes, compared, operator):
    cases = [(case.name, lambda node=node, case=case: made(onnx_nodes.onnx, operator, node, case))
             for node, case in onnx_nodes.cases if node.op_type == operator]
    assert cases
    assert compared("onnx", cases) == NODES[operator][1]


def test_the_tables_name_what_onnx_has(onnx_nodes):
    names = {node.op_type for node, _ in onnx_nodes.cases}
    assert {*NODES, *NOT_OURS} <= names and not NODES.keys() & NOT_OURS.keys()
    alike = {name for name in names if any(word in name for word in LIKE_OURS)}
    assert alike <= {*NODES, *NOT_OURS}
