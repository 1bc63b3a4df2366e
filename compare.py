"""Compare cells: train all alike and briefly, drop the weaker half, train the others longer.

    python compare.py searchs/a searchs/b DARTS_V2 --random 4

Says which cell to train, and whether the search beat chance. Everything is recorded in
compares/NAME; augment.py --genotype compares/NAME trains the winner.
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported
    from config import CompareConfig

    CompareConfig.answer_at_once()  # before torch is imported

from comparing import candidates, halving
from comparing.run import RESUMES_FROM, Comparison, to_resume
from comparing.training import Recipe
from comparing.workers import Job, Setting, Workers
from config import CompareConfig
from console import errors
from console.parser import seconds
from console.terminal import command
from devices import processes
from models import own_ops
from records import comparison, files
from records.comparison import BASELINE
from tracking import run_folder


@command
def main(argv=None):
    cfg = CompareConfig(argv)
    with errors.usage_errors(cfg.PROG), run_folder.set_up(cfg, RESUMES_FROM) as folder:
        processes.refuse_torchrun(cfg.PROG)
        known = to_resume(cfg, folder)
        inherited = "" if known else candidates.inherit(cfg)
        own_ops.use(cfg)
        taking_part = [] if known else candidates.collect(cfg)
        folder.findings += candidates.of_other_spaces(cfg, taking_part)
        run = Comparison(cfg, folder, known)

        # data: the training set in two parts; the test split stays closed
        run.load_data()
        run.measure_sizes(taking_part)
        recipe, cards = Recipe.from_config(cfg), tuple(run.cards)
        setting = Setting(run.options, recipe, run.device, cards, cfg.amp, cfg.cuda_graphs, cfg.ops)
        if cfg.budget and not known:
            cfg.epochs = epochs_for_budget(run, setting)

    with errors.run_errors(cfg.PROG, run), run:
        log_setup(run, inherited)
        going_on = names(run, lambda c: c["kind"] != BASELINE)
        baselines = names(run, lambda c: c["kind"] == BASELINE)
        plan = halving.plan(len(going_on), cfg.epochs)
        run.open_bar(planned(run, plan), "epochs")
        with Workers(run.jobs, setting) as workers:
            for rung, epochs in enumerate(plan, start=1):
                everyone = [*going_on, *baselines]
                run.log.info(describe_rung(rung, len(plan), epochs, everyone, cfg.seeds))
                run.keep_records(rung, everyone)
                train_all(run, workers, rung, epochs, everyone)
                going_on, baselines = survivors(run, rung, going_on, baselines)
                if rung == 1:
                    warn_of_weak(run)
                run.end_rung(rung, is_last=rung == len(plan))
                run.show()
        concluded = conclude(run)
    if not concluded:
        errors.end(cfg.PROG, f"no cell could be trained; {run.files.path} says why", 1, None)
    return run.files.path


def names(run, wanted):
    """The candidates that can be built and are wanted."""
    return [c["name"] for c in run.candidates if wanted(c) and not c["fault"]]


def cells(run):
    """{name: what a process builds the candidate from}."""
    return {c["name"]: c["genotype"] or c["name"] for c in run.candidates}


def epochs_for_budget(run, setting):
    """The epochs of the last rung that fit into --budget, by the time of the first steps of each
    candidate. Raises ValueError where one epoch does not fit."""
    cfg, costs, text = run.cfg, {}, cells(run)
    trials = [Job(name, text[name], 0, 0, cfg.seed) for name in names(run, bool)]
    run.open_bar(len(trials), "timing")
    with Workers(run.jobs, setting) as workers:
        for answer in workers.run(trials):
            if answer is None or not answer.is_last:  # the trainings will warn again
                continue
            require_sound(answer)
            name = answer.job.name
            if answer.kind == "failed":
                fail(run, name, answer.value)
            elif answer.kind == "ended":
                run.findings.append(f"{name} could not be timed: {answer.value}")
            else:
                costs[name] = answer.value
            run.bar.update()
    run.bar.close()
    if costs:
        dearest = max(costs.values(), key=lambda cost: cost[1])
        costs = {name: costs.get(name, dearest) for name in names(run, bool)}
    always = [name for name in names(run, lambda c: c["kind"] == BASELINE) if name in costs]
    least = halving.seconds(costs, always, 1, cfg.seeds, run.jobs)
    epochs = halving.fitting_epochs(costs, always, cfg.seeds, run.jobs, seconds(cfg.budget))
    if costs and not epochs:
        raise ValueError(
            f"--budget {cfg.budget} is too short: one epoch of each takes about {least:.0f} s; "
            f"name fewer cells, or take --seeds 1, fewer --layers or --init_channels"
        )
    return max(epochs, 1)


def require_sound(answer):
    """Raise OSError for what would fail every candidate: left out, none could ever go on."""
    if answer.kind == "broken":
        raise OSError(answer.value)


def fail(run, name, fault):
    """A candidate has failed before its first training."""
    next(c for c in run.candidates if c["name"] == name)["fault"] = fault


def planned(run, plan):
    """How many epochs there are in all if nobody fails."""
    n, always = len(names(run, lambda c: c["kind"] != BASELINE)), len(run.cfg.baseline)
    total = 0
    for epochs in plan:
        total += (n + always) * epochs * run.cfg.seeds
        n = -(-n // 2)
    return total


def train_all(run, workers, rung, epochs, taking_part):
    """The trainings of a rung that are not finished yet."""
    seeds = range(run.cfg.seed, run.cfg.seed + run.cfg.seeds)
    text, failed = cells(run), run.failed(rung)
    jobs = [
        Job(name, text[name], rung, epochs, seed, run.swaps and (seed - run.cfg.seed) % 2 == 1)
        for seed in seeds
        for name in taking_part
    ]
    waiting = [job for job in jobs if (job.rung, job.name, job.seed) not in run.records]
    run.bar.update(epochs * (len(jobs) - len(waiting)))
    for answer in workers.run(waiting, lambda job: job.name not in failed):
        run.stop_if_asked()
        if answer is None:
            continue
        require_sound(answer)
        if answer.kind == "epoch":
            run.bar.update()
        elif answer.kind == "warned":
            # said once: it may hold for all, or for cells with one block
            run.log.warn(f"{answer.value}; first seen with {answer.job.name}", kind=answer.value)
        elif answer.kind == "done":
            run.record(answer.job, answer.value)
        elif answer.job.name not in failed:  # said once, not of every training
            failed.add(answer.job.name)
            run.record(answer.job, fault=answer.value, again=answer.kind == "ended")
        if answer.is_last and rung == 1:  # pages of the second rung show the first
            left = (job for job in waiting if job.name not in failed)
            if any((rung, job.name, job.seed) not in run.records for job in left):
                run.show_if_due()


def survivors(run, rung, going_on, baselines):
    """The better half of those that go on, and the baselines that have not failed."""
    failed = run.failed(rung)
    places = {
        row.name: found.place
        for row in run.rows()
        for found in row.rungs  # where the comparison goes on, later ones may be finished, too
        if found.rung == rung and row.name not in failed
    }
    kept = halving.better_half({name: places[name] for name in going_on if name in places})
    return kept, [name for name in baselines if name in places]


# --- words --------------------------------------------------------------------------------------


def log_setup(run, inherited):
    cfg, log = run.cfg, run.log
    where = f"{run.device} {','.join(map(str, run.cards))}".strip()
    at_once = f"{comparison.plural(run.jobs, 'training')} at once"
    log.info(f"{run.files.path} on {where}, {at_once}, seed {cfg.seed}")
    for finding in run.files.findings:
        log.warn(finding)
    for finding in filter(None, (*run.findings, inherited)):
        log.info(finding)
    places = ", which change places with every second training" if run.swaps else ""
    log.info(
        f"{run.spec.name}: {run.n_trained} images to train on and {run.n_scored} others to score, "
        f"both of the training set{places}; {run.spec.describe()}, batch {run.options.batch_size}"
    )
    if cfg.budget:
        log.info(
            f"--budget {cfg.budget}: {comparison.plural(cfg.epochs, 'epoch')} in the last rung"
        )
    if run.records:
        log.info(f"{comparison.plural(len(run.records), 'training')} finished before")
    for name, fault in run.tried_again:
        log.info(f"{name} was left out ({fault}) and is tried again")
    for c in run.candidates:
        if c["fault"]:
            log.warn(f"{c['name']} is left out: {c['fault']}")
    if cfg.baseline:
        log.info(f"for comparison: {', '.join(cfg.baseline)} of torchvision, from scratch")


def describe_rung(rung, n_rungs, epochs, taking_part, n_seeds):
    return (
        f"rung {rung} of {n_rungs}: {comparison.plural(len(taking_part), 'candidate')}, "
        f"{comparison.plural(epochs, 'epoch')} each, {comparison.plural(n_seeds, 'training')}"
    )


def warn_of_weak(run):
    """Of trainings in the first rung that were too short to tell anything."""
    first = [row.rungs[0] for row in run.rows() if row.rungs]
    weak = [rung.mean for rung in first if rung.is_weak]
    if weak:
        span = dict.fromkeys(f"{top1:.2%}" for top1 in (min(weak), max(weak)))
        run.log.warn(
            f"{len(weak)} of {comparison.plural(len(first), 'candidate')} of the first rung had "
            f"hardly learned anything ({' to '.join(span)}, naming the same class "
            f"always has {first[0].guessing:.2%}): that is too short to choose among cells; take "
            f"more --epochs"
        )


def conclude(run):
    """The ranking and what follows from it; whether there is a winner."""
    rows = run.rows()
    run.bar.close()
    run.log.info(comparison.table(rows))
    if comparison.winner(rows) is None:
        return False
    best, *others = comparison.conclusions(rows)  # the command stands behind the winner
    run.log.result("\n".join([*others, best]))
    is_weak = comparison.is_weak(rows)
    if not is_weak:
        run.estimate()
    how = "to train it all the same:" if is_weak else "and train it with"
    run.log.result(f"look at {run.files.file(files.REPORT)}, {how}\n{run.next_command()}")
    return True


if __name__ == "__main__":
    main()
