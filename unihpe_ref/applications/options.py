"""Reads the command line. ``--preset`` is read first, because the defaults of all other options depend on it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn, Union

import tyro

from multicontrast import __version__
from multicontrast._checks import three_beats
from unihpe_ref.applications.ablation import Ablate
from unihpe_ref.applications.commands import Demo, Evaluate, Train
from unihpe_ref.applications.data_commands import Data
from unihpe_ref.applications.lift_command import Lift
from unihpe_ref.applications.use_commands import Doctor, Estimate, Export, Retrieve
from unihpe_ref.presets import preset

Command = Demo | Train | Evaluate | Ablate | Data | Lift | Estimate | Retrieve | Export | Doctor
_COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "lift": Lift,
    "estimate": Estimate,
    "retrieve": Retrieve,
    "data": Data,
    "train": Train,
    "evaluate": Evaluate,
    "ablate": Ablate,
    "export": Export,
    "doctor": Doctor,
}
_SHELLS = ("bash", "zsh")
_DEFAULT_PRESET = "lifting"


def parse(arguments: Sequence[str]) -> Command:
    """The command that ``arguments`` ask for.

    Raises: ValueError for an unknown command or preset; SystemExit (2) for options that do not exist or do not fit,
        with a message on stderr that names the nearest ones; SystemExit (0) after ``--help`` and ``--version``.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        raise SystemExit(0)
    if arguments[0] == "--version":
        print(f"unihpe (multicontrast {__version__})")
        raise SystemExit(0)
    name, *rest = arguments
    if name == "completion":
        _complete(rest)
    if name not in _COMMANDS:
        near = difflib.get_close_matches(name, _COMMANDS, n=1)
        remedy = f"Did you mean `unihpe {near[0]}`?" if near else "`unihpe --help` lists them."
        raise ValueError(three_beats(f"a command is one of {', '.join(_COMMANDS)}", repr(name), remedy))
    return tyro.cli(_COMMANDS[name], prog=f"unihpe {name}", default=_default(name, rest), args=rest)


def _complete(arguments: Sequence[str]) -> NoReturn:
    """Prints a script that lets a shell complete commands and options, and stops."""
    if len(arguments) != 1 or arguments[0] not in _SHELLS:
        needed = f"`unihpe completion` needs a shell: {', '.join(_SHELLS)}"
        remedy = "For bash: `unihpe completion bash > ~/.local/share/bash-completion/completions/unihpe`."
        raise ValueError(three_beats(needed, " ".join(arguments) or "none", remedy))
    parts = [
        Annotated[command, tyro.conf.subcommand(name, default=_default(name, []), description=_summary(command))]
        for name, command in _COMMANDS.items()
    ]
    tyro.cli(Union[tuple(parts)], prog="unihpe", args=["--tyro-print-completion", arguments[0]])  # type: ignore[call-overload] # noqa: UP007 - made at run time
    raise SystemExit(0)


def _default(name: str, arguments: Sequence[str]) -> Any:
    """The settings of ``train`` come from a preset; other commands have their own defaults."""
    return Train(config=preset(_asked_preset(arguments))) if name == "train" else tyro.MISSING_NONPROP


def _summary(command: type[Command]) -> str:
    return (inspect.getdoc(command) or "").splitlines()[0]


def _overview() -> str:
    lines = ["usage: unihpe COMMAND [options]; `unihpe COMMAND --help` lists the options", ""]
    lines += [f"  {name:<10} {_summary(command)}" for name, command in _COMMANDS.items()]
    lines.append(f"  {'completion':<10} Print a script of completions for {', '.join(_SHELLS)}.")
    return "\n".join(lines)


def _asked_preset(arguments: Sequence[str]) -> str:
    for position, argument in enumerate(arguments):
        if argument.startswith("--preset="):
            return argument.removeprefix("--preset=")
        if argument == "--preset" and position + 1 < len(arguments):
            return arguments[position + 1]
    return _DEFAULT_PRESET
