"""Write a trained network for other programs, and check that the file computes the same.

    python export.py augments/NAME --format onnx                 writes augments/NAME/NAME.onnx
    python export.py augments/NAME/best.pt --format pt2 --out cat.pt2

The file needs no code of ours: float images (N, C, H, W) in [0, 1] in, logits out, normalisation
inside.
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported
    from config import ExportConfig

    ExportConfig.answer_at_once()  # before torch is imported

import copy
import importlib.util
import io
import json
import os
import warnings
from contextlib import contextmanager

import torch
from torch import nn

import genotypes as gt
from config import ExportConfig
from console import errors
from console.terminal import command
from models import ops
from records.files import atomic_write
from tracking import trained_network
from tracking.trained_network import DeployedNetwork


@command
def main(argv=None):
    """Returns the path of the file."""
    cfg = ExportConfig(argv)
    to_bytes, from_bytes, packages = FORMATS[cfg.format]
    with errors.usage_errors(cfg.PROG):
        if cfg.threads is not None:
            torch.set_num_threads(cfg.threads)
        if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
            raise ValueError(
                f"--format {cfg.format} needs {' and '.join(missing)}: "
                f"pip install {' '.join(missing)}"
            )
        out = cfg.out or default_out(cfg.run, cfg.format)
        trained = trained_network.load(trained_network.checkpoint_path(cfg.run), cfg.ops)
    with errors.run_errors(cfg.PROG):
        print(f"{trained.path} as {cfg.format}; a large network takes a minute or two", flush=True)
        data, worst = export(trained, to_bytes, from_bytes)
        with atomic_write(out) as temporary:
            with open(temporary, "wb") as stream:
                stream.write(data)
    print(
        f"{out}: {cfg.format}, {len(data) / 1e6:.1f} MB, from {trained.path} "
        f"({trained.where}, {trained.logged}); logits of batches of 1, 2 and 5 images differ "
        f"from the network's by {worst:.1e} at most"
    )
    return out


def default_out(run, form):
    """Beside the checkpoint, named after the run folder or after the checkpoint itself."""
    if os.path.isdir(run):
        return os.path.join(run, f"{os.path.basename(os.path.abspath(run))}.{form}")
    return f"{os.path.splitext(run)[0]}.{form}"


def export(trained, to_bytes, from_bytes):
    """(the file's bytes, largest difference of logits) of a trained_network.TrainedNetwork.

    Raises OSError where the exporter cannot write the network, FloatingPointError where the file
    computes something else.
    """
    wanted = DeployedNetwork(trained)
    shape = (trained.spec.C_in, *trained.spec.size)
    try:
        with quiet():
            data = to_bytes(portable(wanted), torch.rand(3, *shape), metadata(trained))
    except Exception as error:  # whatever the exporters say of a block they cannot write
        raise OSError(
            f"the network cannot be written in this format ({type(error).__name__}: "
            f"{errors.one_line(error)}); try another --format"
        ) from error
    with quiet():
        return data, difference(wanted, from_bytes(data), shape)


def metadata(trained):
    """What is kept inside an exported file."""
    spec = trained.spec
    H, W = spec.size
    return {
        "input": f"float32 images (N, {spec.C_in}, {H}, {W}) in [0, 1]; the network normalises "
        "them itself",
        "output": "logits (N, classes); their softmax are the probabilities",
        "resize": f"turn the image as its EXIF orientation says, scale it (bilinear) until it "
        f"covers {W}x{H} pixels, cut off what stands over, as much on both sides"
        + ("" if spec.C_in == 3 else "; grey"),
        "classes": list(spec.classes),
        "dataset": spec.name,
        "size": list(spec.size),
        "white": spec.white,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "genotype": gt.to_str(trained.genotype),
        "epoch": trained.epoch,
        "top1": trained.top1,
    }


def difference(net, other, shape):
    """Largest difference of two networks' logits, over batches of 1, 2 and 5 random images.

    Raises FloatingPointError above 1e-4 (of the largest logit, where that is above 1).
    """
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for N in (1, 2, 5):
        images = torch.rand(N, *shape, generator=generator)
        with torch.no_grad():
            wanted = net(images)
        error = (other(images) - wanted).abs().max().item()
        worst = max(worst, error)
        if not error <= 1e-4 * max(1.0, wanted.abs().max().item()):  # so that NaN fails
            raise FloatingPointError(
                f"the exported network differs from the trained one by {error:.2g} for a batch of "
                f"{N}; nothing was written. A block whose result depends on more than its input, "
                f"or that takes another way by its input, does that"
            )
    return worst


def portable(net):
    """A copy of a DeployedNetwork for any device, without the auxiliary head and in plain layers:
    our dilated convolution has a way of its own on CPUs."""
    net = copy.deepcopy(net)
    if hasattr(net.net, "aux_head"):
        del net.net.aux_head
    for parent in list(net.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, ops.DilatedConv2d):
                plain = nn.Conv2d(
                    layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride,
                    layer.padding, layer.dilation, layer.groups, layer.bias is not None,
                )  # fmt: skip
                plain.load_state_dict(layer.state_dict())
                setattr(parent, name, plain)
    return net.eval().requires_grad_(False)


@contextmanager
def quiet():
    """The exporters talk a lot, and warn of what they will do in later versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def to_torchscript(net, images, metadata):
    with torch.no_grad():
        script = torch.jit.trace(net, images)
    stream = io.BytesIO()
    torch.jit.save(script, stream, _extra_files={"metadata.json": json.dumps(metadata)})
    return stream.getvalue()


def from_torchscript(data):
    net = torch.jit.load(io.BytesIO(data))

    def forward(images):
        with torch.no_grad():
            return net(images)

    return forward


def to_pt2(net, images, metadata):
    batch = torch.export.Dim("N", min=1)
    program = torch.export.export(net, (images,), dynamic_shapes={"images": {0: batch}})
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={"metadata.json": json.dumps(metadata)})
    return stream.getvalue()


def from_pt2(data):
    return torch.export.load(io.BytesIO(data)).module()


def to_onnx(net, images, metadata):
    import onnx

    batch = torch.export.Dim("N", min=1)
    program = torch.onnx.export(
        net, (images,), dynamo=True, verbose=False, external_data=False,
        input_names=["images"], output_names=["logits"], dynamic_shapes={"images": {0: batch}},
    )  # fmt: skip
    model = program.model_proto
    onnx.helper.set_model_props(
        model, {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def from_onnx(data):
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


# --format: (network -> bytes, bytes -> function of images, packages beyond requirements.txt)
FORMATS = {
    "onnx": (to_onnx, from_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torchscript": (to_torchscript, from_torchscript, ()),
    "pt2": (to_pt2, from_pt2, ()),
}


if __name__ == "__main__":
    main()
