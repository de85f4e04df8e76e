"""Signals are noted, and a save is not cut short."""

import os
import signal

import pytest

from minisft.training.interrupts import catch_interrupts


def test_a_second_signal_waits_for_the_save():
    with catch_interrupts() as interrupts:
        with interrupts.held():
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.received
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a signal of POSIX")
def test_a_terminal_that_closes_is_heard_but_under_nohup():
    with catch_interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupts.received
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupts.received
    finally:
        signal.signal(signal.SIGHUP, before)
