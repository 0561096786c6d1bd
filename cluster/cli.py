"""The command line: ``lookalike VERB ...``, the same program as ``python -m cluster VERB ...``.

Each verb is a config dataclass and a function ``job(config, context) -> report``. Flags, types,
defaults and help come from the dataclasses through tyro. Nothing heavy is imported before the verb
is known.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import json
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cluster.verbs import VERBS

if TYPE_CHECKING:
    from cluster.context import Context
    from cluster.where import Where
    from index.folder import Folder

__all__ = ["VERBS", "Options", "main"]

DEFAULT_WORKSPACE = "./workspace"
ADDRESS = re.compile(r"--address(=|$)")
START = re.compile(r"--start(=|$)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options that every verb takes."""

    workspace: str | None = None
    """Folder or URI where everything is kept; the profile's storage, else ./workspace."""
    json: bool = False
    """Print the result as one JSON object on stdout; all else goes to stderr."""
    debug: bool = False
    """Show tracebacks and debug messages."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    try:
        status = _status_of(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to come
        return 128 + signal.SIGPIPE
    return status


def _status_of(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    name, rest = given[0], given[1:]
    if name not in VERBS:
        hint = " Options come after the verb." if name.startswith("-") else ""
        sys.stderr.write(f"error: {name!r} is not a verb. Verbs: {', '.join(VERBS)}.{hint}\n")
        return 2
    # Ray reads these when it is imported, which may happen anywhere below.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    debug = "--debug" in rest
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        return _run(name, rest)
    except KeyboardInterrupt as stop:
        usual = "stopped. What was finished is kept; run the same command to go on."
        sys.stderr.write(f"{str(stop) or usual}\n")
        return 130
    except (ValueError, OSError) as error:
        if debug or (isinstance(error, BrokenPipeError) and _nobody_reads()):
            raise
        sys.stderr.write(f"error: {_sentences(error)}\n")
        return 1
    except Exception as error:
        if debug:
            raise
        from cluster.engine import lost

        unexpected = f"{type(error).__name__}: {error}\nThis is not expected."
        said = lost(error) or unexpected
        sys.stderr.write(f"error: {said} Run again with --debug for the traceback.\n")
        return 1


def _nobody_reads() -> bool:
    """Whether what read stdout, such as ``head``, has ended."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(found & (select.POLLERR | select.POLLHUP) for _, found in poll.poll(0))


def _sentences(error: Exception) -> str:
    """What the error says, and then the notes that `_advised` put on it."""
    notes = getattr(error, "__notes__", [])
    return " ".join([str(error).rstrip(".") + ".", *notes]) if notes else str(error)


@contextlib.contextmanager
def _advised(root: Folder) -> Iterator[None]:
    """Add what to do to an error of the disk or store, which says only what happened."""
    from index.uri import asking

    try:
        with asking("the pictures" if root.is_local else str(root)):
            yield
    except (ValueError, OSError) as error:
        number = getattr(error, "errno", None)
        inside = re.compile(rf"{re.escape(root.path)}(?![^/'\"\s])")
        in_workspace = "/" not in str(error) or inside.search(str(error)) is not None
        if number in (errno.ENOSPC, errno.EDQUOT):
            other = ", or choose another --workspace," if in_workspace else ""
            error.add_note(
                f"Nothing that was finished is lost: free some space there{other} and run the same "
                "command again."
            )
        elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
            other = "choose another --workspace" if in_workspace else "give another path"
            error.add_note(f"This has to be allowed: correct the permissions there, or {other}.")
        raise


