"""What a training inherits from its search, or from the training it starts from."""

import os

import genotypes as gt
from console.parser import to_folder_name
from data_sets import loaders
from tracking import trained_network


def inherit_flags(cfg):
    """Let `cfg`, a config.AugmentConfig, inherit from the run behind --genotype or --init_from: the
    flags of its network, and those of its images unless the command line names others. Returns what
    was inherited, in words."""
    if cfg.init_from:
        source = cfg.init_from
        state = trained_network.read(trained_network.checkpoint_path(source))
        flags = {**state["flags"], "genotype": state["genotype"]}
    else:
        source = source_of(cfg)
        flags = flags_of_search(source)
        if cfg.space and not flags:
            raise ValueError(f"--space {cfg.space} is no search; name its folder, searchs/NAME")
    network, images = cfg.marked(flags, inherit="network"), cfg.marked(flags, inherit="images")
    cfg.require_sayable({**network, **images}, source)
    before = cfg.flags()
    cfg.inherit({**network, **images})
    if cfg.is_other_data(images):  # nothing holds of what its images were like
        images = {}
        cfg.inherit(network)
    taken = {
        name: value
        for name, value in {**network, **images}.items()
        if getattr(cfg, name) == value and (name == "dataset" or value != before[name])
    }
    taken.pop("genotype", None)  # long, and logged in a line of its own
    words = ", ".join(f"{name} {value}" for name, value in taken.items())
    return words and f"inherited from {source}: {words}"


def source_of(cfg):
    """What a training inherits from: its --genotype, or the search that a random one is like."""
    return cfg.space if gt.is_random(cfg.genotype) else cfg.genotype


def genotype_of(cfg):
    """The cell that a training is to train; see `genotypes.load`."""
    if not gt.is_random(cfg.genotype):
        return gt.load(cfg.genotype)
    return gt.draw(cfg.genotype, cfg.seed, gt.metadata(cfg.space) if cfg.space else None)


def flags_of_search(source):
    """The flags that a search left beside its genotype; {} where `source` tells of none."""
    flags = gt.metadata(source).get("flags") if source else None
    return flags if isinstance(flags, dict) else {}


def default_run_name(cfg):
    """What a training without --name is called: after its search, published cell, or data set."""
    dataset = loaders.default_run_name(cfg.dataset, cfg.data_path)
    if gt.is_random(cfg.genotype):
        seed = cfg.genotype.partition(":")[2] or cfg.seed
        like = f"-as-{os.path.basename(os.path.abspath(cfg.space))}" if cfg.space else ""
        return to_folder_name(f"random-{seed}{like}")
    if os.path.isdir(cfg.genotype):
        name = os.path.basename(os.path.abspath(cfg.genotype))
        if cfg.is_other_data(flags_of_search(cfg.genotype)):
            name = f"{name}-on-{dataset}"
        return to_folder_name(name) or dataset
    return cfg.genotype if cfg.genotype in gt.PUBLISHED else dataset
