"""A worker's parts as it puts them together itself, for tests that run them in their own process."""

from __future__ import annotations

from typing import cast

from shardgen.depth.base import Estimator
from shardgen.domain.plan import Plan
from shardgen.recipes.base import DeviceChoice
from shardgen.recipes.composites.composer import Composer
from shardgen.recipes.composites.maker import CompositesMaker
from shardgen.recipes.composites.plan import CompositesPlan
from shardgen.recipes.network import DepthStage, load_for_plan, network_choice
from shardgen.settings.run_directory import RunDirectory
from tests.plans import depth_in

CPU = DeviceChoice(device="cpu")


def load_network(run: RunDirectory, choice: DeviceChoice = CPU) -> Estimator:
    """The plan's network; its micro-batch is this process's own affair."""
    plan = depth_in(run.plan())
    return load_for_plan(network_choice(run.local), plan, None, choice=choice)


def open_composer(run: RunDirectory, kind: type[Composer] = Composer) -> Composer:
    """A composer that reads this run's photographs."""
    folders = run.folders({})
    return kind(CompositesPlan(run.plan()), folders["foregrounds"], folders["backgrounds"])


def maker_of(plan: Plan, composer: Composer, estimator: object) -> CompositesMaker:
    """The maker with this composer and this network, which may only behave like one; None: no depth."""
    stage = None
    if estimator is not None:
        network = cast("Estimator", estimator)
        stage = DepthStage(depth_in(plan), network, agreed=None)
    return CompositesMaker(CompositesPlan(plan), composer, stage, cpu="")
