"""The `penstock` command line: arguments, exit codes, and one way to tell an error.

Every command takes `--json` and then prints exactly one JSON document on standard output. What a command does is in
`pipelines/commands/`; importing this module imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from components.errors import PenstockError, SpecError, as_disk_full, name_error

EPILOG = (
    "exit codes: 0 done, 1 a stage failed, 2 spec, arguments or data are wrong, 3 the gate refused, 130 interrupted"
)


class Parser(argparse.ArgumentParser):
    """Tells wrong arguments like every other error."""

    def error(self, message: str) -> NoReturn:
        raise SpecError(f"{self.prog}: {message}; see `{self.prog} --help`.")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="penstock", description="From a raw file to a served, compressed model.", epilog=EPILOG)
    parser.add_argument("--version", action="store_true", help="print the release and the digest of its source")
    shared = Parser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def add(name: str, text: str) -> Parser:
        return commands.add_parser(name, help=text, description=text, parents=[shared])

    init = add("init", "write a starter spec guessed from a data file")
    init.add_argument("source", help="a .csv, .jsonl or .parquet file, or a folder of images by class")
    init.add_argument("--output", help="the spec to write (default: NAME.yaml in the working directory)")
    check = add("check", "tell every error of a spec at once")
    _takes_spec(check)
    add("schema", "print the JSON Schema of a spec, for editors")
    add("doctor", "tell what this machine has and lacks")
    _add_run(add("run", "go from data to an endpoint"))
    _add_plan(add("plan", "tell memory, time and cost before anything is launched"))
    _add_serve(add("serve", "serve one model"))
    _add_predict(add("predict", "ask an endpoint, or a model over files"))
    _add_tune(add("tune", "read, extend and report sweeps"), shared)
    add("runs", "list the runs under PENSTOCK_HOME")
    sync = add("sync", "send MLflow the metrics that wait for it, and how their runs ended")
    sync.add_argument("run", nargs="?", help="only this run")
    stop = add("stop", "end the endpoints and the Ray of this PENSTOCK_HOME, or one run")
    stop.add_argument("run", nargs="?", help="the run to end")
    return parser


def _takes_spec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", help="a spec file, or the name of a recipe")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a field, e.g. train.epochs=5"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    _takes_spec(parser)
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage")
    parser.add_argument("--fresh", action="store_true", help="start anew, whatever the cache holds")
    parser.add_argument("--resume", metavar="RUN", help="continue this run; refuse if anything changed")
    parser.add_argument("--accept-changes", action="store_true", help="with --resume: go on although it changed")
    parser.add_argument("--offline", action="store_true", help="keep tracking in a local spool; do not ask MLflow")
    parser.add_argument("--debug", action="store_true", help="run all stages in this process")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    _takes_spec(parser)
    parser.add_argument("--gpus", type=int, metavar="TOTAL", help="GPUs in all (default: this machine)")
    parser.add_argument("--nodes", type=int, default=1, metavar="M", help="machines they are in")
    parser.add_argument("--gpu", metavar="NAME", help="kind of GPU: A100, H100, H200, ...")
    parser.add_argument("--gpu-memory", metavar="SIZE", help="memory of each GPU, e.g. 80GiB")
    parser.add_argument("--host-memory", metavar="SIZE", help="memory of each machine, e.g. 2TiB")
    parser.add_argument("--nvme", metavar="SIZE", help="room on each machine's disk for what is offloaded, e.g. 4TiB")
    parser.add_argument("--peak-tflops", type=float, metavar="X", help="peak of each GPU in bf16")
    parser.add_argument("--mfu", type=float, metavar="SHARE", help="share of the peak that is reached (default: 0.4)")
    parser.add_argument("--price", type=float, metavar="P", help="price of a GPU per hour")
    parser.add_argument("--samples", type=int, metavar="N", help="samples of the training split")
    parser.add_argument("--probe", action="store_true", help="measure the speed here with a few training steps")


def _add_tune(parser: Parser, shared: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", parser_class=Parser, required=True)
    texts = {
        "show": "tell every trial of a run's sweep",
        "extend": "run more trials of a finished sweep, and what follows it",
        "report": "write a run's sweep as one HTML page",
    }
    for name, text in texts.items():
        action = actions.add_parser(name, help=text, description=text, parents=[shared])
        action.add_argument("run", help="a run, or the beginning of its id")
        if name == "extend":
            action.add_argument("--trials", type=int, required=True, metavar="N", help="how many more")
        if name == "report":
            action.add_argument("--output", metavar="FILE", help="default: sweep.html in the run's folder")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run, a registered model (NAME, NAME@ALIAS, NAME/VERSION) or a model folder")
    parser.add_argument("--name", help="name on the endpoint")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--replicas", type=int, default=1)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", help="an endpoint's URL, a run, a registered model or a model folder")
    parser.add_argument("files", nargs="*", help="files to predict (images; .txt for text)")
    parser.add_argument("--input", action="append", default=[], help="one input: JSON, or plain text")
    sampling = parser.add_argument_group("models that write texts (in brackets: text-generation, text2text-generation)")
    sampling.add_argument("--max-new-tokens", type=int, help="tokens to write at most (100, the longest target)")
    sampling.add_argument("--temperature", type=float, help="0 takes the likeliest token every time (1.0, 0)")
    sampling.add_argument("--num-beams", type=int, help="beam search over so many beginnings (text2text-generation: 1)")
    sampling.add_argument("--top-k", type=int, help="draw from the k likeliest tokens; 0 from all (0)")
    sampling.add_argument("--top-p", type=float, help="draw from the likeliest that reach this probability (1.0)")
    sampling.add_argument("--seed", type=int, help="equal seeds give equal texts (0)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    try:
        options = build_parser().parse_args(arguments)
        if options.version:
            return _print_version(as_json)
        if options.command is None:
            build_parser().print_help()
            return 2
        module = importlib.import_module(f"pipelines.commands.{options.command}")
        return module.command(options)
    except PenstockError as error:
        return tell_error(error.as_dict(), error.exit_code, as_json)
    except KeyboardInterrupt:
        return tell_error({"kind": "interrupted", "message": "Interrupted.", "field": None, "line": None, "hint": None},
                          130, as_json)  # fmt: skip
    except Exception as error:  # noqa: BLE001 (the last line of defence: told, and written to a file)
        return tell_error(_unexpected(error), 1, as_json)


def tell_error(error: dict[str, Any], exit_code: int, as_json: bool, status: str | None = None) -> int:
    """Prints an error: JSON on standard output, or its sentences on standard error."""
    if as_json:
        status = status or ("stopped" if exit_code == 130 else "failed")
        fields = ("kind", "message", "field", "line", "hint", "errors")
        shown = {name: error.get(name) for name in fields if name != "errors" or "errors" in error}
        print(json.dumps({"status": status, "error": shown}))
        return exit_code
    for item in error.get("errors") or [error]:
        where = f"line {item['line']}: " if item.get("line") else ""
        print(f"penstock: {where}{item['message']}", file=sys.stderr)
        if item.get("hint"):
            print(f"          {item['hint']}", file=sys.stderr)
    return exit_code


def _unexpected(error: Exception) -> dict[str, Any]:
    """A sentence for an error that nobody foresaw; its traceback goes to a file."""
    from pipelines.run_folder import penstock_home

    full = as_disk_full(error, place="of PENSTOCK_HOME")
    if full is not None:
        return full.as_dict()
    try:
        log = penstock_home() / "error.log"
        log.write_text(traceback.format_exc())
        told = f"the traceback is in {log}"
    except OSError as second:
        told = f"its traceback could not be written ({second})"
    message = f"{name_error(error)} ({told})."
    return {"kind": "internal", "message": message, "field": None, "line": None, "hint": None}


def _print_version(as_json: bool) -> int:
    from pipelines.identity import RELEASE, code_version

    print(json.dumps({"release": RELEASE, "code_version": code_version()}) if as_json else f"penstock {code_version()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
