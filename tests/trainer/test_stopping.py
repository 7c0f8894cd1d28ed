"""The handler only notes; a second Ctrl-C is heeded at once; handlers that were there before come back."""

import signal
import threading

import pytest

from espnet3_lite.trainer.stopping import SignalFlag


@pytest.fixture
def flag():
    flag = SignalFlag()
    yield flag
    flag.uninstall()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_is_noted_and_nothing_else_happens(flag, name):
    flag.install()
    signal.raise_signal(getattr(signal, name))
    assert flag.received is getattr(signal, name)


def test_the_first_signal_counts(flag):
    flag.install()
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
    assert flag.received is signal.SIGUSR1


def test_a_second_interrupt_is_heeded_at_once(flag):
    flag.install()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_second_interrupt_is_heeded_at_once_whatever_came_before(flag):
    flag.install()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert flag.received is signal.SIGTERM


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_where_nothing_is_to_be_saved_the_first_signal_is_heeded_at_once(flag, name):
    flag.install(at_once=True)
    with pytest.raises(KeyboardInterrupt, match=name):
        signal.raise_signal(getattr(signal, name))
    signal.raise_signal(signal.SIGTERM)  # what is being closed is not disturbed again
    assert flag.received is getattr(signal, name)


def test_the_second_sigterm_is_no_interrupt(flag):
    flag.install()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert flag.received is signal.SIGTERM


def test_the_handlers_of_before_come_back(flag):
    heard, interrupt = [], signal.getsignal(signal.SIGINT)  # ignored where a shell runs the tests in the background
    mine = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        flag.install()
        signal.raise_signal(signal.SIGUSR1)
        flag.uninstall()
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, mine)
    assert heard == [signal.SIGUSR1], "the first one was ours, the second one theirs"
    assert signal.getsignal(signal.SIGINT) is interrupt


def test_a_new_run_begins_without_the_signal_of_the_last(flag):
    flag.install()
    signal.raise_signal(signal.SIGTERM)
    flag.uninstall()
    flag.install()
    assert flag.received is None


def test_another_thread_than_the_main_one_cannot_watch(flag):
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=flag.install)
    thread.start()
    thread.join()
    assert flag.received is None and signal.getsignal(signal.SIGTERM) is before
