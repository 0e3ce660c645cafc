"""Units behind an index: a label for what was chosen stands for one label for every number of the index.

What is said of the chosen one is said of each: if the chosen unit of one tensor is tied to that of another, chosen by the
same index, so are their units for every number. If it is tied to anything else, all numbers share one unit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cipm.rules import LabelBook

Pairs = np.ndarray
"""An int64 array [2, n] of pairs."""


@dataclass(frozen=True, eq=False)
class Routes:
    """`labels` [n] of what is chosen, by the index number `index` [n]; `options[start[i]:start[i + 1]]` are what label i can
    be, for every number of the index in order. `count` labels there are in all.
    """

    labels: np.ndarray
    index: np.ndarray
    start: np.ndarray
    options: np.ndarray
    count: int

    @classmethod
    def of(cls, book: LabelBook) -> Routes:
        """Return the routes of a walked graph."""
        none = np.zeros(0, np.int64)
        numbers: dict[str, int] = {}
        for index, _ in book.routes:
            numbers.setdefault(index, len(numbers))
        made = list(book.routes.values())
        sizes = np.concatenate([none, *(np.full(len(labels), options.shape[1]) for labels, options in made)])
        return cls(np.concatenate([none, *(labels for labels, _ in made)]),
                   np.concatenate([none, *(np.full(len(labels), numbers[index])
                                           for (index, _), (labels, _) in book.routes.items())]),
                   np.concatenate([[0], np.cumsum(sizes)]), np.concatenate([none, *(options.ravel() for _, options in made)]),
                   book.count)

    def pairs(self) -> Pairs:
        """Return every (label of what is chosen, label that it can be)."""
        return np.stack([np.repeat(self.labels, np.diff(self.start)), self.options])

    def spread(self, book: LabelBook) -> LabelBook:
        """Return the book with what is said of a chosen label said of all that it can be.

        What moves as a chosen label does would have to move as several do: those are tied.
        """
        number = np.full(self.count, -1)
        number[self.labels] = np.arange(self.labels.size)
        maps, ties = [*book.maps], [*book.ties]
        for child, parent, soft in book.maps:
            chosen = number[parent] >= 0
            ties.append(self._with(number, parent[chosen])[::-1])
            chosen = (number[child] >= 0) & ~chosen
            if chosen.any():
                which, options = self._options(number[child[chosen]])
                maps.append((options, parent[chosen][which], soft))

        def wide(labels: np.ndarray) -> np.ndarray:
            return np.concatenate([labels, self._options(number[labels][number[labels] >= 0])[1]])

        roles = [*book.roles]
        for labels, places in book.roles:
            which, options = self._options(number[labels][number[labels] >= 0])
            roles.append((options, places[number[labels] >= 0][which]))
        return replace(book, maps=maps, ties=ties, roles=roles, hard=[wide(labels) for labels in book.hard],
                       colours=[wide(labels) for labels in book.colours],
                       held=[(wide(labels), why) for labels, why in book.held],
                       pins=[(wide(labels), why) for labels, why in book.pins])

    def ties(self, class_of: np.ndarray) -> Pairs:
        """Return the pairs of labels that are one unit because of what their chosen labels are tied to, and are not yet."""
        if not self.labels.size:
            return np.zeros((2, 0), np.int64)
        own = class_of[self.labels]
        size = int(class_of.max()) + 1
        lowest, highest = np.full(size, self.index.size), np.full(size, -1)
        np.minimum.at(lowest, own, self.index)
        np.maximum.at(highest, own, self.index)
        mixed = (lowest != highest) | (np.bincount(class_of, minlength=size) != np.bincount(own, minlength=size))
        sizes = np.diff(self.start)
        leader = np.zeros(size, np.int64)
        leader[own[::-1]] = np.arange(self.labels.size)[::-1]
        mixed[own[sizes != sizes[leader[own]]]] = True
        all_one = np.flatnonzero(mixed[own])
        which, options = self._options(all_one)
        found = [np.stack([self.labels[all_one][which], options])]
        apart = np.flatnonzero(~mixed[own])
        found.append(np.stack([self._options(leader[own[apart]])[1], self._options(apart)[1]]))
        pairs = np.concatenate(found, axis=1)
        return pairs[:, class_of[pairs[0]] != class_of[pairs[1]]]

    def _with(self, number: np.ndarray, labels: np.ndarray) -> Pairs:
        """Return (label that it can be, label) for those of these labels that are chosen ones."""
        which, options = self._options(number[labels])
        return np.stack([options, labels[which]])

    def _options(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (which of the labels, what it can be) for all of these labels, by number."""
        sizes = (self.start[1:] - self.start[:-1])[numbers]
        which = np.repeat(np.arange(numbers.size), sizes)
        within = np.arange(which.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return which, self.options[self.start[:-1][numbers][which] + within]
