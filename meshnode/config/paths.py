"""Where a node keeps its files."""

from pathlib import Path

import attrs
import platformdirs

__all__ = ["DataPaths", "default_data_dir"]


def default_data_dir() -> Path:
    """Return the platform's per-user data folder for meshnode."""
    return platformdirs.user_data_path("meshnode", appauthor=False)


@attrs.frozen
class DataPaths:
    """The layout of one data folder. Creates nothing; whoever writes a file makes its folder."""

    root: Path

    @property
    def identity(self) -> Path:
        """The node's private key."""
        return self.root / "identity.key"

    @property
    def api_key(self) -> Path:
        """The bearer key of the HTTP API, one line."""
        return self.root / "api_key"

    @property
    def store(self) -> Path:
        """The folder of the database."""
        return self.root / "store"

    @property
    def shards(self) -> Path:
        """Verified shards, content-addressed."""
        return self.root / "shards"

    @property
    def partial(self) -> Path:
        """Shards on their way in."""
        return self.root / "partial"

    @property
    def transfers(self) -> Path:
        """Parts of shards that come from elsewhere, kept over restarts."""
        return self.root / "transfers"

    @property
    def quarantine(self) -> Path:
        """Shards whose bytes did not match their hash."""
        return self.root / "quarantine"

    @property
    def updates(self) -> Path:
        """Other versions of meshnode, and which of them runs."""
        return self.root / "updates"

    @property
    def config_file(self) -> Path:
        """The settings file."""
        return self.root / "config.toml"

    @property
    def runtime_file(self) -> Path:
        """JSON host, port and pid of the running node; how the command line finds it."""
        return self.root / "runtime.json"
