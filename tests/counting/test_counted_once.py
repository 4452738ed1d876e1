"""Whatever happens, in whatever order: each call and message is counted once, and that stays.

The real service - ledger, verdicts, pollers, files of calls, metrics - is driven through any order
of events, and compared after each with a model of a few rules. What a kill is to a file on a disk,
and what is left here to the test - when things happen - is shown with real processes by
`tests/e2e/test_crashes.py`.
"""

from __future__ import annotations

import asyncio
import copy
import os
import shutil
from collections import Counter, defaultdict
from itertools import count
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from structlog.testing import capture_logs

from exporter.calls import WATCHED, CallState, Finished, verdict
from exporter.errors import CapacityError, LedgerError
from exporter.esms.answers import Answer, read_callback, read_price
from exporter.ids import Kind, reference_id
from exporter.ledger.calls import prune_finished
from exporter.ledger.engine import open_database
from exporter.ledger.labels import OTHER
from tests.counting.answers import CALLBACKS, REPLIES, Reply
from tests.counting.driven import Asked, Clock, Driven
from tests.counting.model import KEEP_FINISHED, Call, Model, Named, Series
from tests.counting.wishes import (
    ACCOUNTS,
    CALLS,
    CHANGES,
    CLOCK_ERRORS,
    CLOCK_MOVES,
    FILES,
    KINDS,
    NAMES,
    Wish,
    file_read,
    new_calls,
    reloaded,
)

