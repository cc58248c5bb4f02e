"""`stabn-app`: the command that serves the page of `app.layout`.

Nothing heavy is imported before the command line is read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any

import tyro

from stabn.command import UsageError, command


def _option(metavar: str, default: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"({default})")


_Flag = tyro.conf.FlagCreatePairsOff


@dataclass(frozen=True)
class Options:
    """A web page: upload a clip, see where and when the network looked, and ask "what if?"."""

    host: Annotated[str, _option("ADDRESS", "default: 127.0.0.1, this machine only")] = "127.0.0.1"
    """Where the page is served; 0.0.0.0 lets all of your network in."""
    port: Annotated[int | None, _option("NUMBER", "default: the first free one from 7860 on")] = None
    """Its port."""
    share: Annotated[bool, _Flag] = False
    """Also make a public link, through a server of gradio's."""
    auth: Annotated[str | None, _option("USER:PASSWORD", "default: none")] = None
    """Ask for this name and password."""
    checkpoint: Annotated[tuple[str, ...], _option("NAME|FILE ...", "default: those that are bundled")] = ()
    """Networks to offer first: names of bundled ones, files, or torchvision:NAME."""
    device: Annotated[str, _option("NAME", "default: auto")] = "auto"
    """Where the networks run: auto, cpu, cuda, cuda:1, mps."""
    mcp: Annotated[bool, _Flag] = False
    """Also offer the endpoint as a tool to language models; needs `pip install 'stabn[mcp]'`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the page until it is interrupted. Exit code: 0 ended, and those of `stabn.command`."""
    return command(lambda: serve(tyro.cli(Options, prog="stabn-app", args=arguments)), lambda: "the page is closed")


def serve(options: Options) -> None:
    """Serves the page until it is interrupted. Raises UsageError: a wrong option, a missing extra, no free port."""
    user, colon, password = (options.auth or "").partition(":")
    if options.auth is not None and not (user and colon and password):
        raise UsageError("--auth needs a name and a password, USER:PASSWORD")
    if options.mcp and find_spec("mcp") is None:
        raise UsageError("--mcp needs a package more: pip install 'stabn[mcp]'")
    from app import guard

    guard.prepare()  # before gradio is imported
    from app.layout import LOOK, build
    from app.reader import Limits

    try:
        demo = build(options.checkpoint, options.device)
        demo.launch(
            **guard.launch_arguments(
                Limits(),
                host=options.host,
                port=options.port,
                share=options.share,
                auth=(user, password) if options.auth else None,
                mcp=options.mcp,
            ),
            **LOOK,
        )
    except (ValueError, OSError) as error:  # no such network, no free port
        raise UsageError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
