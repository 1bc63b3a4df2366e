"""Which images of a batch are whose, where several processes do one run.

All of them draw the same order, and number r of `size` takes every size-th image of each batch from
r on: together they have the batch of one process. No image is padded, none is drawn twice.
"""


def take(batch, share):
    """The images of a list that belong to share (r, size)."""
    rank, size = share
    return batch[rank::size]


class ScoredBatches:
    """A batch sampler for scoring: all images in order, `batch_size` of all processes at once. A
    last batch that has not an image for each of them goes into the one before."""

    def __init__(self, n_images, batch_size, share):
        self.n_images, self.batch_size, self.share = n_images, batch_size, share

    def _starts(self):
        starts = list(range(0, self.n_images, self.batch_size))
        if len(starts) > 1 and self.n_images - starts[-1] < self.share[1]:
            starts.pop()
        return starts

    def __len__(self):
        return len(self._starts())

    def __iter__(self):
        starts = self._starts()
        for start, end in zip(starts, [*starts[1:], self.n_images], strict=True):
            yield list(take(range(start, end), self.share))
