"""Counts of the peers' cases, printed at the end: tried, equal, not expressible; and by path."""

import warnings
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest

from tests.peers import paths
from tests.peers.expressions import NotExpressible

VERSION = "2.13."     # of PyTorch, as the extra `peers` has it


class Counts:
    """Of each peer, and of each path of ours."""

    def __init__(self):
        self.cases, self.reasons, self.ran = defaultdict(Counter), Counter(), Counter()

    def tried(self, peer):
        self.cases[peer]["tried"] += 1

    def equal(self, peer):
        self.cases[peer]["equal"] += 1

    def not_expressible(self, peer, limit):
        self.cases[peer]["not expressible"] += 1
        self.reasons[limit] += 1


COUNTS = Counts()


@pytest.fixture(scope="session")
def torch_tests():
    """torch and its databases of cases; imported here, so that collecting stays quick."""
    pytest.importorskip("expecttest")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # theirs, while they load
        torch = pytest.importorskip("torch")
        if not torch.__version__.startswith(VERSION):
            pytest.skip(f"the cases are private to PyTorch: {VERSION} is expected, not "
                        f"{torch.__version__}")
        from torch.testing._internal.common_methods_invocations import op_db
        from torch.testing._internal.common_modules import module_db
        from torch.testing._internal.common_optimizers import optim_db
    return SimpleNamespace(torch=torch, op_db=op_db, module_db=module_db, optim_db=optim_db)


@pytest.fixture(scope="session")
def counts():
    return COUNTS


@pytest.fixture
def compared(counts):
    """compared(peer, cases) -> the limits met. Each case is (its name, a function that makes the
    arguments of `paths.compare`); all must be equal but those that are not expressible.
    """
    def run(peer, cases):
        limits, differences = set(), []
        for name, make in cases:
            counts.tried(peer)
            try:
                found = paths.compare(**make(), ran=counts.ran)
            except NotExpressible as limit:
                limits.add(str(limit))
                counts.not_expressible(peer, str(limit))
                continue
            differences += [f"{name}: {line}" for line in found]
            if not found:
                counts.equal(peer)
        assert not differences, "\n".join(differences)
        return limits
    return run


def pytest_sessionfinish(session):
    """One process of several (`-n 2`) hands its counts to the one that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peers"] = [
            [(peer, dict(found)) for peer, found in COUNTS.cases.items()],
            list(COUNTS.reasons.items()), list(COUNTS.ran.items())]


@pytest.hookimpl(optionalhook=True)     # of pytest-xdist
def pytest_testnodedown(node, error):
    cases, reasons, ran = getattr(node, "workeroutput", {}).get("peers", ([], [], []))
    for peer, found in cases:
        COUNTS.cases[peer].update(found)
    for counter, found in (COUNTS.reasons, reasons), (COUNTS.ran, ran):
        counter.update({key: n for key, n in found})


def pytest_terminal_summary(terminalreporter):
    if not COUNTS.cases:
        return
    terminalreporter.section("cases of peers")
    for peer, found in COUNTS.cases.items():
        terminalreporter.write_line(f"{peer:12}" + ", ".join(
            f"{found[column]:6} {column}" for column in ("tried", "equal", "not expressible")))
    for limit, n in sorted(COUNTS.reasons.items()):
        terminalreporter.write_line(f"{n:6} not expressible: {limit}")
    for (operation, name), n in sorted(COUNTS.ran.items()):
        terminalreporter.write_line(f"{n:6} by {operation}: {name}")
