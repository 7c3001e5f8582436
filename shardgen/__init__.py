"""Make large image data sets on machines that come and go, without losing one sample."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardgen.dataset.reader import DataSet

__version__ = "0.1.0"
__all__ = ["DataSet", "__version__"]


def __getattr__(name: str) -> object:
    # Imported when it is asked for: most commands read no data set, and start sooner without numpy.
    if name == "DataSet":
        from shardgen.dataset.reader import DataSet  # noqa: PLC0415

        return DataSet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
