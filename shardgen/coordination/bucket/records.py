"""Records in a bucket: receipts, notes, signs of life, agreements; each kind has its own objects."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from shardgen.coordination.bucket import protocol
from shardgen.coordination.bucket.protocol import ReceiptKey
from shardgen.coordination.bucket.rows import Agreement, decoded, encoded, receipt_bytes
from shardgen.coordination.bucket.session import BucketSession, Life
from shardgen.domain.identifiers import BatchIndex, SampleIndex, WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.receipt import DeadLetter, Receipt
from shardgen.domain.suspicion import Suspicion
from shardgen.domain.worker import ENDED_STATES, WorkerIdentity, WorkerReport
from shardgen.errors import ReceiptConflict
from shardgen.manifest.slices import lease_lost, to_seconds

_AGREEMENT = re.compile(r"[0-9]{8,15}\.json")


class BucketReceipts:
    """What is done: receipts are objects of their own."""

    def __init__(self, session: BucketSession) -> None:
        self._session = session
        self._unnoted: list[Receipt] = []

    def pending_batches(self, lease: Lease) -> list[BatchIndex]:
        """The slice's batches without a receipt, in order. Raises LeaseLost."""
        return self._session.rows.receipts.pending_batches(lease)

    def record(self, lease: Lease, receipt: Receipt) -> bool:
        """Create the receipt; returns whether it was the slice's last.

        Raises LeaseLost when it is known here that the slice was taken over. Until that is known a receipt
        may still be created: its fence is lower than the successor's, so it never outranks one of those.
        """
        session = self._session
        if receipt in self._unnoted:  # all but that is done
            session.note(lease)
            self._unnoted.remove(receipt)
            return False
        if not session.is_held(lease):
            raise lease_lost(lease)
        key = ReceiptKey(batch=receipt.record.batch, fence=lease.fence, dead=len(receipt.record.dead_letters))
        if not session.objects.create(str(key), receipt_bytes(session.plan, receipt)):
            receipt = self._found(key, receipt)
        is_last = self._session.rows.receipts.record(lease, receipt)
        session.view.take(key, session.now())
        life = session.lives.get(lease.worker)
        if life is not None:
            made = Counter(life.sign.made) + Counter({receipt.record.provenance.text: 1})
            life.change(made=dict(made))
        if session.view.is_noted((lease.shard, lease.slice), lease.fence) and not is_last:
            self._unnoted.append(receipt)
            session.note(lease)
            self._unnoted.remove(receipt)
        return is_last

    def _found(self, key: ReceiptKey, receipt: Receipt) -> Receipt:
        """The receipt that is there: a rebuild made it of an artifact of the same worker and attempt.

        Raises ReceiptConflict for anything else.
        """
        found = next(self._session.read_receipts([key]))
        if found.worker == receipt.worker:
            return found
        raise ReceiptConflict(
            f"{self._session.objects.shown}/{key}: is another worker's",
            hint="shardgen verify RUN_DIR says which bytes are right",
        )

    def receipts(self) -> Iterator[Receipt]:
        """All receipts that count, in batch order, as they are now."""
        session = self._session
        session.view.look(anew=True)
        yield from session.read_receipts(
            [session.view.winners[batch] for batch in sorted(session.view.winners)]
        )

    def dead_letters(self) -> Iterator[DeadLetter]:
        """All dead letters in sample order, with their details."""
        session = self._session
        session.view.look(anew=True)
        keys = [one for _, one in sorted(session.view.winners.items()) if one.dead]
        for receipt in session.read_receipts(keys):
            yield from sorted(receipt.record.dead_letters, key=lambda one: one.sample)

    def artifacts(self) -> Iterator[tuple[BatchIndex, str]]:
        """Every recorded batch with its artifact's name, in order."""
        for receipt in self.receipts():
            yield receipt.record.batch, receipt.artifact.name

    def batches_with_dead_letters(self) -> list[BatchIndex]:
        """The batches that a `requeue --dead-letters` undoes, in order."""
        return sorted(batch for batch, one in self._looked().items() if one.dead)

    def are_there(self) -> bool:
        """Whether anything is done."""
        return bool(self._looked())

    def recorded_among(self, batches: Sequence[BatchIndex]) -> list[BatchIndex]:
        """Those of the batches that have a receipt, in order."""
        return sorted(self._looked().keys() & set(batches))

    def _looked(self) -> Mapping[BatchIndex, ReceiptKey]:
        self._session.view.look()
        return self._session.view.winners


class BucketSuspicions:
    """What suspect mode notes: in the bucket before the work that it announces."""

    def __init__(self, session: BucketSession) -> None:
        self._session = session
        self._passed: tuple[tuple[Lease, SampleIndex], list[SampleIndex]] | None = None

    def read(self, lease: Lease) -> Suspicion:
        """What earlier attempts at the leased slice left. Raises LeaseLost."""
        return self._session.rows.suspicion.read(lease)

    def note_batch(self, lease: Lease, batch: BatchIndex) -> None:
        """From now on a death falls on this batch. Raises LeaseLost."""
        self._session.rows.suspicion.note_batch(lease, batch)
        self._session.note(lease)

    def note_sample(self, lease: Lease, sample: SampleIndex) -> None:
        """From now on a death falls on this sample alone. Raises LeaseLost."""
        self._session.rows.suspicion.note_sample(lease, sample)
        self._session.note(lease)

    def note_pass(self, lease: Lease, sample: SampleIndex, *, made: bool) -> list[SampleIndex]:
        """The noted sample survived; returns the samples that are given up by that. Raises LeaseLost."""
        if self._passed is None or self._passed[0] != (lease, sample):
            self._passed = (lease, sample), self._session.rows.suspicion.note_pass(lease, sample, made=made)
        given_up = self._passed[1]
        self._session.note(lease)
        self._passed = None
        return given_up


