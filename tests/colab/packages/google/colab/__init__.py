"""A stand-in for Colab's own package, for notebooks that run in tests; no `google/__init__.py`, as there."""
