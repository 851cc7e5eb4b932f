"""A verb with its arguments that is to run on a cluster: checked here, before anything is sent."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brgsa.errors import UserError, nearest
from brgsa_platform.runtime.addresses import has_credentials

LOCAL_VERBS = ("submit", "jobs", "ui")  # these make sense only on the user's own machine
POSITIONAL = ""
# Options that hold data or results. A job's own folder is deleted after it, so these must lie elsewhere.
PATH_OPTIONS = ("data", "store", "out", "checkpoint", "run")
# Files and folders that a verb reads or keeps where they are given.
OPTIONAL_PATHS = {
    "evaluate": (
        "scores", "labels", "validation_scores", "validation_labels", "training_labels", "metadata", "compare", "embeddings",
    ),
    "summarize": ("cache",),  # answers that are paid for
}  # fmt: skip

Verbs = Mapping[str, Any]
"""The verbs of the command line, by name, as Click has them."""


@dataclass(frozen=True)
class Command:
    """`brgsa VERB ARGUMENT…`, with its values as the command line reads them."""

    verb: str
    arguments: tuple[str, ...]
    values: dict[str, Any]

    @property
    def words(self) -> list[str]:
        """The verb and its arguments."""
        return [self.verb, *self.arguments]


def new_name(verb: str) -> str:
    """A name for a job that no other job has: a DNS label of at most 47 characters."""
    return f"brgsa-{verb}-{secrets.token_hex(3)}"


def check_verb(words: Sequence[str], verbs: Verbs) -> str:
    """The verb, which is the first word.

    Raises:
        UserError: there is no word ("no-verb"), no such verb ("unknown-verb"), or it makes no sense in a job ("local-verb").
    """
    if not words:
        raise UserError(
            "No verb is given: name it behind --, as in: brgsa submit --ray ADDRESS -- train --data … --out …",
            code="no-verb",
        )
    verb, known = words[0], list(verbs)
    if verb not in known:
        raise UserError(f"brgsa has no verb {verb!r}{nearest(verb, known)}.", code="unknown-verb", value=verb)
    if verb in LOCAL_VERBS:
        raise UserError(
            f"`brgsa {verb}` cannot run in a job: it makes sense on this machine only.", code="local-verb", value=verb
        )
    return verb


def parse(words: Sequence[str], verbs: Verbs) -> Command:
    """Check a verb and its arguments as `brgsa` itself would.

    Raises:
        UserError: see `check_verb`; or the verb does not take these arguments, or needs others ("bad-arguments").
    """
    verb, arguments = check_verb(words, verbs), words[1:]
    try:
        context = verbs[verb].make_context(verb, list(arguments))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        reason = " ".join(error.format_message().split()).rstrip(".")
        raise UserError(f"brgsa {verb}: {reason}.", code="bad-arguments", field=verb, value=reason) from error
    return Command(verb, tuple(arguments), dict(context.params))


def check_paths(command: Command) -> None:
    """Refuse data and output folders by relative paths: the job would look for them, and lose them, in its own folder.

    Raises:
        UserError: "relative-path", with the option.
    """
    optional = OPTIONAL_PATHS.get(command.verb, ())
    for name in (*PATH_OPTIONS, *(name for name in optional if command.values.get(name) is not None)):
        if name not in command.values:
            continue
        value = command.values[name]
        if value is None and command.verb == "evaluate" and command.values.get("scores") is not None and name != "out":
            continue  # scores take the place of a checkpoint and its data
        if name == "out" and value is None and command.verb == "evaluate":  # its default is beside the checkpoint
            continue
        if name == "data" and value is None and command.verb == "doctor":  # it works without a store
            continue
        if value is None and command.values.get("resume") is not None:  # the search knows its data
            continue
        if value is None or not ("://" in str(value) or str(value).startswith("/")):
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"brgsa {command.verb}: {option} is {value or 'not given'}, which in a job lies in a folder that is deleted "
                "with it: give an absolute path that every node has, or an s3:// URL.",
                code="relative-path",
                field=option,
                value=None if value is None else str(value),
            )


def check_no_credentials(command: Command) -> None:
    """Refuse an argument that holds an address with a password, such as the URL of a database.

    Raises:
        UserError: "password-in-argument".
    """
    if any(has_credentials(word) for word in command.arguments):
        raise UserError(
            f"brgsa {command.verb}: an argument holds an address with a password, which process lists and logs would show: "
            "leave the password out and give it to the cluster's nodes (docs/submit.md).",
            code="password-in-argument",
        )


def merge_arguments(base: Sequence[str], given: Sequence[str], verbs: Verbs) -> list[str]:
    """The arguments of a manifest, `base`, with those of the user, `given`, laid over them; both begin with the same verb.

    A given option replaces all options of its name in `base`, so that `--space cmki` is not added to another space. A single
    positional argument (a checkpoint) is replaced. To a list of settings the given ones are added, and the last one counts.
    """
    verb = base[0]
    params = verbs[verb].params
    base_groups, given_groups = _grouped(params, base[1:]), _grouped(params, given[1:])
    replaced = {name for name, _ in given_groups}
    if any(p.param_type_name == "argument" and p.nargs == -1 for p in params):
        replaced.discard(POSITIONAL)
    return [verb, *(word for name, words in base_groups if name not in replaced for word in words), *given[1:]]


def _grouped(params: Sequence[Any], arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Arguments as (an option's name, its words); a positional argument has the name `POSITIONAL`."""
    by_flag = {flag: p for p in params for flag in (*p.opts, *p.secondary_opts)}
    groups: list[tuple[str, list[str]]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        flag, equals, _ = word.partition("=")
        if not word.startswith("--") or flag not in by_flag:
            groups.append((POSITIONAL, [word]))
            continue
        option = by_flag[flag]
        count = 0 if equals or option.is_flag else option.nargs
        groups.append((option.name, [word, *rest[:count]]))
        del rest[:count]
    return groups
