"""Samples into rows of fixed size: which go together, and the batch that several rows make."""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from unimed.data.records import REGION, SEG
from unimed.data.samples import Sample
from unimed.errors import InputError
from unimed.model import views
from unimed.model.packing import Packing
from unimed.model.processor import IMAGE
from unimed.model.tokenizer import special_id
from unimed.train.batch import IGNORED, Batch, Collator, Piece
from unimed.train.draws import Draws

WINDOW = 1000
"""Samples among which those that fill a row together are looked for."""


def fullest(sizes: Sequence[int], capacity: int, begun: int = 0) -> list[list[int]]:
    """Rows of at most `capacity`, as numbers of the sizes in them: in each the largest left over, and what fills the rest best.

    The first row has the first `begun` sizes instead, which fit. Minimum bin slack with the largest item fixed (Fleszar and Hindi
    2002, Computers & Operations Research 29); we find the sums by dynamic programming instead of by search. No size may be larger
    than the capacity.
    """
    rows: list[list[int]] = []
    row, left = list(range(begun)), sorted(range(begun, len(sizes)), key=lambda number: -sizes[number])
    while row or left:
        if not row:
            row = [left.pop(0)]
        room = capacity - sum(sizes[number] for number in row)
        beside = {left[place] for place in _filling([sizes[number] for number in left], room)}
        rows.append(row + sorted(beside))
        row, left = [], [number for number in left if number not in beside]
    return rows


def _filling(sizes: Sequence[int], room: int) -> list[int]:
    """Places of sizes that add up to `room`, or to as little less as there is."""
    # Bit n of the k-th number says whether some of the first k sizes add up to n.
    sums = [1]
    for size in sizes:
        if sums[-1] >> room:
            break
        sums.append((sums[-1] | sums[-1] << size) & (1 << room + 1) - 1)
    total = sums[-1].bit_length() - 1
    places = []
    for place in reversed(range(len(sums) - 1)):
        if not sums[place] >> total & 1:
            places.append(place)
            total -= sizes[place]
    return places


class Rows(Dataset):
    """As many packed rows as a run takes, each a list of pieces; the samples come window by window, in the order drawn.

    A window's last row, which is what was left over, is filled up in the next window.
    """

    def __init__(self, draws: Draws, piece: Callable[[Sample], Piece], row_tokens: int, length: int, window: int = WINDOW):
        self.draws, self.piece, self.row_tokens, self.length, self.window = draws, piece, row_tokens, length, window
        # Where each window so far begins, in rows, and the next one; which draws it takes over; the window that was asked for last.
        self.starts, self.over = [0], [[]]
        self.packed: tuple[int, list[list[Piece]], list[int]] = (-1, [], [])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[Piece]:
        while self.starts[-1] <= index:
            rows, over = self._pack(len(self.starts) - 1)
            self.starts.append(self.starts[-1] + len(rows))
            self.over.append(over)
        window = bisect_right(self.starts, index) - 1
        return self._pack(window)[0][index - self.starts[window]]

    def _pack(self, window: int) -> tuple[list[list[Piece]], list[int]]:
        """The rows of a window in an order of their own, and the draws left over."""
        if self.packed[0] != window:
            numbers = [*self.over[window], *range(window * self.window, (window + 1) * self.window)]
            pieces = [self._fitting(self.draws[number]) for number in numbers]
            rows = fullest([len(piece.ids) for piece in pieces], self.row_tokens, len(self.over[window]))
            over = rows.pop() if len(rows) > 1 else []
            random.Random(f"{self.draws.seed}/rows/{window}").shuffle(rows)
            self.packed = (window, [[pieces[place] for place in sorted(row)] for row in rows], [numbers[place] for place in sorted(over)])
        return self.packed[1:]

    def _fitting(self, sample: Sample) -> Piece:
        piece = self.piece(sample)
        if len(piece.ids) > self.row_tokens:
            found = f"sample {piece.sample.sample_id} of {len(piece.ids)}"
            raise InputError(f"params.yaml: row_tokens must hold the longest sample, is {self.row_tokens}, found {found}")
        return piece


