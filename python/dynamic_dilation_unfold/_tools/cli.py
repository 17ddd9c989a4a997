"""``python -m dynamic_dilation_unfold COMMAND``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__, cmake_prefix_path
from . import bench, demo, info, selftest

# A command is a module with add_arguments(parser) and run(args) -> exit status; its docstring is its help.
_COMMANDS = {"demo": demo, "bench": bench, "info": info, "selftest": selftest}


class _Print(argparse.Action):
    """Prints its constant and exits. The action "version" would wrap it to the terminal's width."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(self.const)
        parser.exit()


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="python -m dynamic_dilation_unfold",
        description="torch.nn.functional.unfold whose dilation is a map.",
    )
    root.set_defaults(parser=root, run=None)
    root.add_argument("--version", action="version", version=__version__)
    for option, folder, holds in (
        ("--cmakedir", "lib/cmake/DynamicDilationUnfold", "CMake package (-DDynamicDilationUnfold_DIR=...)"),
        ("--includedir", "include", "C and C++ headers"),
        ("--pkgconfigdir", "lib/pkgconfig", "pkg-config file (PKG_CONFIG_PATH=...)"),
    ):
        path = str(Path(cmake_prefix_path, folder))
        root.add_argument(option, action=_Print, nargs=0, const=path, help=f"print the folder of the {holds} and exit")
    commands = root.add_subparsers(metavar="COMMAND")
    for name, module in _COMMANDS.items():
        text = module.__doc__ or ""
        command = commands.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(parser=command, run=module.run)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    args, unknown = parser().parse_known_args(arguments)
    if unknown:  # said by the command's own parser, so that its usage stands above it
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.run is None:
        args.parser.print_help()
        return 0
    try:
        status: int = args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return status
