"""Leases in the run store: two `premed run` of the same stage, in two processes or on two machines, train it once.

MLflow has no compare-and-swap, but any store that returns what was written before the read is enough (as for Lamport's
bakery algorithm): write a claim, then read all claims; whoever sees another live claim withdraws its own. Of two
processes that claim at once at least one sees the other's claim, so that two never hold the lease; both may withdraw,
and try again after a random delay.

A claim is a run in an experiment of its own, deleted when it is over. It is dead when its process is known to have
ended (same host), or when its heartbeat has not changed for `stale_after` seconds by the reader's own clock. Only time
in which the store answered counts: after an outage every holder has the time to send a heartbeat.
"""

import random
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from premed.tracking.client import transient
from premed.tracking.provenance import gone, host, process_tags
from premed.tracking.run_store import LEASES, RunStore

_ROUNDS = 8
_backoff = random.SystemRandom()  # no training result depends on it


@dataclass(frozen=True)
class Claim:
    """A claim to run the stage with that digest."""

    run_id: str
    digest: str
    holder: str
    beat: str
    process: dict[str, str]


class Lease:
    """The right to run one stage. Poll with the same object: it remembers the heartbeats that it has read."""

    def __init__(self, store: RunStore, stale_after: float = 60.0, clock: Callable[[], float] = time.monotonic):
        self.store, self.stale_after, self.clock = store, stale_after, clock
        self.mine: str | None = None
        self._heartbeats: dict[str, tuple[str, float, float]] = {}  # claim -> heartbeat, last read, seconds unchanged

    def acquire(self, digest: str, holder: str) -> bool:
        """Claims the lease of `digest`; returns whether it is now held, within seconds if two claim it at once.

        The new holder must look for a finished run again: the previous holder may just have ended. Marks runs of the
        digest that a dead holder left RUNNING as KILLED.
        """
        if self.mine:
            raise ValueError(f"this lease is held already, by claim {self.mine}")
        for attempt in range(_ROUNDS):
            if self._busy(self._claims(digest)):
                return False
            mine = self._claim(digest, holder)
            try:
                others = [claim for claim in self._claims(digest) if claim.run_id != mine]
                held = not self._busy(others)
            except BaseException:
                self._drop(mine)
                raise
            if held:
                self.mine = mine
                self._clean_up(digest, others)
                return True
            self._drop(mine)
            time.sleep(_backoff.uniform(0, 0.1 * 2**attempt))
        return False

    def heartbeat(self) -> bool:
        """Shows that the holder is alive; due every `stale_after` / 4 seconds. Returns False if the lease is lost."""
        if not self.mine:
            return False
        try:
            self.store.client.set_tag(self.mine, "premed.beat", uuid.uuid4().hex)
        except Exception as error:  # noqa: BLE001 - MLflow's own, or those of what it is built on
            if not transient(error):
                self.mine = None
            return transient(error)  # no lease is lost in an outage
        return True

    def release(self) -> None:
        """Releases the lease, if it is held. In an outage the claim stays and goes stale."""
        mine, self.mine = self.mine, None
        if mine:
            self._drop(mine)

    def live(self, claim: Claim) -> bool:
        """Whether the claim's process may still be alive."""
        if gone(claim.process):
            return False
        now = self.clock()
        beat, last_read, unchanged = self._heartbeats.get(claim.run_id, (claim.beat, now, 0.0))
        # one read adds at most a quarter: a long time between two reads says nothing about the holder
        unchanged = unchanged + min(now - last_read, self.stale_after / 4) if beat == claim.beat else 0.0
        self._heartbeats[claim.run_id] = (claim.beat, now, unchanged)
        return unchanged < self.stale_after

    def _busy(self, claims: list[Claim]) -> bool:
        return sum(map(self.live, claims)) > 0  # not any(): each read of a claim adds to its staleness

    def _claim(self, digest: str, holder: str) -> str:
        tags = {"premed.digest": digest, "premed.holder": holder, "premed.beat": uuid.uuid4().hex} | process_tags()
        client, experiment = self.store.client, self.store.experiment(LEASES)
        return client.create_run(experiment, tags=tags, run_name=f"{holder} {digest[:12]}").info.run_id

    def _claims(self, digest: str) -> list[Claim]:
        return [
            _claim_of(run.run_id, run.tags) for run in self.store.search({"premed.digest": digest}, experiment=LEASES)
        ]

    def _drop(self, claim: str) -> None:
        with suppress(Exception):  # deleted already, or the store is down: then it goes stale
            self.store.client.delete_run(claim)

    def _clean_up(self, digest: str, dead: list[Claim]) -> None:
        """Removes dead claims, and marks the runs of the digest that they left RUNNING as KILLED."""
        for claim in dead:
            self._drop(claim.run_id)
        if dead:
            with suppress(Exception):  # the lease is held, even if the store goes down now
                for run in list(self.store.search({"premed.digest": digest}, status="RUNNING")):
                    self.store.finish(run.run_id, "KILLED")


def close_dead_runs(store: RunStore) -> list[str]:
    """Marks runs that ended processes of this host left RUNNING as KILLED, removes their claims, returns the ids."""
    here = {"premed.host": host()}
    dead = [run.run_id for run in store.search(here, status="RUNNING") if gone(run.tags)]
    for run_id in dead:
        store.finish(run_id, "KILLED")
    for claim in list(store.search(here, experiment=LEASES)):
        if gone(claim.tags):
            with suppress(Exception):  # another process was first
                store.client.delete_run(claim.run_id)
    return dead


def _claim_of(run_id: str, tags: dict[str, str]) -> Claim:
    process = {name: value for name, value in tags.items() if name in ("premed.host", "premed.pid", "premed.born")}
    return Claim(run_id, tags["premed.digest"], tags.get("premed.holder", ""), tags.get("premed.beat", ""), process)
