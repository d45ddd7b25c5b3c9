"""``dist-scvi serve``: its arguments, and the check of where the service may be reached from."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dist_scvi.launch.argument_types import at_least, pair, size_bytes, span
from dist_scvi.launch.serve.hosts import is_loopback, loopback_hosts
from dist_scvi.launch.serve.limits import Limits, Service, name_atlases, read_tokens
from dist_scvi.launch.standard_streams import print_text

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    _Commands = _SubParsersAction[argparse.ArgumentParser]

PORT = 8321


def add_serve(commands: "_Commands") -> None:
    """Add the command ``serve``; `serve` runs it."""
    parser = commands.add_parser(
        "serve",
        help="answer questions to atlases over HTTP, with a page",
        epilog="needs: pip install 'dist-scvi[serve]'",
    )
    parser.add_argument("atlases", nargs="+", metavar="[NAME=]ATLAS", help="folders or URLs of atlases")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; only this machine by default")
    parser.add_argument("--port", type=at_least(0), default=PORT, help=f"{PORT} by default; 0 takes a free one")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="bearer tokens that are accepted, one a line")
    parser.add_argument("--insecure", action="store_true", help="let everybody ask who reaches --host, without a token")
    parser.add_argument("--ray", action="store_true", help="run on Ray Serve: replicas by load, questions in batches")
    parser.add_argument("--address", help="with --ray: of a running cluster, or auto; by default one is started here")
    parser.add_argument(
        "--replicas", type=span, default=(1, 4), metavar="N | MIN:MAX", help="with --ray: by load; 1:4 by default"
    )
    _add_limits(parser)
    parser.add_argument(
        "--storage",
        action="append",
        type=pair("KEY=VALUE"),
        default=[],
        metavar="KEY=VALUE",
        help="option of the storage of URLs",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    standard = Limits()
    for flag, unit, help in (
        ("--limit-cells", "N", f"cells that a question may decode, {standard.cells:,} by default"),
        ("--limit-genes", "N", f"genes that a question may name, {standard.genes:,} by default"),
        ("--limit-values", "N", f"numbers of an answer, {standard.values:,} by default"),
        ("--limit-seconds", "S", f"time of a question, {standard.question_s:g} by default"),
        ("--limit-questions", "N", f"questions of a client at a time, {standard.questions_per_client} by default"),
    ):
        parser.add_argument(flag, type=at_least(1), metavar=unit, help=help)
    for flag, help in (
        ("--limit-body", "size of a question, 1MiB by default"),
        ("--limit-upload", "size of a file with cells to annotate, 1GiB by default"),
    ):
        parser.add_argument(flag, type=size_bytes, metavar="SIZE", help=help)


def serve(options: argparse.Namespace) -> int:
    """Open the atlases and answer until the process is asked to end.

    Raises
    ------
    ValueError
        If the service would be open to others without a token, or an atlas cannot be opened.
    ImportError
        If the packages of the service are not installed.
    """
    service = service_of(options)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"'dist-scvi serve' needs {error.name}: pip install 'dist-scvi[serve]'") from error
    if options.ray:
        from dist_scvi.launch.serve.ray_serve import serve_with_ray

        tell = partial(announce, service, options.host)
        place = {"address": options.address, "replicas": options.replicas}
        serve_with_ray(service, options.host, options.port or PORT, announce=tell, **place)
        return 0
    from dist_scvi.launch.serve.uvicorn_server import open_socket, server_of

    with open_socket(options.host, options.port) as sock:
        server = server_of(service)
        announce(service, options.host, sock.getsockname()[1])
        server.run(sockets=[sock])
    return 0


def service_of(options: argparse.Namespace) -> Service:
    """Return the service that the options describe.

    Raises
    ------
    ValueError
        If it would be open to others without a token.
    """
    tokens = read_tokens(options.token_file) if options.token_file is not None else ()
    if not is_loopback(options.host) and not tokens and not options.insecure:
        raise ValueError(
            f"--host {options.host} can be reached by others: give --token-file FILE, or --insecure to let all ask"
        )
    given = {
        "cells": options.limit_cells,
        "genes": options.limit_genes,
        "values": options.limit_values,
        "question_s": options.limit_seconds,
        "questions_per_client": options.limit_questions,
        "body_bytes": options.limit_body,
        "upload_bytes": options.limit_upload,
    }
    return Service(
        atlases=name_atlases(options.atlases),
        storage_options=dict(options.storage),
        token_hashes=tokens,
        hosts=loopback_hosts(options.host),
        limits=Limits(**{key: value for key, value in given.items() if value is not None}),
    )


def announce(service: Service, host: str, port: int) -> None:
    """Print where the service is."""
    shown = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
    names = ", ".join(service.atlases)
    token = "; requests need a token" if service.token_hashes else ""
    print_text(f"{names} at http://{shown}:{port}/ (API: /openapi.json){token}; stop with Ctrl-C")
