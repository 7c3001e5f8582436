"""`python -m shardgen`: the same as the `shardgen` command."""

from shardgen.cli.app import main

main()
