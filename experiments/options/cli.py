"""Command lines: a dataclass gives the flags; what is wrong is one line and a non-zero exit."""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import tyro

from jaxsparse.types import OptionError

Config = TypeVar("Config")

# Flags that may be left out; their help says what happens then.
OptionalInt: TypeAlias = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
OptionalFloat: TypeAlias = Annotated[
    float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")
]
OptionalStr: TypeAlias = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
# A flag of this type may stand alone: --name means --name=True.
OptionalBool: TypeAlias = Annotated[
    bool | None,
    tyro.conf.FlagConversionOff,
    tyro.conf.arg(metavar="True|False", help_behavior_hint=""),
]
OptionalPath: TypeAlias = Annotated[
    Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")
]
# Any number of paths, without a flag's name.
Runs: TypeAlias = tyro.conf.Positional[
    Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...", help_behavior_hint="")]
]


def nearest(name: str, names: Iterable[str], *, kind: str) -> str:
    """Returns `name` if it is one of `names`, raises a ValueError with the nearest match if not.

    >>> nearest("granet_ts", ["gmp", "granet_st"], kind="schedule")
    Traceback (most recent call last):
    ...
    ValueError: unknown schedule 'granet_ts'; did you mean 'granet_st'?
    """
    names = list(names)
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
    raise ValueError(f"unknown {kind} {name!r}; {hint}")


def run(
    main: Callable[[Config], object],
    config: type[Config],
    argv: Sequence[str],
    *,
    going_on: Callable[[Config], str] = lambda _: "",
) -> int:
    """Parses the flags, calls `main` and returns the exit status.

    Args:
      main: the program.
      config: dataclass whose fields are the flags and whose docstrings are their help.
      argv: the arguments, without the program's name.
      going_on: returns what to say after Ctrl-C about how to go on; "" says nothing.

    Returns:
      0 if all went well; 2 after one line on standard error, for a wrong flag or a value that the
      library or the system refuses (ValueError, OSError); 130 after Ctrl-C; 141 if nobody reads
      what is printed any more, as after `| head`. Any other exception keeps its traceback. With
      JAXSPARSE_TRACEBACK=1 in the environment, the errors of status 2 keep theirs too.
    """
    try:
        with _printed():
            with _leaving_on_ctrl_c():
                parsed = parse(config, argv)
            with _leaving_on_ctrl_c(going_on(parsed)):
                main(parsed)
    except BrokenPipeError:
        # Python would complain at exit of what is left in the buffer, so that goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE  # as a shell does if the signal ended the program
    except (ValueError, OSError) as error:
        if os.environ.get("JAXSPARSE_TRACEBACK"):
            raise
        print(f"error: {_in_flags(error, config)}", file=sys.stderr)
        return 2
    return 0


def flag_error(flag: str, value: Any, wrong: str, advice: str = "") -> str:
    """Returns the message for a flag whose value is wrong.

    >>> flag_error("sparsity", 1.0, "must be in [0, 1)")
    '--sparsity=1.0 must be in [0, 1)'
    """
    return f"--{flag}={value} {wrong}{advice and f'; {advice}'}"


def _in_flags(error: Exception, config: type) -> str:
    """The message of an error, with dashes if it is about an option that is a flag."""
    if isinstance(error, OptionError) and f"--{error.option}" in _names(config)[0]:
        return flag_error(error.option, error.value, error.wrong, error.advice)
    return str(error)


@contextlib.contextmanager
def _printed() -> Iterator[None]:
    """Writes out what was printed, also if `--help` ends the program."""
    try:
        yield
    finally:
        sys.stdout.flush()


