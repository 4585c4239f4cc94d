"""`python -m chat`: the commands. `serve` runs the chat; the others are in `chat/commands/`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from chat import __version__
from chat.commands import closed_quietly, harmless, say_where_to_listen
from chat.errors import ChatError, SettingsError, Unavailable
from chat.log import epochs
from chat.log.faults import describe
from chat.ops import logging
from chat.ops.advice import oddities
from chat.ops.secret import with_secret_key
from chat.settings import Settings

# The modules of `chat.commands`, and the commands that each adds, in the order of `--help`. Only
# what is asked for is imported, `serve` included: a command starts in half the time then.
SUBJECTS = {
    "check": ("check",),
    "healthcheck": ("healthcheck",),
    "people": ("user", "token"),
    "records": ("rooms", "redact"),
    "talk": ("tail", "say"),
    "archive": ("export", "import"),
    "restore": ("new-epoch",),
    "bench": ("bench",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 2 for a wrong setting or argument, else 1."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser(given[0] if given else "").parse_args(given)
    try:
        code = int(options.command(options))
        sys.stdout.flush()
        return code
    except SettingsError as error:
        print(harmless(str(error)), file=sys.stderr)
        return 2
    except ChatError as error:
        print(harmless(_told(error)), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # as shells do: 128, and the number of the signal
    except BrokenPipeError:
        closed_quietly()  # whoever read it has left
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{where}{error.strerror or error}.", file=sys.stderr)
        closed_quietly()
        return 1


def _told(error: ChatError) -> str:
    """Return what an operator is told; what clients are told of a database helps nobody here."""
    if str(error) == str(Unavailable()) and error.__cause__ is not None:
        return f"The database did not take it: {describe(error.__cause__)}."
    return str(error)


def _parser(asked: str = "") -> argparse.ArgumentParser:
    """Return the parser of this one command; of all where there is none of that name."""
    parser = argparse.ArgumentParser(prog="tertulia", description="A room chat that loses nothing.")
    parser.add_argument("--version", action="version", version=f"tertulia {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("serve", help="run the chat")
    say_where_to_listen(command)
    command.set_defaults(command=_serve)
    chosen = [subject for subject, names in SUBJECTS.items() if asked in names]
    for subject in chosen or ([] if asked == "serve" else SUBJECTS):
        import_module(f"chat.commands.{subject}").register(commands)
    return parser


def _serve(options: argparse.Namespace) -> int:
    from chat.app import create_app
    from chat.ops.server import load_config, serve

    settings = Settings.load(os.environ)
    logging.set_up(settings.log_format, settings.log_level)
    for name in Settings.unknown(os.environ):
        logging.logger.warning("The setting %s is unknown and has no effect", name)
    config = load_config(options.config, bind=options.bind, workers=options.workers)
    settings.check_workers(config.workers)
    for sentence in oddities(settings, config.bind):
        logging.logger.warning("%s", sentence)
    if settings.relay_url == "memory://" and epochs.holds_open(settings.sqlite_file):
        logging.logger.warning(
            "Somebody has %s open already: two servers on it need a redis:// address in"
            " CHAT_RELAY_URL, or each hears of the other's messages half a second late",
            settings.sqlite_file,
        )
    settings = with_secret_key(settings)
    return serve(
        partial(create_app, settings),
        config,
        announce=lambda url: print(f"Tertulia is open at {url} (Ctrl-C ends it)", flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
