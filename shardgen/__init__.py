"""Make large image data sets on machines that come and go, without losing one sample."""

__version__ = "0.1.0"
