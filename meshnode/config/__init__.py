"""Settings: what may be set, where a value came from, and where a node keeps its files.

Knows nothing of what the settings do; every consumer gets its section as a frozen value.
Owns no state: a configuration is loaded once, in `cli`, and passed down.
"""

from meshnode.config.loading import LoadedConfig, Origin, load_config
from meshnode.config.paths import DataPaths, default_data_dir
from meshnode.config.schema import NodeConfig

__all__ = ["DataPaths", "LoadedConfig", "NodeConfig", "Origin", "default_data_dir", "load_config"]
