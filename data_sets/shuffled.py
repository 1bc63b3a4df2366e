"""Shuffled batches that can be gone on with anywhere.

What a batch holds, its random changes included, follows from the seed, the number of the pass and
the number of the batch: not from who loads it, nor from what was loaded before. So a run is the
same with any number of loader processes, and goes on inside a pass without loading it again.
"""

import numpy as np
import torch

from data_sets import shares
from data_sets.loader_speed import TimedLoader
from data_sets.splits import Transformed


class ShuffledBatches:
    """A batch sampler: pairs (seed of the random changes, indices), full batches only."""

    def __init__(self, n_images, batch_size, seed, share=(0, 1)):
        """`seed` is a list of numbers; `share` is (r, size), which of so many processes this is:
        it gets its share of the indices, and random changes of its own."""
        self.n_images, self.batch_size, self.seed = n_images, batch_size, seed
        self.share = share
        self.n_pass = self.done = 0  # the pass, and how many of its batches have been used

    def __len__(self):
        return self.n_images // self.batch_size

    def __iter__(self):
        rng = np.random.default_rng([*self.seed, self.n_pass])
        order = rng.permutation(self.n_images).tolist()
        seeds = rng.integers(2**63, size=len(self)).tolist()
        for i in range(self.done, len(self)):
            batch = order[i * self.batch_size : (i + 1) * self.batch_size]
            yield seeds[i] + self.share[0], shares.take(batch, self.share)


class Augmented(Transformed):
    """Images seen through random changes, by batches of `ShuffledBatches`."""

    def __getitems__(self, batch):
        seed, indices = batch
        before = torch.get_rng_state()  # of the network, where there are no loader processes
        torch.default_generator.manual_seed(seed)
        try:
            return [self[index] for index in indices]
        finally:
            torch.set_rng_state(before)


class ShuffledLoader(TimedLoader):
    """Shuffled, augmented, full batches. Goes on where it was left: behind the last batch that was
    used, in a new pass if that was the last of one. Its state_dict is that position."""

    def __init__(self, images, batch_size, seed, share=(0, 1), **words):
        """`images` is an Augmented; seed and share as of `ShuffledBatches`."""
        batches = ShuffledBatches(len(images), batch_size, seed, share)
        super().__init__(images, batch_sampler=batches, **words)

    def __iter__(self):
        batches = self.batch_sampler
        if batches.done >= len(batches):
            batches.n_pass, batches.done = batches.n_pass + 1, 0
        for batch in super().__iter__():
            batches.done += 1
            yield batch

    def restart(self, seed):
        """Begin anew, with the first pass of another seed, a list of numbers."""
        self.batch_sampler.seed = seed
        self.load_state_dict({"pass": 0, "done": 0})

    def state_dict(self):
        return {"pass": self.batch_sampler.n_pass, "done": self.batch_sampler.done}

    def load_state_dict(self, state):
        self.batch_sampler.n_pass, self.batch_sampler.done = state["pass"], state["done"]
