"""Who is alive and who can be trusted: the HealthMonitor and what it decides with."""

__all__: list[str] = []
