"""The version of gscfd. Package metadata, `gscfd.__version__` and the changelog follow it."""

__version__ = "0.2.0"
