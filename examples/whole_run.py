"""From two folders of photographs to a data set in Python. Run it where `portraits` and `scenes` are."""

import logging

import shardgen
from shardgen.errors import OperatorError, RunIncomplete

logging.basicConfig(level=logging.WARNING)  # INFO shows what the workers say, too


def show(progress: shardgen.Progress) -> None:
    """Print one line, such as: making samples 33 %  16/48 samples · 42.5/s · 0:01 left."""
    print(progress.doing, progress.line())


try:
    cut = shardgen.cut_out("portraits", sheet="cut-outs.png", on_progress=show)
    print(len(cut.written), "masks written,", len(cut.kept), "kept", *cut.warnings, *cut.left_out)
    shardgen.init(
        "people",
        foregrounds="portraits",
        backgrounds="scenes",
        weights="small",  # for trials; leave it out for the released network
        set={"compose.grid": [2, 1], "output.size": [64, 64]},
    )
    planned = shardgen.plan("people", on_progress=show)
    print(planned.plan.samples, "samples planned, look at", shardgen.preview("people", samples=4))
except OperatorError as error:  # something that a person must change
    print(error.code, error, *error.problems, error.hint, sep="\n")
    raise SystemExit(error.exit_code) from None

try:
    shardgen.merge("people")
except RunIncomplete as error:  # nothing is made yet
    print(error)

# You can stop it at any time; the same call continues where it stopped.
made = shardgen.run("people", output="people.zip", on_progress=show)
print(made.report.stored, "samples stored,", made.report.dead, "dead letters")
print(shardgen.status("people").pending, "pending")
shardgen.verify("people.zip")  # raises ArtifactCorrupt if a byte is wrong

with shardgen.DataSet("people.zip") as data:
    sample = data[0]
    print(len(data), sample["fgbg"].shape, sample["background"])
