from __future__ import annotations

from shardgen.cli.app import main
from shardgen.recipes.registry import register
from tests.text_recipe import Text

register(Text())
main()
