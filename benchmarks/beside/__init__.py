"""The same disturbance on shardgen and on other projects: what `kill_resume` and `queues` share."""
