"""The secrets of a notebook: `$FAKE_SECRETS`, a JSON object; null is one that the notebook may not use."""

import json
import os


class NotebookAccessError(Exception):
    """As Colab's."""


class SecretNotFoundError(Exception):
    """As Colab's."""


def get(key: str) -> str:
    """A secret."""
    secrets = json.loads(os.environ.get("FAKE_SECRETS", "{}"))
    if key not in secrets:
        raise SecretNotFoundError(f"Secret {key} does not exist.")
    if secrets[key] is None:
        raise NotebookAccessError(f"Notebook does not have access to secret {key}")
    return str(secrets[key])
