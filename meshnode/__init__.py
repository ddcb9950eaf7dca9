"""meshnode: one node of a mesh that pools machines to run language models."""

__all__ = ["__version__"]

__version__ = "0.1.0"