# The same examples each time: a failure is to come from a change, not from luck, and of a change
# that is innocent nobody should have to ask why. `ESMS_EXPORTER_TESTS_EXAMPLES=5000` tries as many
# others, chosen at random; what fails is printed as a program.
_EXAMPLES = os.environ.get("ESMS_EXPORTER_TESTS_EXAMPLES")
SETTINGS = settings(
    max_examples=int(_EXAMPLES or 80),
    stateful_step_count=50,
    derandomize=_EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
_WHICH = st.integers(0, 15)
_SELDOM = st.sampled_from([False, False, False, True])


def sums(shown: dict[Series, float]) -> dict[tuple[str, ...], float]:
    """Return what is shown of accounts, whatever the labels are."""
    found: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for (metric, (account, cell, *_)), value in shown.items():
        found[metric, account, cell] += value
    return dict(found)


def increases(before: dict[Series, float], after: dict[Series, float]) -> dict[Series, float]:
    """Return by how much series have increased, as Prometheus has it."""
    return {
        series: value - last if value >= (last := before.get(series, 0.0)) else value
        for series, value in after.items()
    }


class Counting(RuleBasedStateMachine):
    """One exporter's life.

    Args:
        loop: where everything runs, a step at a time.
        clock: what the exporter takes for the time.
        folder: for its ledger and its files of calls; not there yet.
        empty: a ledger without calls.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Clock, folder: Path, empty: Path
    ) -> None:
        super().__init__()
        self.clock, self.folder, self.wish = clock, folder, Wish()
        folder.mkdir()
        clock.error = 0.0
        shutil.copy(empty, folder / "ledger.db")
        self.files: dict[str, list[Named]] = {}
        self.asked: dict[Asked, Call] = {}
        # What was shown at the last look, and counted, and with which accounts and labels.
        self.before: tuple[object, dict[Series, float], dict[Series, float]] = None, {}, {}
        self.model = Model(self.wish.max_calls)
        self.limited = False  # whether labels had to make room
        self.real = Driven(loop, folder, self.wish.config(folder), clock)

    def teardown(self) -> None:
        self.real.close()
        shutil.rmtree(self.folder)

    # Calls come and go.

    @rule(calls=CALLS, locked=_SELDOM)
    def push(self, *, calls: list[Named], locked: bool) -> None:
        if locked:
            with self.real.locked(), pytest.raises(LedgerError, match="is locked"):
                self.real.run(self.real.service.sources.api.push(new_calls(calls)))
            return
        put = self.real.service.sources.api.push(new_calls(calls))
        if self.model.push(calls, self.clock.now):
            self.real.run(put)
        else:
            with pytest.raises(CapacityError):
                self.real.run(put)

    @rule(calls=CALLS)
    def query(self, calls: list[Named]) -> None:
        _, refused = self.real.run(self.real.service.calls.add(None, new_calls(calls)))
        assert (not refused) == self.model.watch(None, calls, self.clock.now, meant=False)

    @rule(file=st.sampled_from(FILES), calls=st.none() | CALLS)
    def change_file(self, file: str, calls: list[Named] | None) -> None:
        """Write a file of calls anew, or remove it."""
        path, source = self.folder / file, f"file:{file}"
        if calls is None:
            path.unlink(missing_ok=True)
            self.files.pop(file, None)
            self.real.look()
            self.model.keep_only(source, (), self.clock.now)
            return
        # Beside the old one, so that it is another file: clocks of file systems are coarse.
        new = path.with_suffix(".new")
        lines = [f"{call.name},{call.account},{call.kind}\n" for call in calls]
        new.write_text("".join(["reference_id,account,kind\n", *lines]))
        new.rename(path)
        self.files[file] = [call._replace(labels=frozenset()) for call in calls]
        self.real.look()
        file_read(self.model, self.wish, file, self.files[file], self.clock.now)

    @rule(account=st.sampled_from(ACCOUNTS), name=NAMES)
    def delete(self, account: str, name: str) -> None:
        calls = self.real.service.calls
        record = self.real.run(calls.find(account, reference_id(name)))
        place = Named(account, name).place
        assert (record is not None) == (place in self.model.calls)
        if record is not None:
            assert self.real.run(calls.delete(record.id)) == self.model.delete(
                place, self.clock.now
            )

    @rule(later=st.booleans())
    def prune(self, *, later: bool) -> None:
        if later:
            self.clock.now += KEEP_FINISHED + 1
        ledger, before = self.real.service.ledger, self.clock.now - KEEP_FINISHED
        self.real.run(ledger.execute(prune_finished, before))
        self.model.prune(before)

    # The provider speaks.

    @precondition(lambda self: self.real.scheduled())
    @rule(which=_WHICH)
    def ask(self, which: int) -> None:
        scheduled = self.real.scheduled()
        poller, call = scheduled[which % len(scheduled)]
        place = Named(poller.account, call.reference_id).place
        self.asked[self.real.ask(poller, call)] = self.model.calls[place]

    @precondition(lambda self: self.asked or self.real.scheduled())
    @rule(answers=st.lists(st.tuples(_WHICH, REPLIES), min_size=1, max_size=5))
    def answer(self, answers: list[tuple[int, Reply]]) -> None:
        """Answer what is under way, or what could be."""
        for which, reply in answers:
            under_way, could_be = list(self.asked), len(self.real.scheduled())
            if not under_way and not could_be:
                return
            place = which % (len(under_way) + could_be)
            if place < could_be:
                self.ask(place)
                self._answer(list(self.asked)[-1], reply)
            else:
                self._answer(under_way[place - could_be], reply)

    def _answer(self, asked: Asked, reply: Reply) -> None:
        call = self.asked.pop(asked)
        answer = reply.read(asked.call.reference_id, asked.call.kind)
        end = verdict(asked.call, answer, self.clock.now, asked.poller.give_up)
        if isinstance(end, Finished):
            self.model.observe(call, end, self.clock.now)
        self.real.answer(asked, answer)

    @rule(index=_WHICH, name=NAMES, kind=KINDS, fields=CALLBACKS, times=st.integers(1, 2))
    def callback(
        self, index: int, name: str, kind: Kind, fields: dict[str, str], times: int
    ) -> None:
        account = self.wish.accounts[index % len(self.wish.accounts)]
        source = self.real.service.sources.callback
        of_call = kind is Kind.CALL
        said = {"ReferenceId" if of_call else "SMSID": f" {name} ", **fields}
        answer = read_callback(said, kind)
        price = read_price(said.get("Price" if of_call else "TotalPrice", ""))

        async def at_once() -> list[object]:
            taken = (source.accept(account, said) for _ in range(times))
            return await asyncio.gather(*taken, return_exceptions=True)

        for outcome in self.real.run(at_once()):
            assert not isinstance(outcome, BaseException) or isinstance(outcome, CapacityError)
        for _ in range(times):
            self._called_back(Named(account, reference_id(name), kind=kind), answer, price)

    def _called_back(self, named: Named, answer: Answer, price: float | None) -> None:
        now = self.clock.now
        if named.place not in self.model.calls and (
            self.wish.unknown == "ignore" or not self.model.push([named], now)
        ):
            return
        call = self.model.calls[named.place]
        self.model.hand_over_again(call, now)
        if call.deleted:
            return
        if price is not None:
            self.model.pay(call, price)
        if self.wish.trust == "accept" and call.named.kind is named.kind:
            held = WATCHED[named.kind](0, reference_id(call.named.name), call.watched)
            patience = self.real.service.accounts[named.account].poller.give_up
            if isinstance(end := verdict(held, answer, now, patience), Finished):
                self.model.finish(call, end, now)

    # The exporter works, or does not.

    @rule(locked=_SELDOM)
    def commit(self, *, locked: bool) -> None:
        if locked and self.real.service.ledger._pending:
            with self.real.locked():
                assert not self.real.commit()
        else:
            assert self.real.commit()
            self.model.commit()

    @rule(change=CHANGES, beside=st.booleans())
    def reload(self, change: dict[str, object], *, beside: bool) -> None:
        """Go over to another configuration, perhaps while a commit is under way."""
        before, self.wish = self.wish, self.wish.changed(change)
        # Files are read anew where they may say something else now.
        what = attrgetter("accounts", "labels")
        files = self.files if what(before) != what(self.wish) else {}
        self.real.config = self.wish.config(self.folder)
        first, last = copy.deepcopy((self.model, self.model))
        first.commit()
        self._reloaded(first, files)
        self._reloaded(last, files)
        last.commit()
        # Where it does not matter which of them comes first.
        if beside and first.known() == last.known():

            async def both() -> None:
                service = self.real.service
                await asyncio.gather(service.ledger._flush(), service.reload())

            self.real.run(both())
            self.model.commit()
        else:
            self.real.run(self.real.service.reload())
        self._reloaded(self.model, files)

    @precondition(lambda self: len(self.wish.accounts) > 1)
    @rule(stays=st.sampled_from(ACCOUNTS))
    def leave_and_return(self, stays: str) -> None:
        """Take an account out and in again, while answers for its calls are under way."""
        for _ in self.real.scheduled()[:4]:
            self.ask(0)
        for accounts in ((stays,), ACCOUNTS):
            self.reload({"accounts": accounts}, beside=False)

    @rule(how=st.sampled_from(["stopped", "killed", "killed after a commit"]))
    def end(self, how: str) -> None:
        """End, perhaps after a commit and before anything could be shown of it; then start."""
        ledger = self.real.service.ledger
        if how == "stopped":
            self.real.stop()
            self.model.commit()
        else:
            if how == "killed after a commit":
                found = list(ledger._pending.values())
                self.real.run(ledger.call(ledger.store.commit, found))
                self.model.commit()
            self.real.crash()
            self.model.observed.clear()
        self.asked.clear()
        self.real.start()
        self._reloaded(self.model, self.files)

    def _reloaded(self, model: Model, files: dict[str, list[Named]]) -> None:
        reloaded(model, self.wish, files, self.clock.now)

    @rule(seconds=CLOCK_MOVES)
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(error=CLOCK_ERRORS)
    def set_clock(self, error: float) -> None:
        self.clock.error = error

    # What always holds.

    @invariant()
    def what_is_shown_was_counted_and_stays(self) -> None:
        wish, shown = self.wish, self.real.shown()
        counted = self.model.shown(wish.accounts, wish.labels)
        self.limited |= wish.max_values == 1
        assert self.limited or shown == counted
        delays = {key: value for key, value in counted.items() if key[0].endswith("_delay_seconds")}
        assert delays.items() <= shown.items()
        for number in range(len(wish.labels)):
            values = {(key[0], key[2 + number]) for _, key in shown if len(key) > 2}
            values -= {(account, value) for account in ACCOUNTS for value in ("", OTHER)}
            assert all(
                sum(account == name for name, _ in values) <= wish.max_values
                for account in ACCOUNTS
            )
        what, last, counted_before = self.before
        if what == (wish.accounts, wish.labels):
            for series, value in last.items():
                stays = not self.limited or set(series[1][2:]) <= {OTHER}
                assert not stays or shown.get(series, 0.0) >= value
            # Nothing is counted twice, whatever made room.
            growth = sums(increases(counted_before, counted))
            for total, value in sums(increases(last, shown)).items():
                assert value <= growth[total]
        self.before = (wish.accounts, wish.labels), shown, counted

    @invariant()
    def the_ledger_knows_what_it_should(self) -> None:
        assert self.real.known() == self.model.known()

    @invariant()
    def watched_is_what_the_ledger_holds(self) -> None:
        for name, account in self.real.service.accounts.items():
            held = self.real.unfinished(name)
            polled = account.poller.calls
            assert held == {
                row: (call.kind, call.state, call.state_since) for row, call in polled.items()
            }
            states = Counter((kind, state) for kind, state, _ in held.values())
            for kind in Kind:
                counted = account.stats.open[kind]
                assert counted == {state: states[kind, state] for state in CallState}

    @invariant()
    def every_call_will_be_asked_for_and_no_other(self) -> None:
        pending = self.real.service.ledger._pending
        ended = {row for row, it in pending.items() if isinstance(it.verdict, Finished)}
        for account in self.real.service.accounts.values():
            poller = account.poller
            under_way = {asked.call.id for asked in self.asked if asked.poller is poller}
            due = {row for row, call in poller.calls.items() if call.tick >= 0}
            assert poller.calls.keys() <= due | under_way | ended
            assert self.real.in_schedule(poller) == due

    @invariant()
    def nothing_has_failed(self) -> None:
        assert self.real.service.supervisor.failure is None


def test_whatever_happens_each_call_is_counted_once(tmp_path: Path) -> None:
    clock, empty, numbers = Clock(), tmp_path / "empty.db", count()
    # Made once: to bring an empty file to the newest shape takes longer than an example.
    open_database(f"sqlite:///{empty}").close()
    with asyncio.Runner() as runner, capture_logs():

        class Life(Counting):
            def __init__(self) -> None:
                folder = tmp_path / f"{next(numbers)}"
                super().__init__(runner.get_loop(), clock, folder, empty)

        run_state_machine_as_test(Life, settings=SETTINGS)
