"""What comes of every command that the help and the README show, typed where a newcomer would type it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.newcomer.terminals import Said, State, Terminal, Terminals


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A command: where it is typed, its exit code, what it says on either stream, what lies there afterwards.

    With `stops_after` Ctrl-C is pressed when that text has come.
    """

    at: State
    code: int = 0
    says: str
    leaves: str = ""
    stops_after: str = ""

    def check(self, terminals: Terminals, line: str) -> None:
        """Type it and look."""
        terminal = terminals.at(self.at)
        said = self._type(terminal, line)
        assert said.code == self.code, said
        assert self.says in said.out + said.err, said
        assert "Traceback" not in said.err, said
        if self.code not in (0, 130):
            lines = said.err.splitlines()
            assert [line.split(":")[0] for line in lines[-2:]] == ["error", "hint"], said
        if self.leaves:
            assert Path(terminal.folder / self.leaves).exists(), self.leaves

    def _type(self, terminal: Terminal, line: str) -> Said:
        if self.stops_after:
            return terminal.type_and_stop(line, after=self.stops_after)
        return terminal.type(line)


SHOWN = {
    "shardgen init people --foregrounds cut-outs --backgrounds scenes": Shown(
        at=State.PHOTOGRAPHS, says="then `shardgen plan people`", leaves="people/shardgen.toml"
    ),
    "shardgen init people --preset random224 --foregrounds cut-outs --backgrounds scenes": Shown(
        at=State.PHOTOGRAPHS, says="then `shardgen plan people`", leaves="people/shardgen.toml"
    ),
    "shardgen init people --set compose.grid=[3,2] --foregrounds cut-outs --backgrounds scenes": Shown(
        at=State.PHOTOGRAPHS, says="then `shardgen plan people`", leaves="people/shardgen.toml"
    ),
    "shardgen init people --bucket s3://bucket/people --foregrounds cut-outs --backgrounds scenes": Shown(
        at=State.PHOTOGRAPHS, says="then `shardgen plan people`", leaves="people/shardgen.toml"
    ),
    "shardgen init depths --preset depth-of-folder --pictures scenes": Shown(
        at=State.PHOTOGRAPHS, says="then `shardgen plan depths`", leaves="depths/shardgen.toml"
    ),
    "shardgen plan people": Shown(
        at=State.INITIALISED, says="Next: `shardgen preview people`", leaves="people/plan.json"
    ),
    "shardgen plan people --rate 6.4": Shown(
        at=State.INITIALISED, says="15 s at 6.4 samples/s", leaves="people/plan.json"
    ),
    "shardgen plan people --calibrate": Shown(
        at=State.INITIALISED, says="96 pending samples take", leaves="people/forecast.json"
    ),
    "shardgen preview people": Shown(
        at=State.PLANNED, says="people/preview.png", leaves="people/preview.png"
    ),
    "shardgen preview people --samples 20 -o preview.png": Shown(
        at=State.PLANNED, says="preview.png", leaves="preview.png"
    ),
    "shardgen run people -o people.zip": Shown(
        at=State.PLANNED, says="shardgen verify people.zip", leaves="people.zip"
    ),
    "shardgen run people --limit 1000": Shown(  # more than there are
        at=State.PLANNED, says="96 samples stored", leaves="people/dataset.zip"
    ),
    # No GPU is a newcomer's most likely answer, and these machines' too.
    "shardgen run people --gpus 0,2": Shown(at=State.PLANNED, code=18, says="there is no GPU 0"),
    # Nor has a newcomer a cluster.
    "shardgen ray people -o people.zip": Shown(at=State.PLANNED, code=11, says="no Ray cluster answers"),
    "shardgen ray people --workers 40 -o people.zip": Shown(
        at=State.PLANNED, code=11, says="no Ray cluster answers"
    ),
    "shardgen worker people": Shown(at=State.PLANNED, says="made 96 samples; 0 of 96 are pending"),
    "shardgen worker people --deadline 11h": Shown(
        at=State.PLANNED, says="made 96 samples; 0 of 96 are pending"
    ),
    # Nor keys of a bucket.
    "shardgen worker s3://bucket/people": Shown(
        at=State.PHOTOGRAPHS, code=11, says="this machine has no credentials for it"
    ),
    "shardgen status people": Shown(at=State.DEAD, says="dead letters 2"),
    "shardgen status people --watch": Shown(at=State.MADE, says="planned 96   stored 96"),
    "shardgen status people --serve": Shown(
        at=State.MADE, code=130, says="stopped", stops_after="page: http://127.0.0.1:8765/"
    ),
    "shardgen status people --html status.html": Shown(
        at=State.DEAD, says="status.html   ", leaves="status.html"
    ),
    "shardgen merge people -o people.zip": Shown(
        at=State.MADE, says="96 samples stored", leaves="people.zip"
    ),
    "shardgen merge people -o people.zip --allow-dead-letters": Shown(
        at=State.DEAD, says="94 samples stored, 2 dead letters", leaves="people.zip"
    ),
    "shardgen merge people --partial": Shown(
        at=State.MADE, says="nothing is pending", leaves="people/dataset.partial.zip"
    ),
    # The newcomer's photographs have other names.
    "shardgen merge people --exclude foregrounds/anna.png": Shown(
        at=State.MADE, code=12, says="the plan has no such source"
    ),
    "shardgen export people.zip people-tars --format webdataset": Shown(
        at=State.MADE, says="WebDataset(", leaves="people-tars/data-000000.tar"
    ),
    # Of two foregrounds and four backgrounds these proportions leave nothing for a test.
    "shardgen export people.zip people-parquet --format parquet --split 800,100,100": Shown(
        at=State.MADE, code=12, says="no sample would be in"
    ),
    "shardgen export people people-coco --format coco": Shown(
        at=State.MADE,
        says="people-coco/annotations/instances_data.json",
        leaves="people-coco/annotations/instances_data.json",
    ),
    "shardgen extend people": Shown(at=State.MADE, says="nothing to add"),
    "shardgen verify people": Shown(at=State.MADE, says="read 96 samples: no findings"),
    "shardgen verify people.zip": Shown(at=State.MADE, says="read 96 samples: no findings"),
    "shardgen verify people --requeue": Shown(at=State.DAMAGED, code=21, says="requeued 1 batch, 4 samples"),
    "shardgen requeue people --batch 17 --batch 18": Shown(
        at=State.MADE, says="requeued 2 batches, 8 samples"
    ),
    "shardgen requeue people --dead-letters": Shown(at=State.DEAD, says="requeued 2 batches, 8 samples"),
    "shardgen requeue people --blocked": Shown(at=State.DEAD, says="there are no blocked slices"),
    "shardgen dead-letters people": Shown(at=State.DEAD, says="70"),
    "shardgen dead-letters people --details": Shown(at=State.DEAD, says="Traceback (most recent call last)"),
    "shardgen rebuild people": Shown(
        at=State.LOST, says="rebuilt from 24 of 24 batches", leaves="people/manifest.sqlite"
    ),
    "shardgen sweep people": Shown(at=State.MADE, says="would remove 0 orphans"),
    "shardgen sweep people --yes": Shown(at=State.MADE, says="removed 0 orphans"),
    "shardgen backup people": Shown(at=State.MADE, says="people/manifest-"),
    "shardgen backup people -o people.sqlite": Shown(
        at=State.MADE, says="to put it back", leaves="people.sqlite"
    ),
    "shardgen doctor people": Shown(at=State.MADE, says="96 samples, 0 pending"),
    "shardgen cut-out portraits --sheet cut-outs.png": Shown(
        at=State.PORTRAITS, says="cut-outs.png   2 photographs", leaves="portraits/anna.mask.png"
    ),
    "shardgen weights fetch nyu": Shown(at=State.PHOTOGRAPHS, code=33, says="densedepth/nyu.h5"),
    "shardgen weights check nyu.h5": Shown(at=State.WEIGHTS, says="604,097"),
    "shardgen weights check nyu.h5 --fast": Shown(at=State.WEIGHTS, says="grey levels off on average"),
    # `.ci/run` gives it a folder.
    "shardgen demo": Shown(at=State.PHOTOGRAPHS, says="[6/6] Verify", leaves="shardgen-demo/demo.zip"),
}
