"""Typed access to the JSON object of a model's configuration, with errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from banyan_core.model_spec import ModelError


@dataclass(frozen=True, slots=True)
class ConfigFields:
    """`null` means absent. `place` is the file, and the way into it, for errors."""

    values: Mapping[str, object]
    place: str = "config.json"

    def integer(self, name: str, default: int | None = None, minimum: int = 1) -> int:
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            wanted = "a positive integer" if minimum == 1 else f"an integer from {minimum}"
            raise self.error(name, value, wanted)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            raise self.error(name, value, "a positive number")
        return float(value)

    def number_or_none(self, name: str) -> float | None:
        return None if self.values.get(name) is None else self.number(name)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, value, "true or false")
        return value

    def items(self, name: str) -> list[object]:
        """A list; absent is empty."""
        value = self.get(name, [])
        if not isinstance(value, list):
            raise self.error(name, value, "a list")
        return value

    def inner(self, name: str) -> ConfigFields:
        """An object; absent is empty."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise self.error(name, value, "an object or null")
        return ConfigFields(value, f"{self.place}: {name}")

    def get(self, name: str, default: object = None) -> object:
        value = self.values.get(name)
        return default if value is None else value

    def error(self, name: str, value: object, wanted: str) -> ModelError:
        return ModelError(f"{self.place}: {name}: {value!r}, expected {wanted}")
