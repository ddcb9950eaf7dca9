"""Which shards are worth holding where: targets, ranks, what to acquire and what may go. Pure, but for its subsystem."""
