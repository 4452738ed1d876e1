"""What becomes of calls at large: plans drawn at random, the same ones for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from exporter.simulator.life import ANSWERED, Plan

# Two spellings of one outcome, because two pages of the provider spell it differently.
UNANSWERED = ("NOANSWERED", "NO ANSWER")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Shares of outcomes and lengths of states, from which plans are drawn.

    Attributes:
        answered, unanswered, busy, failed, silent: weights of the ends; `silent` is the documented
            failure with an empty `CallStatus`.
        rejected: share of calls that are not approved, 0 to 1.
        pressed: share of answered calls in which a key is pressed, 0 to 1.
        keys: keys to choose from; one that is named twice is chosen twice as often.
        unknown_for, approval, queued, sent: the longest time in each state, seconds.
        talk: the mean duration of an answered call, seconds.
        price: VND for each started minute.
    """

    answered: float = 62
    unanswered: float = 20
    busy: float = 8
    failed: float = 5
    silent: float = 5
    rejected: float = 0.02
    pressed: float = 0.35
    keys: str = "11111222390*#"
    unknown_for: float = 2.0
    approval: float = 4.0
    queued: float = 10.0
    sent: float = 30.0
    talk: float = 22.0
    price: float = 700.0

    def draw(self, rng: random.Random) -> Plan:
        """A plan for one call."""
        plan = Plan(
            # Most ids can be looked up at once; the others are what `not_found_grace` is for.
            unknown_for=rng.uniform(0, self.unknown_for) if rng.random() < 0.3 else 0.0,
            approval=rng.uniform(0, self.approval),
            queued=rng.uniform(0, self.queued),
            sent=rng.uniform(self.sent / 10, self.sent),
        )
        if rng.random() < self.rejected:
            return replace(plan, rejected=True)
        return self._end(plan, rng)

    def retried(self, plan: Plan, rng: random.Random, *, retries: int, wait: float) -> Plan:
        """The plan if the provider itself calls again while nobody answers (MaxRetry, WaitRetry).

        Args:
            plan: what the first attempt comes to.
            rng: decides what the others come to.
            retries: how often it calls again at most.
            wait: seconds between two attempts.
        """
        for _ in range(retries):
            if plan.rejected or plan.call_status == ANSWERED:
                break
            ringing = rng.uniform(self.sent / 10, self.sent)
            plan = self._end(replace(plan, sent=plan.sent + wait + ringing), rng)
        return plan

    def _end(self, plan: Plan, rng: random.Random) -> Plan:
        weights = (self.answered, self.unanswered, self.busy, self.failed, self.silent)
        match rng.choices(("answered", "unanswered", "busy", "failed", "silent"), weights)[0]:
            case "answered":
                talk = min(600, 1 + int(rng.expovariate(1 / self.talk)))
                return replace(
                    plan,
                    sent=plan.sent + talk,
                    sent_result=1,
                    call_status=ANSWERED,
                    duration=talk,
                    ivr=rng.choice(self.keys) if rng.random() < self.pressed else "",
                    price=self.price * -(-talk // 60),
                )
            case "unanswered":
                # The carrier did its part, so that SentResult and CallStatus are independent.
                return _unanswered(plan, rng.choice(UNANSWERED), rng.randint(0, 1))
            case "busy":
                return _unanswered(plan, "BUSY", 1)
            case "failed":
                return _unanswered(plan, "FAILED", 0)
            case _:
                return _unanswered(plan, "", 0)


def _unanswered(plan: Plan, call_status: str, sent_result: int) -> Plan:
    return replace(plan, call_status=call_status, sent_result=sent_result, duration=0, ivr="")
