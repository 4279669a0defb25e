"""Joins several data sets: each batch holds samples of all, in proportion to their sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from multicontrast._checks import three_beats

from .batches import PoseBatch
from .source import FrameSource


class JoinedSource:
    """Training batches of several sources, a :class:`~unihpe_ref.data.source.Source`.

    Args:
        sources: made with the same ``action_names``, ``subject_names`` and ``image_size``. Their samples are numbered
            one after the other, and so are their sequences.
    Raises: ValueError for no source, or for vocabularies that differ.
    """

    def __init__(self, sources: Sequence[FrameSource]) -> None:
        vocabularies = {(source.action_names, source.subject_names) for source in sources}
        if len(vocabularies) != 1:
            needed = "`JoinedSource` needs sources with the same numbers for actions and subjects"
            came = f"{len(vocabularies)} numberings in {len(sources)} sources"
            raise ValueError(three_beats(needed, came, "Give each the union as `action_names` and `subject_names`."))
        self.sources = tuple(sources)
        self.action_names, self.subject_names = sources[0].action_names, sources[0].subject_names
        self._sizes = torch.tensor([len(source) for source in sources])
        self._starts = torch.cat([torch.zeros(1, dtype=torch.int64), self._sizes.cumsum(0)])

    def __len__(self) -> int:
        """The number of samples of all sources."""
        return int(self._starts[-1])

    def sampler(self, batch_size: int, generator: torch.Generator, min_gap_seconds: float = 1.0) -> Iterator[Tensor]:
        """Endless batches. The share of each source is rounded up or down at random so that its mean is exact.

        Arguments and errors are those of the sources.
        """
        exact = batch_size * self._sizes.double() / len(self)
        for source, share in zip(self.sources, exact.ceil().long().tolist()):
            source.sampler(share, torch.Generator(), min_gap_seconds)  # raises at once
        return self._mixed(batch_size, exact, generator, min_gap_seconds)

    def _mixed(self, batch_size: int, exact: Tensor, generator: torch.Generator, gap: float) -> Iterator[Tensor]:
        while True:
            # Systematic sampling: one random offset rounds every share, and their sum stays the batch.
            edges = torch.cat([exact.new_zeros(1), exact.cumsum(0)]) + torch.rand(1, generator=generator).double()
            counts = edges.floor().long().diff().tolist()
            drawn = [
                next(source.sampler(count, generator, gap)) + start
                for source, count, start in zip(self.sources, counts, self._starts.tolist())
                if count
            ]
            yield torch.cat(drawn)

    def batch(self, indices: Tensor, generator: torch.Generator, rows: slice = slice(None)) -> PoseBatch:
        """A training batch; arguments as for the sources.

        Raises: ValueError unless the samples come source by source, as :meth:`sampler` gives them.
        """
        seeds = torch.randint(2**62, (len(self.sources),), generator=generator).tolist()
        first, last, _ = rows.indices(len(indices))
        parts = []
        for k, begun, local in self._by_source(indices):
            own = slice(max(first - begun, 0), max(min(last - begun, len(local)), 0))
            if own.start < own.stop:
                drawn = torch.Generator().manual_seed(seeds[k])  # one per source, as others' rows may not be built here
                parts.append(self._renumbered(k, self.sources[k].batch(local, drawn, own)))
        return _joined(parts)

    def _by_source(self, indices: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """For each source with samples: its number, where they begin in the batch, and their numbers in the source."""
        member = torch.bucketize(indices, self._starts[1:], right=True)
        if bool((member.diff() < 0).any()):
            needed = "`JoinedSource` needs the samples of a batch source by source"
            raise ValueError(three_beats(needed, "an order that goes back", "Sort the indices."))
        begun = 0
        for k, count in enumerate(torch.bincount(member, minlength=len(self.sources)).tolist()):
            if count:
                yield k, begun, indices[begun : begun + count] - self._starts[k]
            begun += count

    def _renumbered(self, k: int, batch: PoseBatch) -> PoseBatch:
        before = sum(source.num_sequences for source in self.sources[:k])
        return replace(batch, index=batch.index + self._starts[k], sequence=batch.sequence + before)


def _joined(parts: list[PoseBatch]) -> PoseBatch:
    held = {field.name: [getattr(part, field.name) for part in parts] for field in fields(PoseBatch)}
    joined: dict[str, Any] = {name: None if values[0] is None else torch.cat(values) for name, values in held.items()}
    return PoseBatch(**joined)
