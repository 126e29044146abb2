"""The file of a saved history: one ``.npz`` without pickle."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gradexp.atomic_write import replacing
from gradexp.history.finding import finding_of

_PLAIN = ("phase", "names", "steps", "seeds", "calls", "dtypes", "feeds", "remedies", "kinds")
_ARRAY_DICTS = ("log10", "status", "largest_log10", "stats", "theory", "time_log10", "time_status")
_OPTIONAL = ("dead_fraction", "output_cosine", "samples", "total_grad", "loss")


def write_fields(path: Path, fields: Mapping[str, Any]) -> None:
    """Write the fields of a history. An old file is replaced once the new one is whole.

    Args:
        path: The file.
        fields: Name -> plain values, dicts of arrays, and arrays or None.

    Raises:
        OSError: If it cannot be written.
    """
    findings = [[asdict(finding) for finding in of_step] for of_step in fields["findings"]]
    arrays: dict[str, Any] = {
        "meta": np.array(json.dumps({**{key: fields[key] for key in _PLAIN}, "findings": findings}))
    }
    for kind in _ARRAY_DICTS:
        arrays.update({f"{kind}/{key}": value for key, value in fields[kind].items()})
    arrays.update({key: fields[key] for key in _OPTIONAL if fields[key] is not None})
    # A file that a full disk has cut short could be read, with quantities missing.
    with replacing(path) as neighbour, neighbour.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_fields(path: Path) -> dict[str, Any]:
    """Return what ``write_fields`` wrote; fields that the file lacks are left out, or empty.

    Raises:
        ValueError: If the file is no zip file. A damaged one raises what numpy, zipfile, zlib or json raise.
        OSError: If it cannot be read.
    """
    with path.open("rb") as raw:
        if not zipfile.is_zipfile(raw):
            raise ValueError("no zip file")
        file = np.load(raw, allow_pickle=False)
        fields: dict[str, Any] = dict(json.loads(str(file["meta"])))
        fields["feeds"] = [tuple(pair) for pair in fields.get("feeds", ())]
        fields["findings"] = [tuple(map(finding_of, of_step)) for of_step in fields.get("findings", ())]
        fields.update({kind: {} for kind in _ARRAY_DICTS})
        for key in file:
            kind, _, name = key.partition("/")
            if kind in _ARRAY_DICTS:
                fields[kind][name] = file[key]
        fields.update({key: file[key] for key in _OPTIONAL if key in file})
    return fields