@contextlib.contextmanager
def _leaving_on_ctrl_c(note: str = "") -> Iterator[None]:
    """Ends the process at Ctrl-C, at once: all that matters is on disk, and a checkpoint is whole.

    A KeyboardInterrupt would be lost if it is raised in a destructor or a callback. A normal exit
    would crash if XLA is compiling in another thread.
    """
    last_words = f"\ninterrupted{note and f'; {note}'}\n".encode()

    def leave(*_: Any) -> None:
        os.write(2, last_words)
        os._exit(130)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def parse(config: type[Config], argv: Sequence[str]) -> Config:
    """Returns the config that the flags ask for; `--help` prints and exits.

    Call it in the main thread only: to catch tyro's complaints it exchanges `sys.stderr`, which
    belongs to the whole process.

    Raises:
      ValueError: a flag is unknown (the nearest one is named), or does not take its value.
    """
    flags, positionals = _names(config)
    arguments = _with_values(config, [_underscored(argument) for argument in argv])
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed, unknown = tyro.cli(
                config,
                args=arguments,
                description=config.__doc__,
                use_underscores=True,
                return_unknown_args=True,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(_complaint(config, arguments, complaint.getvalue())) from None
    if unknown:
        name = unknown[0].split("=")[0]
        if not name.startswith("-"):
            hint = ", and all others stand together" if positionals else ""
            raise ValueError(f"unexpected argument {name!r}; flags are written --flag=value{hint}")
        try:
            nearest(name, flags, kind="flag")
        except ValueError as error:
            if "--flags" not in arguments[: arguments.index(unknown[0])]:
                raise
            inner = unknown[0].removeprefix("--")
            raise ValueError(
                f"{error} If it is the script's, write {inner} after --flags"
            ) from None
        raise ValueError(f"flag {name} does not take the value given")
    return parsed


def as_dict(config: Any) -> dict[str, Any]:
    """Returns the fields of a config dataclass, for `config.json`."""
    return dataclasses.asdict(config)


def _names(config: type) -> tuple[list[str], list[str]]:
    """Returns the flags as they are written, and the fields that are given without a flag."""
    marker = typing.get_args(tyro.conf.Positional[int])[-1]
    hints = typing.get_type_hints(config, include_extras=True)
    positionals = [name for name, hint in hints.items() if marker in typing.get_args(hint)]
    return [f"--{name}" for name in hints if name not in positionals], positionals


def _with_values(config: type, arguments: list[str]) -> list[str]:
    """Writes =True after each flag that may stand alone and does."""
    hints = typing.get_type_hints(config, include_extras=True)
    takes = lambda hint: tyro.conf.FlagConversionOff in typing.get_args(hint)
    alone = {f"--{name}" for name, hint in hints.items() if takes(hint)}
    is_alone = lambda flag, then: flag in alone and (then.startswith("--") or "=" in then)
    pairs = zip(arguments, [*arguments[1:], "--"], strict=False)
    return [f"{flag}=True" if is_alone(flag, then) else flag for flag, then in pairs]


def _underscored(argument: str) -> str:
    """Turns --data-dir=A-B into --data_dir=A-B, as both spellings of a flag are allowed."""
    name, equals, value = argument.partition("=")
    return (
        name.replace("-", "_").replace("__", "--", 1) + equals + value
        if name[:2] == "--"
        else argument
    )


def _complaint(config: type, arguments: list[str], box: str) -> str:
    """Returns one line that says what is wrong, from the box that tyro draws."""
    if flag := re.search(r"Error parsing --(\w+)", box):
        words = [word for argument in arguments for word in argument.split("=", 1)]
        value = words[words.index(f"--{flag[1]}") + 1]
        kind = str(typing.get_type_hints(config)[flag[1]]).replace("<class 'int'>", "int")
        what = "a whole number" if "int" in kind else "a number" if "float" in kind else "a value"
        return f"--{flag[1]}={value} must be {what}"
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()[1:]]
    end = next((i for i, line in enumerate(lines) if not line or line.startswith("──")), len(lines))
    return re.sub(r"\s+", " ", " ".join(lines[:end])).strip() or "the flags are wrong, see --help"
