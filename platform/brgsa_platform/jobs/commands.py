"""A verb with its arguments that is to run elsewhere: checked here, before anything is sent."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brgsa.errors import UserError, nearest

# What has its sense only on the machine of its user.
LOCAL_VERBS = ("submit", "jobs", "ui")
POSITIONAL = ""
# A job's folder is thrown away with it, so what these hold has to lie elsewhere.
PATH_OPTIONS = ("data", "store", "out", "checkpoint", "run")

Verbs = Mapping[str, Any]
"""The verbs of the command line, by name, as Click has them."""


@dataclass(frozen=True)
class Command:
    """`brgsa VERB ARGUMENT…`, its values as the command line understands them."""

    verb: str
    arguments: tuple[str, ...]
    values: dict[str, Any]

    @property
    def words(self) -> list[str]:
        return [self.verb, *self.arguments]


def new_name(verb: str) -> str:
    """A name for a job that no other job has: a DNS label of at most 47 characters."""
    return f"brgsa-{verb}-{secrets.token_hex(3)}"


def check_verb(words: Sequence[str], verbs: Verbs) -> str:
    """The verb that stands first.

    Raises:
        UserError: nothing, no verb, or one that makes no sense in a job.
    """
    if not words:
        raise UserError("What is to run stands behind --, as in: brgsa submit --ray ADDRESS -- train --data … --out …")
    verb, known = words[0], list(verbs)
    if verb not in known:
        raise UserError(f"brgsa has no verb {verb!r}{nearest(verb, known)}.")
    if verb in LOCAL_VERBS:
        raise UserError(f"`brgsa {verb}` cannot run in a job: it has its sense on this machine.")
    return verb


def parse(words: Sequence[str], verbs: Verbs) -> Command:
    """Check a verb and its arguments as `brgsa` itself would.

    Raises:
        UserError: see `check_verb`; or arguments that the verb does not take, or not without others.
    """
    verb, arguments = check_verb(words, verbs), words[1:]
    try:
        context = verbs[verb].make_context(verb, list(arguments))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        said = " ".join(error.format_message().split())
        raise UserError(f"brgsa {verb}: {said.rstrip('.')}.") from error
    return Command(verb, tuple(arguments), dict(context.params))


def check_paths(command: Command) -> None:
    """Refuse stores and output folders by relative paths: they would be looked for, and lost, in the job's own folder.

    Raises:
        UserError: with the option, and what to give.
    """
    for name in PATH_OPTIONS:
        if name not in command.values:
            continue
        value = command.values[name]
        if name == "out" and value is None and command.verb == "evaluate":  # beside the checkpoint
            continue
        if name == "data" and value is None and command.verb == "doctor":  # examined without a store
            continue
        if value is None and command.values.get("resume") is not None:  # the search knows its data
            continue
        if value is None or not ("://" in str(value) or str(value).startswith("/")):
            raise UserError(
                f"brgsa {command.verb}: --{name} is {value or 'not given'}, which in a job lies in a folder that goes with it: "
                "give an absolute path that every node has, or an s3:// URL."
            )


def merge_arguments(base: Sequence[str], given: Sequence[str], verbs: Verbs) -> list[str]:
    """The arguments `given` laid over those of a manifest, for the same verb.

    An option that is given takes the place of all of the base's options of this name, so that `--space cmki` is not added
    to another space; a single positional argument (a checkpoint) is replaced, a list of settings is added to, where the
    last one counts.
    """
    verb = base[0]
    params = verbs[verb].params
    units, new = _grouped(params, base[1:]), _grouped(params, given[1:])
    replaced = {name for name, _ in new}
    if any(p.param_type_name == "argument" and p.nargs == -1 for p in params):
        replaced.discard(POSITIONAL)
    return [verb, *(word for name, words in units if name not in replaced for word in words), *given[1:]]


def _grouped(params: Sequence[Any], arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Arguments as (option's name, its words), a positional one under the name `POSITIONAL`."""
    by_flag = {flag: p for p in params for flag in (*p.opts, *p.secondary_opts)}
    units: list[tuple[str, list[str]]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        flag, equals, _ = word.partition("=")
        if not word.startswith("--") or flag not in by_flag:
            units.append((POSITIONAL, [word]))
            continue
        option = by_flag[flag]
        count = 0 if equals or option.is_flag else option.nargs
        units.append((option.name, [word, *rest[:count]]))
        del rest[:count]
    return units
