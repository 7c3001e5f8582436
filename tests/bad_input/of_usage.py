"""Rows of what is typed wrongly: exit code 2, and a hint to the help of that very command."""

from __future__ import annotations

from tests.bad_input.case import Case


def _misuse(
    name: str,
    line: str,
    *says: str,
    hint: str = "",
    start: str = "new",
    from_the_start: bool = False,
    prints: bool = False,
) -> Case:
    arguments = tuple(line.split())
    return Case(
        name=name,
        arguments=arguments,
        code=2,
        from_the_start=from_the_start,
        says=says,
        start=start,
        prints=prints,
        hints=(hint or f"shardgen {arguments[0]} --help",),
    )


CASES = [
    _misuse(
        "a command that is not there",
        "statsu people",
        "no such command: statsu",
        hint="did you mean status? Otherwise see: shardgen --help",
        from_the_start=True,
    ),
    _misuse(
        "an option that is not there",
        "run people --worker 2",
        "no such option: --worker",
        hint="did you mean --workers? Otherwise see: shardgen run --help",
    ),
    _misuse(
        "an option with the hyphens of Python",
        "run people --allow_dead_letters",
        "--allow_dead_letters",
        hint="did you mean --allow-dead-letters?",
    ),
    _misuse(
        "an option that is like another in its hyphens only",
        "preview people --count 6",
        "no such option: --count",
        hint="hint: shardgen preview --help",
    ),
    _misuse("an option like none", "run people --zzz", "no such option: --zzz", hint="shardgen run --help"),
    _misuse(
        "a part of weights that is not there",
        "weights fech",
        "no such command: fech",
        hint="did you mean fetch?",
    ),
    _misuse("an argument too many", "status people scenes", "scenes"),
    _misuse(
        "a word for a shard", "worker people --shard first", "--shard must be a whole number (typed: first)"
    ),
    _misuse("a negative shard", "worker people --shard -1", "--shard must be at least 0 (typed: -1)"),
    _misuse("a device that is not there", "worker people --device tpu", "--device", "tpu", "cpu"),
    _misuse("a device in two letters", "worker people --device gp", "did you mean gpu?"),
    _misuse("a negative deadline", "worker people --deadline -5m", "--deadline", "-5m", "11h"),
    _misuse("a deadline in an unknown unit", "worker people --deadline 2days", "2days", "11h"),
    _misuse("a deadline that is no time at all", "worker people --deadline h", "--deadline", "'h'", "11h"),
    _misuse("a grace that is not a number", "worker people --grace nan", "--grace", "0"),
    _misuse("no workers", "run people --workers 0", "--workers must be at least 1"),
    _misuse("GPUs with a comma too many", "run people --gpus 0,,2", "--gpus", "''"),
    _misuse("a rate of nothing", "plan people --rate 0", "--rate", "0"),
    _misuse("a rate of NaN", "plan people --rate nan", "--rate", "nan"),
    _misuse("a rate without end", "plan people --rate inf", "--rate", "inf"),
    _misuse("a preview of nothing", "preview people --samples 0", "--samples", "1"),
    _misuse("two things to requeue", "requeue people --batch 1 --blocked", "--batch", start="planned"),
    _misuse("a document that is watched", "status people --json --watch", "--json", "--watch", prints=True),
    _misuse("weights of an unknown name", "weights fetch nyuu", "nyuu", "nyu", hint="weights fetch --help"),
    _misuse("a folder option without its folder", "init new --foregrounds", "--foregrounds"),
    Case(
        name="a folder that init is not given",
        arguments=("init", "new", "--foregrounds", "cut-outs"),
        code=11,
        says=("preset grid600 needs --backgrounds",),
        hints=("shardgen init new --preset grid600 --foregrounds DIR --backgrounds DIR",),
    ),
    Case(
        name="a folder that the preset does not take",
        arguments=("init", "new", "--pictures", "scenes"),
        code=12,
        says=("--pictures: preset grid600 takes no pictures",),
        hints=("leave it out, or: shardgen init new --preset depth-of-folder --pictures DIR",),
    ),
    Case(
        name="weights where there is no depth",
        arguments=(
            *("init", "new", "--preset", "masks-only", "--weights", "small"),
            *("--foregrounds", "cut-outs", "--backgrounds", "scenes"),
        ),
        code=12,
        says=("--weights: preset masks-only makes no depth",),
        hints=("leave --weights out",),
    ),
    *(
        Case(
            name=f"weights mistyped after init: {weights}",
            arguments=(
                *("init", "new", "--weights", weights),
                *("--foregrounds", "cut-outs", "--backgrounds", "scenes"),
            ),
            code=11,
            says=(f"{weights}: no such weights file",),
            hints=(hint,),
        )
        for weights, hint in [
            ("smal", "did you mean --weights small? Known are nyu, kitti, small, or a file's path"),
            ("Small", "did you mean --weights small?"),
            ("own/small.h5", "hint: --weights nyu, kitti, small, or a file's path"),
        ]
    ),
    Case(
        name="a preset that is not there",
        arguments=("init", "new", "--preset", "grid500"),
        code=12,
        says=("--preset: 'grid500'",),
        hints=("did you mean --preset grid600?",),
    ),
    Case(
        name="a preset like none",
        arguments=("init", "new", "--preset", "zzz"),
        code=12,
        says=("--preset: 'zzz'",),
        hints=("--preset grid600 or random224",),
    ),
    Case(
        name="a folder that the run does not take",
        arguments=("plan", "people", "--pictures", "scenes"),
        code=12,
        says=("--pictures", "takes no pictures"),
        hints=("--foregrounds DIR --backgrounds DIR",),
    ),
    Case(
        name="a batch that the plan does not have",
        arguments=("requeue", "people", "--batch", "999999"),
        code=12,
        start="planned",
        says=("999999", "0 to 11"),
        hints=("shardgen dead-letters people",),
    ),
    Case(
        name="a shard that the plan does not have",
        arguments=("worker", "people", "--shard", "3"),
        code=12,
        start="planned",
        says=("shard 3", "0 to 2"),
        hints=("shardgen status people",),
    ),
    _misuse("more workers than can be", "run people --workers 99999", "--workers must be at most 256"),
    Case(
        name="no run directory typed, but one is in this folder",
        arguments=("status",),
        code=11,
        says=("shardgen.toml", "not a run directory"),
        hints=("name the run directory: people",),
    ),
    _misuse("a number that is none", "worker people --max-batches x", "--max-batches", "typed: x"),
    _misuse("a number after a sign of equality", "worker people --shard=x", "--shard", "typed: x"),
    _misuse("a deadline without a unit", "worker people --deadline 11", "--deadline", "11h"),
    Case(
        name="a run directory with a letter too few",
        arguments=("status", "peple"),
        code=11,
        says=("peple/shardgen.toml", "not a run directory"),
        hints=("did you mean people?",),
    ),
    Case(
        name="verify of a folder that is no run",
        arguments=("verify", "scenes"),
        code=11,
        says=("scenes/shardgen.toml", "not a run directory"),
        hints=("check the name", "shardgen init NEW_DIR"),
    ),
    Case(
        name="a GPU that is not there",
        arguments=("run", "people", "--gpus", "99"),
        code=18,
        start="planned",
        says=("--gpus", "99"),
        hints=("--device cpu",),
    ),
    Case(
        name="init where settings are",
        arguments=("init", "people", "--foregrounds", "cut-outs", "--backgrounds", "scenes"),
        code=10,
        says=("people/shardgen.toml",),
        hints=("shardgen plan people",),
    ),
    Case(
        name="a zip that is to be requeued",
        arguments=("verify", "people/dataset.zip", "--requeue"),
        code=2,
        start="finished",
        says=("--requeue", "zip"),
        hints=("shardgen verify",),
    ),
]