@dataclass(frozen=True)
class RowCollator:
    """Batches of packed rows: one sequence of all their samples, padded to `row_tokens` a row, and where everything lies in it."""

    collator: Collator
    row_tokens: int

    def __call__(self, rows: Sequence[Sequence[Piece]]) -> Batch:
        """One batch; images, regions and target masks are in the samples' order."""
        pieces = [piece for row in rows for piece in row]
        samples = [piece.sample for piece in pieces]
        seen = self.collator.seen(samples)
        words = self.collator.processor.tokenizer
        total = len(rows) * self.row_tokens
        ids = np.full(total, words.pad_token_id, dtype=np.int64)
        labels = np.full(total + 1, IGNORED, dtype=np.int64)  # one more, because every position is asked for the next one's
        ends = [0, *accumulate(len(piece.ids) for piece in pieces)]
        for piece, start, end in zip(pieces, ends[:-1], ends[1:], strict=True):
            # The first word of a sample is never labelled: it would be the answer to the sample before.
            ids[start:end], labels[start + 1 : end] = piece.ids, piece.labels[1:]
        bounds = [*ends, total] if total > ends[-1] else ends
        positions = torch.arange(total) - torch.repeat_interleave(torch.tensor(bounds[:-1]), torch.tensor(bounds).diff())
        batch = {"input_ids": torch.from_numpy(ids).unsqueeze(0), "position_ids": positions.unsqueeze(0)}
        sizes = seen["image_sizes"].tolist() if "image_sizes" in seen else []
        packing = self._packing(torch.from_numpy(ids), torch.from_numpy(labels), torch.tensor(bounds), samples, sizes)
        return batch | {"packing": packing} | seen

    def _packing(
        self,
        ids: Int[Tensor, " position"],
        labels: Int[Tensor, " one_more"],
        bounds: Int[Tensor, " bound"],
        samples: Sequence[Sample],
        sizes: Sequence[Sequence[int]],
    ) -> Packing:
        """Where everything lies. Raises InputError when a text has not the placeholders that its pixels and masks ask for."""
        image, region, seg = (special_id(self.collator.processor.tokenizer, name) for name in (IMAGE, REGION, SEG))
        lengths = bounds.diff()
        predicting = (labels[1:] != IGNORED).nonzero().flatten()
        pointing = (ids == seg).nonzero().flatten()
        so_far = (ids == image).cumsum(0)[pointing]
        if (so_far == 0).any():
            raise InputError("expected an image before every <SEG>, found a <SEG> in a text without one")
        tokens = [self.collator.processor.tokens((height, width)) for height, width in sizes]
        shown, row = torch.searchsorted(views.ends(tokens, ids.device), so_far).unique(return_inverse=True)
        regions = [(number, channel) for number, sample in enumerate(samples) for channel in range(_regions(sample))]
        return Packing(
            samples=len(samples),
            tokens=int(bounds[len(samples)]),
            grids=tuple(self.collator.processor.grid((height, width)) for height, width in sizes),
            extent=torch.tensor([len(lengths), int(lengths.max())]),
            bounds=torch.nn.functional.pad(bounds, (0, len(ids) + 2 - len(bounds)), value=len(ids)).int(),
            segment=torch.repeat_interleave(torch.arange(len(lengths)), lengths),
            images=(ids == image).nonzero().flatten(),
            regions=torch.cat([(ids == region).nonzero(), torch.tensor(regions, dtype=torch.long).view(-1, 2)], 1).T,
            predicting=predicting,
            wanted=labels[1:][predicting],
            pointing=torch.stack([pointing, row]),
            shown=shown,
        )


def _regions(sample: Sample) -> int:
    return sum(len(turn.region_rles) for turn in sample.turns)
