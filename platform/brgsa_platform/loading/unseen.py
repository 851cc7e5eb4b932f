"""A store whose texts say nothing of some abnormalities: what a model knows of these, it did not read."""

from __future__ import annotations

from brgsa.errors import UserError, nearest
from brgsa_platform.config import DataSection
from brgsa_platform.store.store import Store


def training_view(store: Store, data: DataSection) -> Store:
    """The store as a training reads it: without the sentences that name an abnormality of `data.unseen`.

    The rule reader finds the names, also where the sentence denies them. A name that it does not know stays.

    Raises:
        UserError: unknown-abnormality, where it knows none of that name.
    """
    if not data.unseen:
        return store
    from brgsa.summaries.vocabulary import vocabulary

    known = [entry.name for entry in vocabulary().entries]
    for name in data.unseen:
        if name not in known:
            raise UserError(
                f"data.unseen names {name!r}{nearest(name, known)}, which the reader of reports does not know: name one of "
                f"{', '.join(known)}.",
                code="unknown-abnormality",
                field="data.unseen",
                value=name,
            )
    return _SilentStore(store, data.unseen)


class _SilentStore(Store):
    """A store, read-only, whose texts lack the sentences that name some abnormalities."""

    def __init__(self, store: Store, unseen: tuple[str, ...]) -> None:
        super().__init__(store.folder, store.meta)
        self._unseen = frozenset(unseen)
        self._silent: dict[str, dict[str, str]] = {}

    def texts(self, style: str) -> dict[str, str]:
        """volume_id → what is left of its text in a style; see `Store.texts`."""
        if style not in self._silent:
            self._silent[style] = self._without(super().texts(style))
        return self._silent[style]

    def _without(self, texts: dict[str, str]) -> dict[str, str]:
        from brgsa.summaries.vocabulary import vocabulary
        from brgsa.text import split_sentences

        sentences = {text: split_sentences(text) for text in set(texts.values())}
        distinct = {sentence for of_text in sentences.values() for sentence in of_text}
        silent = {sentence for sentence in distinct if not vocabulary().names(sentence) & self._unseen}
        left = {text: " ".join(one for one in of_text if one in silent) for text, of_text in sentences.items()}
        return {volume: left[text] for volume, text in texts.items()}
