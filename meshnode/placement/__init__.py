"""Which shards are worth holding where: targets, ranks, what to acquire and what may go."""

__all__: list[str] = []