class BucketWorkers:
    """Signs of life, an object for each worker."""

    def __init__(self, session: BucketSession) -> None:
        self._session = session

    def register(self, identity: WorkerIdentity) -> None:
        """Write the first sign of life; twice is harmless."""
        session = self._session
        self._session.rows.workers.register(identity)
        if identity.id not in session.lives:
            session.lives[identity.id] = Life(
                identity, wall=to_seconds(session.now()), monotonic=session.monotonic()
            )
        session.show_life(identity.id)

    def beat(self, worker: WorkerId, report: WorkerReport) -> None:
        """Write what a worker says of itself: each change of state at once, the rest at most each heartbeat.

        The first word of its end stands.
        """
        session = self._session
        self._session.rows.workers.beat(worker, report)
        life = session.lives.get(worker)
        if life is None:
            session.say_of(worker, state=report.state, note=report.note)
            return
        if life.sign.state in ENDED_STATES:
            if not life.has_ended:  # it could not be written
                session.show_life(worker)
            return
        is_news = life.sign.state is not report.state
        if report.progressed:
            life.progressed_at = session.monotonic()
        life.change(
            state=report.state,
            samples_done=report.samples_done,
            samples_per_second=report.samples_per_second,
            note=report.note,
        )
        session.show_life(worker, gap=0.0 if is_news else session.beat_seconds)

    def set_device(self, worker: WorkerId, device: str) -> None:
        """Say which device a worker found."""
        session = self._session
        self._session.rows.workers.set_device(worker, device)
        life = session.lives.get(worker)
        if life is not None:
            life.change(device=device)

    def alive_on_host(self, host: str) -> list[WorkerIdentity]:
        """The workers of one host that have not said that they ended, or hold a slice all the same."""
        view = self._session.view
        view.look_for_signs()
        holders = {version.worker for _, version in view.holders()}
        found = []
        for name in sorted(view.signs):
            sign = view.sign_of(name, anew=False)  # the host of a worker never changes
            if sign is None or sign.host != host:
                continue
            sign = view.sign_of(name)
            if sign is not None and (sign.state not in ENDED_STATES or sign.worker in holders):
                found.append(sign.identity)
        return found

    def known(self) -> set[WorkerId]:
        """Those that have shown a sign of life."""
        view = self._session.view
        view.look_for_signs()
        signs = [view.sign_of(name, anew=False) for name in view.signs]
        return {WorkerId(sign.worker) for sign in signs if sign is not None}


class BucketMicroBatches:
    """How many images the network takes at once on each model of device: versions, the highest counts."""

    def __init__(self, session: BucketSession) -> None:
        self._session = session

    def agreed(self, device_model: str, proposed: int) -> int:
        """The micro-batch of this device model: the first worker's proposal, kept for all later ones."""
        while True:
            number, micro_batch, _ = self._latest(device_model)
            if number:
                return micro_batch
            if self._create(device_model, 1, proposed, None):
                return proposed

    def settled(self, device_model: str) -> int | None:
        """The micro-batch that was agreed on for this device model; None: none was."""
        number, micro_batch, _ = self._latest(device_model)
        return micro_batch if number else None

    def shrunk(self, device_model: str) -> int | None:
        """What memory sufficed for when it last ran out on this device model; None: it never did."""
        return self._latest(device_model)[2]

    def shrink(self, device_model: str, micro_batch: int) -> None:
        """Remember that this device model has no memory for more."""
        while True:
            number, agreed, shrunk = self._latest(device_model)
            least = micro_batch if shrunk is None else min(shrunk, micro_batch)
            smaller = min(agreed, micro_batch) if number else micro_batch
            if (smaller, least) == (agreed, shrunk) or self._create(device_model, number + 1, smaller, least):
                return

    def _latest(self, device_model: str) -> tuple[int, int, int | None]:
        objects, folder = self._session.objects, self._folder(device_model)
        names = [one.key.removeprefix(f"{folder}/") for one in objects.listed(folder)]
        versions = [name for name in names if _AGREEMENT.fullmatch(name)]
        if not versions:
            return 0, 0, None
        found = decoded(Agreement, f"{folder}/{versions[-1]}", objects.read(f"{folder}/{versions[-1]}"))
        return int(versions[-1].removesuffix(".json")), found.micro_batch, found.shrunk_to

    def _create(self, device_model: str, number: int, micro_batch: int, shrunk_to: int | None) -> bool:
        found = Agreement(device_model=device_model, micro_batch=micro_batch, shrunk_to=shrunk_to)
        return self._session.objects.create(f"{self._folder(device_model)}/{number:08d}.json", encoded(found))

    @staticmethod
    def _folder(device_model: str) -> str:
        name = hashlib.sha256(device_model.encode()).hexdigest()[:16]
        return f"{protocol.MICRO_BATCHES}/{name}"


class BucketFolder:
    """Artifacts lie under the same prefix, so there is nothing to mistake: the first identity stands."""

    def __init__(self, session: BucketSession) -> None:
        self._session = session
        self._key = f"{protocol.ARTIFACTS}/folder-id"

    def identity(self) -> str | None:
        """Its identity; None while no worker has started."""
        data = self._session.objects.read(self._key)
        return None if data is None else data.decode("ascii", errors="replace").strip()

    def claim(self, identity: str) -> str:
        """Make it the run's if none is; returns the one that is."""
        self._session.objects.create(self._key, f"{identity}\n".encode())
        return self.identity() or identity

    def replace(self, identity: str) -> None:
        """Nothing to do: the record and the artifacts are one."""
