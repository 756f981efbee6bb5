"""Command line: `spatialdiff demo | fit | simulate | train | sample | evaluate | likelihood`.

Every command takes `--config file.yaml` and overrides; objects of the API are named by class path
(`--kernel spatialdiff.kernels.Matern --kernel.nu 1.5`). Every command writes a run folder that can be
repeated.
"""

from __future__ import annotations

import importlib
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TextIO

COMMANDS = {
    "demo": "the main job on real terrain: fit Γ, train three models, sample, compare, report (--quick: "
    "under a minute)",
    "fit": "fit the covariance Γ to fields",
    "simulate": "draw Gaussian fields from a kernel or from a fit",
    "train": "train a network by denoising, evidence bound or bridge mixture; the same command resumes",
    "sample": "generate fields with a trained model",
    "evaluate": "compare generated fields with held-out data",
    "likelihood": "bound the log-density of held-out data: bits per dimension, nats per site",
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "usage: spatialdiff COMMAND [--config FILE.yaml] [--OPTION VALUE ...]",
        "",
        "Diffusion models whose noise is a random field.",
        "",
        *(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()),
        "",
        "spatialdiff COMMAND --help lists the options; --print_config writes a configuration to start from.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 2 something to correct, 130 interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_usage())
        return 0
    if arguments[0] in ("-V", "--version", "version"):
        from spatialdiff.version import __version__

        sys.stdout.write(f"spatialdiff {__version__}\n")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        sys.stderr.write(
            f"spatialdiff: there is no command {name!r}. The commands are {', '.join(COMMANDS)}; see "
            f"spatialdiff --help.\n"
        )
        return 2
    debug = "--debug" in rest
    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = _show_warning
        return _run(name, [item for item in rest if item != "--debug"], debug)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    sys.stderr.write(f"{category.__name__}: {message}\n")


def _run(name: str, arguments: list[str], debug: bool) -> int:
    try:
        importlib.import_module(f"spatialdiff.cli.{name}").main(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except KeyboardInterrupt:
        again = " The same command goes on from the last checkpoint." if name == "train" else ""
        sys.stderr.write(f"\nspatialdiff {name}: stopped.{again}\n")
        return 130
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if debug:
            traceback.print_exc()
        else:
            from spatialdiff.cli.command import plainly

            sys.stderr.write(
                f"\nspatialdiff {name}: error: {plainly(str(error))}\n(--debug shows where it was raised.)\n"
            )
        return 2
    return 0
