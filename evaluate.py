"""Score a trained network on its test split.

python evaluate.py augments/NAME            its last and its best epoch, once if they are the same
python evaluate.py augments/NAME/best.pt    one checkpoint
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported
    from config import EvaluateConfig

    EvaluateConfig.answer_at_once()  # before torch is imported

import argparse
import os

import utils
from config import EvaluateConfig
from console import errors
from console.terminal import command, visible
from data_sets import loaders
from data_sets.options import DataOptions
from devices import layout, pick
from records import files, verdict
from tracking import trained_network


@command
def main(argv=None):
    """Returns the scores of each checkpoint, as `score` does."""
    cfg = EvaluateConfig(argv)
    paths = [cfg.run]
    if os.path.isdir(cfg.run):
        paths = [os.path.join(cfg.run, name) for name in (files.CHECKPOINT, files.BEST)]
        if not os.path.exists(paths[1]):  # saved inside the first epoch
            paths.pop()

    def advice():
        return f"lower --batch_size {cfg.batch_size}"

    with errors.usage_errors(cfg.PROG, advice):
        networks = [trained_network.load(path, cfg.ops) for path in paths]
        device = pick.prepare_device(cfg)
        # both checkpoints of a run have seen the same images
        parts = loaders.scored_loaders(data_options(cfg, networks[0], device))
    also = [""]  # of a checkpoint of its own nothing is said
    if len(networks) > 1:
        also = ["", f", picked on the {next(iter(parts))} split: quote the last"]
        if networks[0].where == networks[1].where:
            networks, also = networks[:1], [", which is the best, too"]
    with errors.run_errors(cfg.PROG, advice=advice):
        pairs = zip(networks, also, strict=True)
        return [score(trained, parts, device, words) for trained, words in pairs]


def data_options(cfg, trained, device):
    """The images of the training, where --data_path says they are now."""
    said = {name: value for name, value in cfg.said.items() if name in trained.flags}
    flags = {**trained.flags, "workers": None, "batch_size": cfg.batch_size, **said}
    return DataOptions.from_config(
        argparse.Namespace(**flags), known_spec=trained.spec, pin_memory=device.is_cuda
    )


def score(trained, parts, device, also=""):
    """Print the scores of a trained_network.TrainedNetwork on each part, beside what its training
    logged; returns those on the first part, on which it was scored after every epoch. `also` is
    more to say of that epoch."""
    kind = layout.LAYOUTS[layout.default_layout(device)]
    net = trained.net.to(device.torch_device, memory_format=kind)
    top = min(5, len(trained.spec.classes))
    scores = {}
    for part, loader in parts.items():
        answers = utils.Answers()
        found = scores[part] = utils.evaluate(lambda X: net(X)[0], loader, device, answers)
        logged = "" if len(scores) > 1 else f" (training logged {trained.logged})"
        print(
            f"{trained.path}, {trained.where}{also}, {visible(trained.spec.name)} {part} split: "
            f"top1 {found['top1']:.2%} top{top} {found['top5']:.2%} loss {found['loss']:.4f}"
            f"{logged}"
        )
        print(f"    {describe_classes(answers, trained.spec.classes)}")
    return next(iter(scores.values()))


def describe_classes(answers, classes):
    """The accuracy of each class, in one line."""
    targets, predicted, _ = answers.lists()
    matrix = verdict.confusion(targets, predicted, len(classes))
    return verdict.describe_classes(matrix, [visible(name) for name in classes])


if __name__ == "__main__":
    main()
