"""Options as dataclass fields: help, range and default of each stand in one place."""

import dataclasses
import difflib
import math
import sys
import types
from collections.abc import Mapping
from typing import Any, Self, get_args, get_origin

from minisft.backend.array import device_name
from minisft.errors import UserError, setting, short_repr


def option(default: Any, help: str, within: tuple | None = None,
           only: tuple[str, ...] | None = None, **argparse: Any) -> Any:
    """A field with its help, what argparse needs besides, and (lowest, highest) for a number.

    `only`: the option, and its values beside which alone this one counts. None as the default
    stands for "depends": the help says on what. None as the highest: any. The highest of a size is
    beyond any use and keeps a slip of the finger from filling the memory.
    """
    return dataclasses.field(default=default, metadata={
        "help": help, "within": within, "only": only, "argparse": argparse})


def counts(only: tuple[str, ...] | None, values: Mapping[str, Any]) -> bool:
    """What `option` keeps as `only`, values of the options -> whether the option counts there."""
    return only is None or values[only[0]] in only[1:]


class Config:
    """Groups of options. The command line and config.json see them as one flat dict.

    A subclass is a frozen dataclass whose fields are the groups.
    """

    @classmethod
    def option_fields(cls) -> dict[str, dataclasses.Field]:
        """-> the field of each option, by its name."""
        return {f.name: f for group in dataclasses.fields(cls)
                for f in dataclasses.fields(group.default_factory)}

    @classmethod
    def from_options(cls, **values: Any) -> Self:
        """Flat options, the others at their defaults -> config; raises UserError for a name that
        is none."""
        return cls().replace(**values)

    def options(self) -> dict[str, Any]:
        """-> one flat dict of all options."""
        return {f.name: getattr(part, f.name) for part in self._parts().values()
                for f in dataclasses.fields(part)}

    def given(self) -> dict[str, Any]:
        """-> the options that are not at their defaults."""
        known = self.option_fields()
        return {name: value for name, value in self.options().items()
                if value != known[name].default}

    @classmethod
    def that_count(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values of all options -> those that count beside the others."""
        known = cls.option_fields()
        return {name: value for name, value in values.items()
                if counts(known[name].metadata["only"], values)}

    def replace(self, **values: Any) -> Self:
        """-> the same config with other values for these options; raises as `from_options`."""
        known = self.option_fields()
        for name, value in values.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise UserError(f"{name!r} is no option" + (
                    f", did you mean {near[0]!r}?" if near else
                    f", expected one of {', '.join(known)}"))
            if isinstance(known[name].default, tuple):
                values[name] = (value,) if isinstance(value, str) else tuple(value)
            if name == "device" and isinstance(value, str):
                values[name] = device_name(value)
        return dataclasses.replace(self, **{
            group: dataclasses.replace(part, **{f.name: values[f.name]
                                                for f in dataclasses.fields(part)
                                                if f.name in values})
            for group, part in self._parts().items()})

    def _parts(self):
        return {group.name: getattr(self, group.name) for group in dataclasses.fields(self)}


def require_in_range(config: Config) -> None:
    """Raises UserError naming the first option whose number or choice cannot be."""
    options = config.options()
    for name, known in config.option_fields().items():
        value, within = options[name], known.metadata["within"]
        if within is not None and value is not None:
            low, high = within
            if not isinstance(value, int | float) or not low <= value <= (high or math.inf) or \
                    value == math.inf:
                expected = f"at least {low}" if high is None else f"from {low} to {high}"
                raise UserError(f"{setting(name)} is {value}, expected {expected}")
        choices = known.metadata["argparse"].get("choices")
        if choices and value not in (*choices, known.default):
            raise UserError(f"{setting(name)} is {value!r}, expected one of {', '.join(choices)}")
        if value == "" and name in ("train", "test", "valid", "train_target", "test_target",
                                   "valid_target", "model", "tokenizer", "out"):
            raise UserError(f"{setting(name)} is empty, expected a name")
    if options["lr"] == 0:
        raise UserError(f"{setting('lr')} is 0.0, expected more: nothing would be learnt")


def config_of_run(kind: type[Config], kept: Mapping[str, Any], folder: Any) -> Any:
    """What config.json of a run holds -> config of that kind.

    Raises UserError for a run of a version that had other options.
    """
    values = kept.get("settings")
    if not all(isinstance(part, dict) for part in (
            values, kept.get("files"), kept.get("given", {}))):
        raise UserError(f"{folder}/config.json: no settings of a run")
    known = kind.option_fields()
    if differ := sorted(values.keys() ^ known.keys()):
        raise UserError(f"{folder}/config.json: {differ[0]!r} is a setting of another version of "
                        "minisft, whose runs this one cannot resume")
    for name, value in values.items():
        kind_of_value = known[name].type
        if not _fits(value, kind_of_value):
            raise UserError(f"{folder}/config.json: {setting(name)} is {short_repr(value)}, "
                            f"expected {getattr(kind_of_value, '__name__', kind_of_value)}")
    return kind.from_options(**values)


def _fits(value, type_):
    """-> whether a value of a JSON file is of an option's type."""
    if isinstance(type_, types.UnionType):
        return any(_fits(value, each) for each in get_args(type_))
    if get_origin(type_) is tuple:
        return isinstance(value, list) and all(_fits(x, get_args(type_)[0]) for x in value)
    if type_ is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is type_
