"""Options out of a TOML file: `--config FILE`."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from ..training import Recipe, UserError
from ..training.errors import unknown

NOT_IN_A_FILE = ("config", "help", "settings")


def _as_text(name: str, value: Any) -> Any:
    """A value as it would stand on the line, which then checks it. Raises UserError for a table or a date."""
    if isinstance(value, list):
        texts = [_as_text(name, one) for one in value]
        return "-".join(texts) if name == "hidden" else texts
    if type(value) not in (str, bool, int, float):
        raise UserError(f"--config: {name} is {value!r}, expected a string, a number, true or false")
    return str(value)


def _pairs(table: dict[str, Any]) -> list[str]:
    return [f"{name}={tuple(value) if isinstance(value, list) else value!r}" for name, value in table.items()]


def _configured(context: typer.Context, path: Path | None) -> Path | None:
    """Makes what the file has the command's defaults. Raises UserError."""
    if path is None:
        return None
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"--config: '{path}' is no TOML ({error})") from error
    known = [name for parameter in context.command.params if (name := parameter.name) not in NOT_IN_A_FILE and name]
    defaults: dict[str, Any] = {}
    further: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in defaults or name in further:
            raise UserError(f"--config: '{path}' has {key} twice, expected it once")
        if name == "options" and "option" in known and isinstance(value, dict):
            context.meta["option"] = _pairs(value)
        elif name in known and name != "option":
            defaults[name] = _as_text(name, value)
        elif name in Recipe.__dataclass_fields__ and name != "options":
            further[name] = value
        else:
            raise unknown("--config", key, dict.fromkeys([*known, *Recipe.__dataclass_fields__]))
    context.meta["settings"] = _pairs(further)
    context.default_map = defaults
    return path


Config: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        rich_help_panel="Further settings",
        help="TOML file of options by their long names, of further parts of the recipe, and a table named "
        "options, of the rule's own. What is given on the line comes first.",
        metavar="FILE",
        is_eager=True,
        callback=_configured,
        show_default="none",
    ),
]
