"""Signals are noted while a watch is on, and handlers are as they were when it is over."""

import os
import pickle
import signal
import threading

import pytest

from pytreeckpt.run.interrupts import SIGNALS, Interrupted, Watch, name_of

SIGTERM, SIGINT, SIGUSR1 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1


@pytest.fixture(autouse=True)
def handlers_are_put_back():
    before = {signum: signal.getsignal(signum) for signum in (SIGTERM, SIGINT, SIGUSR1)}
    signal.signal(SIGTERM, signal.SIG_DFL)
    signal.signal(SIGINT, signal.default_int_handler)
    signal.signal(SIGUSR1, signal.SIG_DFL)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def watch():
    watch = Watch((*SIGNALS, SIGUSR1))
    watch.start()
    yield watch
    watch.stop()


@pytest.mark.parametrize("signum", [SIGTERM, SIGINT, SIGUSR1])
def test_the_first_signal_is_noted_and_does_nothing_else(watch, signum):
    assert watch.signum is None
    signal.raise_signal(signum)
    assert watch.signum == signum


def test_it_is_the_first_signal_that_counts(watch):
    for signum in (SIGUSR1, SIGTERM, SIGTERM, SIGINT, SIGTERM):
        signal.raise_signal(signum)
    assert watch.signum == SIGUSR1


def test_the_second_sigint_is_obeyed_at_once(watch):
    signal.raise_signal(SIGINT)
    signal.raise_signal(SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(SIGINT)


def test_handlers_are_as_they_were_when_it_is_over():
    before = [signal.getsignal(signum) for signum in SIGNALS]
    watch = Watch(SIGNALS)
    watch.start()
    assert [signal.getsignal(signum) for signum in SIGNALS] != before
    watch.stop()
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_watches_nest_and_a_signal_is_noted_by_all_that_are_there_for_it():
    outer, inner = Watch([SIGTERM]), Watch([SIGTERM, SIGINT])
    outer.start()
    inner.start()
    signal.raise_signal(SIGINT)
    assert (outer.signum, inner.signum) == (None, SIGINT)
    signal.raise_signal(SIGTERM)
    assert (outer.signum, inner.signum) == (SIGTERM, SIGINT)
    inner.stop()
    outer.stop()
    assert signal.getsignal(SIGTERM) == signal.SIG_DFL


def test_two_sigints_are_counted_across_nested_watches():
    outer, inner = Watch([SIGINT]), Watch([SIGINT])
    outer.start()
    inner.start()
    signal.raise_signal(SIGINT)
    inner.stop()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(SIGINT)
    outer.stop()


def test_an_ignored_signal_stays_ignored():
    signal.signal(SIGINT, signal.SIG_IGN)
    watch = Watch(SIGNALS)
    watch.start()
    signal.raise_signal(SIGINT)
    assert watch.signum is None
    watch.stop()
    assert signal.getsignal(SIGINT) == signal.SIG_IGN


def test_a_foreign_handler_hears_of_the_signal_when_it_is_passed_on():
    heard = []
    signal.signal(SIGTERM, lambda signum, _: heard.append(signum))
    outer, inner = Watch(SIGNALS), Watch(SIGNALS)
    outer.start()
    inner.start()
    signal.raise_signal(SIGTERM)
    assert heard == []
    inner.pass_on(SIGTERM)
    assert heard == [SIGTERM]
    inner.stop()
    outer.stop()


def test_a_keyboard_interrupt_is_not_what_is_passed_on(watch):
    signal.raise_signal(SIGINT)
    watch.pass_on(SIGINT)
    assert watch.signum == SIGINT


def test_a_handler_that_took_our_place_keeps_it_and_may_call_us():
    heard = []
    first = lambda signum, _: heard.append(("first", signum))  # noqa: E731 - a handler like any
    signal.signal(SIGTERM, first)
    watch = Watch([SIGTERM])
    watch.start()
    ours = signal.getsignal(SIGTERM)

    def last(signum, frame):
        heard.append(("last", signum))
        ours(signum, frame)

    signal.signal(SIGTERM, last)
    signal.raise_signal(SIGTERM)
    assert (watch.signum, heard) == (SIGTERM, [("last", SIGTERM)])
    watch.stop()
    assert signal.getsignal(SIGTERM) == last
    signal.raise_signal(SIGTERM)
    assert heard[1:] == [("last", SIGTERM), ("first", SIGTERM)]


def test_the_end_of_workers_does_not_come_in_between_once_a_signal_came():
    def handle(signum, frame):
        raise RuntimeError("a worker ended")

    signal.signal(signal.SIGCHLD, handle)
    try:
        watch = Watch(SIGNALS)
        watch.start()
        with pytest.raises(RuntimeError, match="a worker ended"):
            signal.raise_signal(signal.SIGCHLD)
        signal.raise_signal(SIGTERM)
        signal.raise_signal(signal.SIGCHLD)
        signal.raise_signal(SIGTERM)
        watch.stop()
        assert signal.getsignal(signal.SIGCHLD) is handle
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def test_elsewhere_than_in_the_main_thread_it_says_so():
    raised = []

    def enter():
        try:
            Watch(SIGNALS).start()
        except RuntimeError as error:
            raised.append(str(error))
        Watch([]).start()
        raised.append("no signals, no error")

    thread = threading.Thread(target=enter, name="trainer")
    thread.start()
    thread.join()
    assert len(raised) == 2
    assert "main thread" in raised[0]
    assert "trainer" in raised[0]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP, 0, 12345])
