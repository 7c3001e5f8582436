"""A run whose record is the files in a folder, which is all that its machines share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress

from shardgen.coordination.base import OpenedRun, OwnRecords, PutPlan, Recorded, Seat, refused_plan
from shardgen.coordination.folder import notices
from shardgen.coordination.folder.files import DiskFolder
from shardgen.coordination.folder.leases import FolderCoordinator, opened_view
from shardgen.coordination.folder.records import SegmentReader, publish_waiting
from shardgen.coordination.folder.status import FolderLooks
from shardgen.coordination.report import Report, make_report
from shardgen.domain.claims import next_generation
from shardgen.domain.identifiers import BatchIndex
from shardgen.domain.steps import OnStep, RequeueStep, ignore_step
from shardgen.settings.plan_file import FILE_NAME, read_plan
from shardgen.storage.atomic import random_part
from shardgen.storage.files import storage_error


class FolderRun(OpenedRun):
    """Each machine keeps a manifest of its own: of what its workers make, and what it has seen of others."""

    @property
    def why_one_machine(self) -> str:
        """Its index shows what workers of other machines do only when a worker of its own looks."""
        return "in a shared folder (folder:) a machine watches its own workers alone"

    def put_plan(self, *, grows: bool = False, on_step: OnStep = ignore_step) -> PutPlan:
        """Another plan takes the place of `plan.json` only before a worker has joined.

        Each machine's manifest lies where the plan's fingerprint says, so none changes its plan.
        """
        del grows
        self.remove_next()
        before = read_plan(self.run.path)
        if before not in (None, self.plan):
            if self.run.is_begun:
                raise refused_plan(self.run, before, self.plan)
            self.write_next(on_step)
            self.rename_next(on_step)
        return PutPlan(before=before, is_new=self._begin(on_step))

    def write_plan(self) -> None:
        """Once: workers take the one that they see first."""
        with suppress(FileExistsError):
            try:
                DiskFolder(self.run.path).write(FILE_NAME, self.plan.canonical_json)
            except FileExistsError:
                raise
            except OSError as error:
                raise storage_error(error, self.run.path / FILE_NAME) from error

    def coordinator(self, seat: Seat) -> FolderCoordinator:
        """Make this machine's manifest if it has none yet, and open it and the view."""
        self.ensure_manifest()
        manifest = self.run.database_manifest(self.plan)
        try:
            return FolderCoordinator(self.run, self.plan, manifest, seat)
        except BaseException:
            manifest.close()
            raise

    def report(self) -> Report:
        """Look through the folder once."""
        with closing(self.looks()) as looks:
            return looks.report()

    def looks(self) -> FolderLooks:
        """What was read of the folder once is not read again."""
        return FolderLooks(self)

    def take_stock(self) -> Report:
        """This machine's manifest, with what others have published by now."""
        with self.run.database_manifest(self.plan) as manifest:
            with opened_view(self.run, self.plan) as view:
                manifest.index.forget_undone(view.undone)
                manifest.index.adopt(list(view.winners.values()))
            return make_report(self.run, self.plan, manifest.overview())

    @contextmanager
    def records(self) -> Iterator[Recorded]:
        """The segments."""
        publish_waiting(self.run, self.plan)
        with opened_view(self.run, self.plan) as view:
            yield Recorded(source=view, store=SegmentReader(view.files))

    @contextmanager
    def own_records(self) -> Iterator[OwnRecords]:
        """This machine's manifest, if it has worked on the run; its artifacts wait for their segments."""
        if not self.run.database.backend.is_there():
            yield OwnRecords(manifest=None, store=None)
            return
        with self.run.database_manifest(self.plan, read_only=True) as manifest:
            yield OwnRecords(manifest=manifest, store=None)

    def undo(
        self, batches: Sequence[BatchIndex], *, dead_letters: bool = False, on_step: OnStep = ignore_step
    ) -> list[BatchIndex]:
        """Write the mark of the next generation: attempts of an earlier one, seen or not, do not count."""
        with opened_view(self.run, self.plan) as view:
            letters = (batch for batch, one in view.winners.items() if one.record.dead_letters)
            undone = sorted(view.winners.keys() & set(letters if dead_letters else batches))
            if undone:
                generation = next_generation(view.fences.values(), view.generation)
                mark = notices.Requeue(
                    fingerprint=self.plan.fingerprint, generation=generation, batches=tuple(undone)
                )
                path = notices.requeue_path(generation, random_part())
                try:
                    view.files.write(path, notices.encoded(mark))
                except OSError as error:
                    raise storage_error(error, self.run.path / path) from error
                on_step(RequeueStep.MARKED)
        return undone
