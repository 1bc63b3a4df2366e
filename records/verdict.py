"""How good a result is: beside guessing, class by class, what was taken for what."""

import math

from console.terminal import plural

NOISE = 2.0  # standard deviations of guessing that an accuracy must be above it to count
FAR, WEAK = 5.0, 2.0  # how many times as often guessing is wrong: far better; hardly better
MOST_NAMED = 12  # classes that are named in one line; of more, the weakest


def judge(top1, counts, classes, hits=None):
    """What an accuracy is worth, as a dict:

    accuracy, images       what was measured, on how many images
    chance, most_frequent  accuracy of a guess, 1 / classes, and of always naming the class with the
                           most images
    better                 whether it is above both by more than the noise of so few images; with
                           `hits` also where the mean over the classes is above chance
    text                   all of that in words

    counts  images of each class that were scored;  hits  how many of each were right, if known
    """
    n, chance = sum(counts), 1 / len(counts)
    share, most = max((count / n, -i) for i, count in enumerate(counts))
    guess = max(share, chance)
    better = top1 > guess + NOISE * math.sqrt(guess * (1 - guess) / n)
    text = (
        f"{top1:.2%} of {plural(n, 'image')} are right, where guessing gets {chance:.2%} (one of "
        f"{len(counts)} classes) and always naming {classes[-most]} gets {share:.2%}: "
    )
    by_class = {} if hits is None else {"mean_of_classes": _mean_of_classes(hits, counts)}
    if better:
        text += _ahead(top1, guess)
    elif hits is not None and by_class["mean_of_classes"] > _border_of_mean(counts):
        better = True
        text += (
            f"no better than the most frequent class, but it does tell the classes apart, of which "
            f"{by_class['mean_of_classes']:.2%} are right in the mean"
        )
    elif top1 < guess - NOISE * math.sqrt(guess * (1 - guess) / n):
        text += "worse than guessing"
    else:
        text += "no better than guessing"
    numbers = {"accuracy": top1, "images": n, "chance": chance, "most_frequent": share}
    return {**numbers, **by_class, "better": better, "text": text}


def _ahead(top1, guess):
    """In words how far an accuracy is above guessing."""
    if top1 >= 1:
        return "none is wrong"
    times = (1 - guess) / (1 - top1)
    if times < WEAK:
        return (
            f"better than guessing, but not by much: guessing is wrong {times:.1f} times as often"
        )
    number = f"{times:.0f}" if times >= 9.95 else f"{times:.1f}"
    return f"{'far ' * (times >= FAR)}better than guessing, which is wrong {number} times as often"


def _mean_of_classes(hits, counts):
    rates = [hit / count for hit, count in zip(hits, counts, strict=True) if count]
    return sum(rates) / len(rates)


def _border_of_mean(counts):
    """What the mean over the classes must exceed to be above chance by more than noise."""
    chance, there = 1 / len(counts), [count for count in counts if count]
    variance = sum(chance * (1 - chance) / count for count in there) / len(there) ** 2
    return chance + NOISE * math.sqrt(variance)


# --- the confusion matrix -----------------------------------------------------------------------


def confusion(targets, predicted, n_classes):
    """matrix[y][p]: how many images of class y were taken for class p."""
    matrix = [[0] * n_classes for _ in range(n_classes)]
    for y, p in zip(targets, predicted, strict=True):
        matrix[y][p] += 1
    return matrix


def per_class(matrix):
    """([right of each class], [images of each class])."""
    return [row[y] for y, row in enumerate(matrix)], [sum(row) for row in matrix]


def describe_classes(matrix, classes):
    """The accuracy of every class in one line, the weakest first; of many classes the weakest."""
    hits, counts = per_class(matrix)
    there = [y for y, count in enumerate(counts) if count]
    ordered = sorted(there, key=lambda y: hits[y] / counts[y])
    shown = ordered[:MOST_NAMED]
    head = "per class" if len(shown) == len(ordered) else f"the weakest of {len(ordered)} classes"
    return f"{head}: " + ", ".join(
        f"{classes[y]} {hits[y] / counts[y]:.1%} of {counts[y]}" for y in shown
    )


def describe_confusions(matrix, classes, most=3):
    """What is taken for what most often, in one line; "" where nothing is wrong."""
    wrong = [(n, y, p) for y, row in enumerate(matrix) for p, n in enumerate(row) if p != y and n]
    wrong.sort(key=lambda item: (-item[0], item[1:]))
    if not wrong:
        return ""
    return "most often confused: " + ", ".join(
        f"{classes[y]} taken for {classes[p]} ({n} of {sum(matrix[y])})" for n, y, p in wrong[:most]
    )


def most_surely_wrong(targets, predicted, probability, most=8):
    """Indices of the images whose wrong answer got the highest probability."""
    wrong = [i for i, (y, p) in enumerate(zip(targets, predicted, strict=True)) if y != p]
    return sorted(wrong, key=lambda i: -probability[i])[:most]
