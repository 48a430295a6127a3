"""The file with a payload that a scenario names: read with the scenario, and part of it from then on.

So all processes of a run send the same, whatever happens to the file meanwhile, and scenarios with different payloads
have different fingerprints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationInfo, model_validator

from device_sim.scenario.values import DIRECTORY, ScenarioPart
from device_sim.telemetry.payload import LARGEST
from provisioning.program.given_file import contents_of, unread


class GivenPayload(ScenarioPart):
    """The path as it was written, and what was in the file; in JSON the latter is base64."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    path: str
    content: bytes

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any, info: ValidationInfo) -> Any:
        if not isinstance(given, str | Path):
            return given
        directory = (info.context or {}).get(DIRECTORY, Path())
        try:
            content = contents_of(directory / given, LARGEST)
        except OSError as error:
            raise ValueError(unread(directory / given, error)) from error
        return {"path": str(given), "content": content}
