"""What the commands share: a parser made from a function's signature, the resolved configuration, the run
folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

# What says where results go and how much is shown, not what they are: left out of the resolved configuration.
PLACES = {"run_dir": None, "overwrite": False}


@dataclass(frozen=True)
class Command:
    """A command: the function it calls, and the class paths that its arguments have when nothing else is
    said.

    Args:
        name: as typed.
        function: called with the instantiated arguments; its docstring is the help.
        defaults: defaults that are class paths.
        skip: arguments of the function that `extend` adds.
        extend: adds arguments that a signature cannot describe.
    """

    name: str
    function: Callable[..., object]
    defaults: Mapping[str, Any]
    skip: tuple[str, ...] = ()
    extend: Callable[[ArgumentParser], None] | None = None

    def parser(self) -> ArgumentParser:
        """The command's parser; `--config`, `--run_dir`, `--overwrite` and `--seed` come with every
        command."""
        from jsonargparse import ArgumentParser, set_parsing_settings

        from spatialdiff.data import FieldData

        class Parser(ArgumentParser):
            def error(self, message: str, ex: Exception | None = None) -> NoReturn:
                super().error(plainly(message), ex)

        set_parsing_settings(subclasses_enabled=[FieldData])
        text = (self.function.__doc__ or "").strip().splitlines()
        parser = Parser(prog=f"spatialdiff {self.name}", description=text[0] if text else None)
        parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
        parser.add_function_arguments(self.function, skip={"out", "config", *self.skip})
        if self.extend is not None:
            self.extend(parser)
        parser.add_argument("--run_dir", type=str | None, default=None, help="Where results go.")
        parser.add_argument(
            "--overwrite", action="store_true", help="Write into --run_dir even if it holds files already."
        )
        parser.set_defaults(dict(self.defaults))
        return parser

    def parse(
        self, argv: Sequence[str], defaults: Mapping[str, Any] | None = None
    ) -> tuple[ArgumentParser, Namespace]:
        """The parser and the resolved configuration, with `defaults` in place of the command's own."""
        from spatialdiff.cli.kernels import with_kernels_read

        parser = self.parser()
        parser.set_defaults(dict(defaults or {}))
        return parser, parser.parse_args(with_kernels_read([_underscored(item) for item in argv]))


def _underscored(argument: str) -> str:
    """`--run-dir=x` as `--run_dir=x`: options are named as in the configuration, but hyphens do too."""
    if not argument.startswith("--"):
        return argument
    name, sign, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + sign + value


def plainly(message: str) -> str:
    """The message of an argument that fits none of several types, less the types that were not meant.

    jsonargparse lists every alternative; what helps is the complaint of the one that came furthest.
    """
    mark = "Does not validate against any of the Union subtypes"
    if mark not in message:
        return message
    head, rest = message.split(mark, 1)
    body = rest.split("Errors:", 1)[-1].split("Given value type:", 1)[0]
    complaints = ["- " + part.strip() for part in body.split("\n    - ") if part.strip()]
    if len(complaints) <= 1:
        complaints = [part.strip() for part in body.splitlines() if part.strip()]
    telling = [part for part in complaints if not part.startswith("- Expected a")]
    return head + "\n  ".join(dict.fromkeys(telling or complaints))


def resolved(parser: ArgumentParser, config: Namespace) -> str:
    """The configuration as YAML, complete and without places: it repeats the run when fed back."""
    plain = config.clone()
    plain.pop("config", None)
    for name, value in PLACES.items():
        plain[name] = value
    lines = parser.dump(plain, skip_unset=False).splitlines()
    return "\n".join(line for line in lines if line.split(":")[0] not in PLACES) + "\n"


def arguments(parser: ArgumentParser, config: Namespace, *without: str) -> dict[str, Any]:
    """The instantiated arguments of the command's function, less `without` (which are then not built)."""
    from jsonargparse import Namespace

    plain = config.clone()
    for name in ("config", *PLACES, *without):
        plain.pop(name, None)
    built = dict(vars(parser.instantiate(plain)))
    return {name: value.as_dict() if isinstance(value, Namespace) else value for name, value in built.items()}


def absolute(path: str | None) -> str | None:
    """The path as it must stand in a configuration that is fed back from another directory."""
    return None if path is None else str(Path(path).expanduser().absolute())


def say(*lines: str) -> None:
    """Print lines of results."""
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