def test_a_signal_that_cannot_be_handled_is_refused(signum):
    with pytest.raises(ValueError, match="signal"):
        Watch([signum])


def test_a_handler_that_could_not_be_put_back_is_refused(monkeypatch):
    before = signal.getsignal(SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda signum: None if signum == SIGINT else before)
    with pytest.raises(ValueError, match="SIGINT has a handler that was not installed by Python"):
        Watch(SIGNALS).start()
    monkeypatch.undo()
    assert signal.getsignal(SIGTERM) == before


def test_a_second_sigint_while_handlers_are_changed_comes_right_after(monkeypatch):
    watch = Watch(SIGNALS)
    watch.start()
    install = signal.signal

    def interrupted_install(signum, handler):
        if signum == SIGTERM:
            signal.raise_signal(SIGINT)
            signal.raise_signal(SIGINT)
        return install(signum, handler)

    monkeypatch.setattr(signal, "signal", interrupted_install)
    with pytest.raises(KeyboardInterrupt):
        watch.stop()
    monkeypatch.undo()
    assert signal.getsignal(SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(SIGINT) == signal.default_int_handler


def test_what_is_raised_has_the_usual_exit_status_and_says_what_was_saved():
    stop = Interrupted(SIGTERM, "step 3 is saved")
    assert isinstance(stop, SystemExit)
    assert not isinstance(stop, Exception)
    assert (stop.code, stop.signum, str(stop)) == (143, SIGTERM, "step 3 is saved")
    again = pickle.loads(pickle.dumps(stop))
    assert (again.code, again.signum, str(again)) == (143, SIGTERM, "step 3 is saved")
    assert Interrupted(SIGINT, "").code == 130


def test_every_signal_has_a_name():
    assert name_of(SIGTERM) == "SIGTERM"
    assert name_of(signal.SIGRTMIN + 1) == f"signal {signal.SIGRTMIN + 1}"


def forked(function):
    """What a forked child's status is after `function`."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException:  # noqa: BLE001 - a child must not go on with the tests
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_sigterm_ends_a_forked_child_and_is_not_noted(watch):
    assert forked(lambda: signal.raise_signal(SIGTERM)) == -SIGTERM
    assert watch.signum is None


def test_a_forked_child_leaves_other_signals_to_its_parent_but_for_a_second_sigint(watch):
    assert forked(lambda: [signal.raise_signal(SIGUSR1), signal.raise_signal(SIGINT)]) == 0
    assert forked(lambda: [signal.raise_signal(SIGINT), signal.raise_signal(SIGINT)]) == 3
    assert watch.signum is None


def test_a_forked_child_may_watch_for_itself(watch):
    def train():
        own = Watch(SIGNALS)
        own.start()
        signal.raise_signal(SIGTERM)
        assert own.signum == SIGTERM
        own.stop()
        signal.raise_signal(SIGTERM)

    assert forked(train) == -SIGTERM


def test_a_forked_child_does_not_obey_what_came_before(watch):
    signal.raise_signal(SIGTERM)

    def look():
        assert watch.signum is None

    assert forked(look) == 0
    assert watch.signum == SIGTERM
