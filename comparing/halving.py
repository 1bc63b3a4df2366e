"""Halving: all are trained in the first rung, the better half in the second with twice the epochs.

Every training of every rung begins from scratch and has a cosine schedule of its own. Going on from
the weights of the rung before would be cheaper, but its learning rate has come down to 0, and a
score in the middle of a longer schedule says little about its end.
"""

import heapq


def plan(n, epochs):
    """The epochs of each rung for n candidates, the last with `epochs`. Of two nobody is dropped.
    More rungs would begin with trainings too short to say who is better (docs/results.md)."""
    return [epochs // 2, epochs] if n > 2 and epochs > 1 else [epochs]


def better_half(places):
    """The names of the better half, rounded up, the best first; of one, that one.

    places  {name: what they are sorted by}, as `comparison.Rung.place`; of equals the earlier name
    """
    ranked = sorted(places, key=places.get)
    return ranked[: -(-len(ranked) // 2)]


def seconds(costs, always, epochs, n_seeds, jobs):
    """An estimate of all rungs together, if the costly candidates are those that go on.

    costs   {name: (seconds to begin, seconds of an epoch)};  always  those that no rung drops
    epochs  of the last rung;  jobs  trainings at once
    """
    going_on = sorted(set(costs) - set(always), key=lambda name: costs[name][::-1], reverse=True)
    total = 0.0
    for n_epochs in plan(len(going_on), epochs):
        names = [*going_on, *always]
        each = [costs[name][0] + n_epochs * costs[name][1] for name in names]
        total += makespan([cost for cost in each for _ in range(n_seeds)], jobs)
        going_on = going_on[: -(-len(going_on) // 2)]
    return total


def makespan(costs, jobs):
    """Seconds until all is over if each of `jobs` processes takes the next one when it is free."""
    free = [0.0] * jobs
    for cost in costs:
        heapq.heappush(free, heapq.heappop(free) + cost)
    return max(free)


def fitting_epochs(costs, always, n_seeds, jobs, budget):
    """Epochs of the last rung whose `seconds` fit into the budget while one more would not; 0 where
    not even one does."""

    def fits(epochs):
        return seconds(costs, always, epochs, n_seeds, jobs) <= budget

    low, high = 0, 1
    while fits(high) and high < 2**20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