def overview() -> str:
    """What ``lookalike --help`` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return (
        "usage: lookalike VERB [options]\n\n"
        "Turn a pile of unlabelled pictures into a search engine and a classifier.\n\n"
        f"{verbs}\n\n"
        "lookalike VERB --help lists a verb's options. Start with: lookalike demo\n"
    )


def _run(name: str, arguments: list[str]) -> int:
    from rich.console import Console

    from cluster.context import Context
    from cluster.show import show
    from cluster.workspace import Workspace

    verb = VERBS[name]
    if not verb.uses_ray and (given := [word for word in arguments if ADDRESS.match(word)]):
        others = ", ".join(name for name, verb in VERBS.items() if verb.uses_ray)
        return _usage(
            f"{name} {given[0]}: this verb uses no Ray, it runs here. Those that may join a "
            f"cluster are {others}. Leave it out."
        )
    module = importlib.import_module(verb.module)
    config_type = getattr(module, verb.config)
    if name == "pretrain":
        config_type, arguments = _recipe_config(config_type, arguments)
    try:
        config, where, options = _parse(name, config_type, arguments)
        profile = where.profile_settings()
        workspace = Workspace.at(options.workspace or profile.storage or DEFAULT_WORKSPACE)
    except ValueError as error:  # a value that the config itself refuses
        return _usage(str(error))
    context = Context(workspace, where, Console(stderr=True))
    job: Callable[[Any, Context], dict[str, Any]] = getattr(module, verb.job)
    spoken = sys.stderr if options.json else sys.stdout  # Ray prints of workers that died
    with _advised(workspace.root), contextlib.redirect_stdout(spoken):
        report = job(config, context)
    if options.json:
        sys.stdout.write(json.dumps(report, allow_nan=False) + "\n")
    else:
        show(name, report, Console())
    if name == "demo" and config.ui:
        sys.stdout.flush()
        _open_ui(config.port, report["index"], context)
    return 0 if report.get("ok", True) else 1


def _open_ui(port: int, index: str, context: Context) -> None:
    """The application on what demo built: same workspace, same profile, same log."""
    ui = importlib.import_module(VERBS["ui"].module)
    ui.serve(ui.UiConfig(port=port, index=index), context)


def _parse(
    name: str, config_type: type, arguments: list[str], *, others: bool = False
) -> tuple[Any, Where, Options]:
    """Read the arguments; with ``others``, arguments that belong to nothing here are left alone."""
    import tyro

    from cluster.help_text import flowing_help
    from cluster.where import StorageConfig, Where

    where_type = Where if VERBS[name].uses_ray else StorageConfig

    default = where_type()

    def command(
        config: Any, where: Any = default, options: Options = Options()
    ) -> tuple[Any, Where, Options]:
        return config, where if isinstance(where, Where) else where.where(), options

    # tyro reads annotations as values, which `from __future__ import annotations` made into text.
    command.__annotations__ = {
        "config": Annotated[config_type, tyro.conf.arg(name="")],
        "where": Annotated[where_type, tyro.conf.arg(name="")],
        "options": Annotated[Options, tyro.conf.arg(name="")],
        "return": tuple[Any, Where, Options],
    }
    read = functools.partial(
        tyro.cli,
        command,
        prog=f"lookalike {name}" + (" RECIPE" if name == "pretrain" else ""),
        description=(config_type.__doc__ or "").strip(),
        args=arguments,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
        registry=flowing_help(),
    )
    parsed: Any = read(return_unknown_args=True)[0] if others else read()
    config, place, options = parsed
    return config, place, options


def _recipe_config(config_type: type, arguments: list[str]) -> tuple[type, list[str]]:
    """The pretrain config with a recipe's values as defaults; the recipe is the first argument."""
    import dataclasses
    import difflib

    import tyro

    from encoders.pretrain_config import PretrainConfig
    from encoders.recipes import RECIPES
    from encoders.recipes_auto import AUTO_RECIPES

    known = [*RECIPES, *AUTO_RECIPES]
    recipe, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if recipe in ("", "-h", "--help"):
        recipe, rest = known[0], ["--help"]
    if recipe not in known:
        close = difflib.get_close_matches(recipe, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise SystemExit(
            _usage(f"pretrain: {recipe!r} is not a recipe.{hint} Recipes: {', '.join(known)}.")
        )
    asks = any(word in ("-h", "--help") for word in rest)
    if recipe in AUTO_RECIPES and not asks:
        training, source = _automatic(recipe, rest), recipe
    else:
        source = recipe if recipe in RECIPES else f"{AUTO_RECIPES[recipe][0]}-small"
        training = RECIPES[source]()
    if not asks and any(START.match(word) for word in rest):
        training = _around_start(training, rest)
    described = dataclasses.make_dataclass(
        config_type.__name__,
        [
            (
                "training",
                Annotated[PretrainConfig, tyro.conf.arg(name="")],
                dataclasses.field(default=training),
            )
        ],
        bases=(config_type,),
        frozen=True,
        kw_only=True,
    )
    described.__doc__ = (
        f"{config_type.__doc__}\n\n"
        f"Recipes: {', '.join(known)}. Defaults below are those of {source}."
        " Those with auto choose from the corpus what suits two CPU cores or, with gpu, one GPU."
    )
    return described, rest


@dataclass(frozen=True, kw_only=True, slots=True)
class _Names:
    """What has to be known before settings can be chosen."""

    corpus: str
    name: str
    start: str | None = None


def _automatic(recipe: str, arguments: list[str]) -> Any:
    """Settings chosen from the corpus that the arguments name, after saying why."""
    from cluster.auto_recipe import choose

    names, context = _before(arguments)
    with _advised(context.workspace.root):
        automatic = choose(recipe, names.corpus, names.name, context.workspace)
    for reason in (*automatic.reasons, "Options that are given take the place of these choices."):
        context.say(reason)
    return automatic.config


def _before(arguments: list[str]) -> tuple[_Names, Context]:
    """Names and where to work, before all of pretrain's settings are known."""
    from rich.console import Console

    from cluster.context import Context
    from cluster.workspace import Workspace

    names, where, options = _parse("pretrain", _Names, arguments, others=True)
    storage = options.workspace or where.profile_settings().storage or DEFAULT_WORKSPACE
    return names, Context(Workspace.at(storage), where, Console(stderr=True))


def _around_start(recipe: Any, arguments: list[str]) -> Any:
    """The recipe with the network of the encoder that ``--start`` names, after saying so."""
    from cluster.starting import recipe_around

    names, context = _before(arguments)
    with _advised(context.workspace.root):
        config, reason = recipe_around(recipe, context.workspace, names.name, names.start)
    context.say(reason)
    return config


def _usage(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 2
