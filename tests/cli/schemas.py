"""The schemas in docs/schemas/: `python -m tests.cli.schemas` writes them anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from shardgen.cli.documents import DOCUMENTS, Printout

FOLDER = Path(__file__).parent.parent.parent / "docs" / "schemas"


def schema_of(printout: type[Printout]) -> dict[str, Any]:
    """Its JSON schema, without the titles that pydantic makes of the names of keys."""
    schema = TypeAdapter(printout).json_schema()
    for part in [schema, *schema.get("$defs", {}).values()]:
        part.pop("title", None)
        for key in part["properties"].values():
            key.pop("title", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def text_of(printout: type[Printout]) -> str:
    """The file's."""
    return json.dumps(schema_of(printout), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write them."""
    FOLDER.mkdir(exist_ok=True)
    for name, printout in DOCUMENTS.items():
        (FOLDER / f"{name}.json").write_text(text_of(printout), encoding="utf-8")


if __name__ == "__main__":
    main()
