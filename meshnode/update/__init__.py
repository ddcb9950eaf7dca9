"""Signed releases: looked for, verified, staged beside the installation, tried once, and taken back when they do not work.

Off unless `updates.enabled`. docs/updates.md is for those who use it, decision 012 says why it is as it is.
"""

__all__ = ["fetching", "release"]
