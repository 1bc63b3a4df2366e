"""Does the search find better cells than chance? The digits experiment of docs/results.md.

    python scripts/digits_experiment.py --out results.json

For each seed: one search, one training of the found cell, one training of a random cell from the
same search space, both trainings with the same flags and seed. Prints every accuracy and the mean
and standard deviation over the seeds, and writes them as JSON. Finished parts are kept in searchs/
and augments/ below the current folder, so the command goes on where it was broken off.
"""

import argparse
import json
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import augment
import genotypes as gt
import search
from devices import pick
from records import files
from tracking import run_folder

SEARCH = "--layers 4 --init_channels 8 --alpha_lr 3e-3 --epochs 40"
AUGMENT = "--layers 8 --init_channels 16 --epochs 30"


def accuracies(folder):
    """Accuracy of the last and of the best epoch of a finished run."""
    with open(os.path.join(folder, files.METRICS), encoding="utf-8") as stream:
        records = [json.loads(line) for line in stream]
    held = [record for record in records if record["phase"] == "val"]
    best = max(held, key=lambda record: record["top1"])
    return {"last": held[-1]["top1"], "best": best["top1"], "best_epoch": best["epoch"]}


def run(main, root, name, words):
    """Run a script unless this part is finished with the same flags; returns its accuracies."""
    folder = os.path.join(root, name)
    note = os.path.join(folder, "experiment.json")  # written last: the part is finished
    try:
        with open(note, encoding="utf-8") as stream:
            record = json.load(stream)
    except FileNotFoundError:
        record = {}
    if record.get("words") != words:
        start = time.perf_counter()
        main([*words, "--name", name, "--overwrite"])
        minutes = round((time.perf_counter() - start) / 60, 1)
        record = {"words": words, "minutes": minutes, **accuracies(folder)}
        with open(note, "w", encoding="utf-8") as stream:
            json.dump(record, stream)
    return {key: value for key, value in record.items() if key != "words"}


def main(argv=None):
    parser = argparse.ArgumentParser(
        "digits_experiment.py",
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to run")
    parser.add_argument("--search", default=SEARCH, help="flags of search.py")
    parser.add_argument("--augment", default=AUGMENT, help="flags of augment.py")
    parser.add_argument("--out", default="digits_experiment.json", help="file of the results")
    args = parser.parse_args(argv)
    search_words, augment_words = args.search.split(), args.augment.split()

    rows = []
    for seed in args.seeds:
        found, seeded = f"digits-{seed}", ["--seed", str(seed)]
        row = {"seed": seed}
        row["search"] = run(search.main, "searchs", found, search_words + seeded)
        cells = {
            "found": gt.load(os.path.join("searchs", found)),
            "random": gt.random_genotype(seed),
        }
        for kind, genotype in cells.items():
            words = [*augment_words, *seeded, "--genotype", gt.to_str(genotype)]
            name = f"{kind}-{seed}"
            row[kind] = run(augment.main, "augments", name, words)
            row[kind]["genotype"] = gt.to_str(genotype)
        rows.append(row)

    summary = {}
    print(f"\n{'':8}{'last epoch':>22}{'best epoch':>22}   (test accuracy in %)")
    for kind in ("found", "random"):
        for which in ("last", "best"):
            values = [100 * row[kind][which] for row in rows]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            summary[f"{kind}_{which}"] = {"mean": statistics.mean(values), "std": deviation}
        cells = [summary[f"{kind}_{which}"] for which in ("last", "best")]
        print(f"{kind:8}" + "".join(f"{c['mean']:14.2f} +- {c['std']:.2f}" for c in cells))
        print(
            "        last epoch by seed: " + " ".join(f"{100 * r[kind]['last']:.2f}" for r in rows)
        )
    record = {
        "search": args.search, "augment": args.augment, "rows": rows, "summary": summary,
        "versions": run_folder.versions(), "date": time.strftime("%Y-%m-%d"),
        "device": pick.Device(pick.pick_device()).name,
    }  # fmt: skip
    files.write_json(args.out, record)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
