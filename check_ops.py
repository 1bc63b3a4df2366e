"""Try every block of OPS and say in words what is wrong with it.

    python check_ops.py                     all of OPS
    python check_ops.py ghost_conv          one block, or some
    python check_ops.py --channels 16,32    at the channels you search with

search.py and augment.py run the quick part of this on their own ops when they start.
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported

import contextlib
import copy
import inspect
import os
import statistics
import time
import traceback

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter

import genotypes as gt
import utils
from console import errors
from console.parser import Parser, channel_counts, threads
from console.terminal import command, plural
from devices import pick
from models import ops, own_ops
from models.fan import Fan

SIZES = ((1, 1), (2, 2), (33, 32), (8, 9), (7, 6))  # (H, W); small, odd, not square
QUICK_SIZES = ((7, 6),)

HIDDEN = "holds weights that PyTorch does not see"
EDGE_BY_EDGE = "edge by edge"
WEAK, STRONG = 1e-6, 100  # times its input: how much of a block's output is worth a note

SCALED_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)


class Fault(Exception):
    """What a block does wrong, in words that follow its name."""


def blame(text, error):
    """What to raise for the exception `error` of a block: a Fault, or the exception itself where
    the block is not to blame, since memory has run out."""
    return error if errors.is_out_of_memory(error) else Fault(text)


# --- one block, one setting ---------------------------------------------------------------------


def check_op(name, C, stride, affine, sizes=SIZES):
    """Build a block and try it. Returns remarks, in words; raises Fault.

    torch's random generators are left as they were.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # of the CPU; others are left alone
        op = build(name, C, stride, affine)
        check_hidden(op)
        check_norms(op, affine)
        idle = {key for key, p in op.named_parameters() if p.requires_grad}
        for size in reversed(sizes):  # the last says most of what is wrong
            # channels last, as on a CPU: view() fails where reshape() does not
            x = torch.randn(3, C, *size).to(memory_format=torch.channels_last)
            idle -= check_training(name, op, x, stride)
            check_evaluation(op, x)
        x = torch.randn(3, C, *sizes[-1])
        check_weights(name, op, x, C, stride, affine)
        check_device(op, x)
        found = remarks(op, affine, idle)
        return found if name == "none" else [*found, *scale_remarks(op, x)]


def build(name, C, stride, affine):
    """OPS[name](C, stride, affine), twice: each edge needs a module of its own."""
    factory = ops.OPS[name]
    if isinstance(factory, nn.Module) or not callable(factory):
        raise Fault(f"is a {type(factory).__name__} in OPS; write lambda C, stride, affine: ...")
    try:
        inspect.signature(factory).bind(C, stride, affine=affine)
    except TypeError as error:
        raise Fault(
            f"takes wrong arguments ({error}); write lambda C, stride, affine: ..."
        ) from None
    except ValueError:  # a callable of C, which has no signature
        pass
    try:
        made = [factory(C, stride, affine=affine) for _ in range(2)]
    except Exception as error:
        raise blame(f"cannot be built: {one_line(error)}", error) from error
    for op in made:
        if not isinstance(op, nn.Module):
            raise Fault(f"gives a {type(op).__name__}, not an nn.Module")
    tensors = [{id(t) for t in (*op.parameters(), *op.buffers())} for op in made]
    if tensors[0] & tensors[1]:
        raise Fault("gives the same weights at every call; each edge needs a new module")
    for key, parameter in made[0].named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise Fault(f"has a lazy layer, whose weight {key} has no size yet; give it C channels")
        if parameter.dtype != torch.float32:
            raise Fault(f"has its weight {key} in {dtype_name(parameter.dtype)}, not in float32")
    return made[0]


def check_hidden(op):
    """Nothing that is learned lies where PyTorch does not look."""
    seen = {id(parameter) for parameter in op.parameters()}
    for key, module in op.named_modules():
        for attribute, value in vars(module).items():
            if any(id(weight) not in seen for weight in weights_in(value)):
                raise Fault(
                    f"{HIDDEN} in {f'{key}.' if key else ''}{attribute}, so they are neither "
                    f"trained nor saved (layers in a Python list? take nn.ModuleList; a tensor? "
                    f"nn.Parameter)"
                )


def weights_in(value, depth=4):
    """Everything in `value` that a gradient would be computed for: of layers, lists, dicts."""
    if isinstance(value, torch.Tensor):
        if value.requires_grad and value.is_leaf:
            yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, (list, tuple, set, dict)) and depth:
        for item in value.values() if isinstance(value, dict) else value:
            yield from weights_in(item, depth - 1)


def check_norms(op, affine):
    """Every BatchNorm has the scale it was asked for: none in the supernet."""
    for key, module in op.named_modules():
        if isinstance(module, _BatchNorm) and module.affine != affine:
            raise Fault(
                f"has a BatchNorm ({key or 'itself'}) with affine={module.affine}; pass it the "
                f"affine of the block"
            )


def check_training(name, op, x, stride):
    """Shape, dtype, finite values and gradients of a pass in training mode. Returns the names of
    the weights that got a gradient."""
    op.train()
    buffers = {key: id(buffer) for key, buffer in op.named_buffers()}
    leaf = x.clone().requires_grad_()
    given = leaf * 1  # not a leaf, so a block may try to write into it
    where = f"on maps of {x.shape[2]}x{x.shape[3]}"
    y = call(op, given, where)
    wanted = (x.shape[0], x.shape[1], -(-x.shape[2] // stride), -(-x.shape[3] // stride))
    if not isinstance(y, torch.Tensor):
        raise Fault(f"returns a {type(y).__name__}, not one map")
    if y.dim() != 4 or y.shape[0] != wanted[0]:
        raise Fault(f"returns the shape {tuple(y.shape)} {where}, where {wanted} is needed")
    if y.shape[1] != wanted[1]:
        raise Fault(f"returns {y.shape[1]} channels for {x.shape[1]}; as many must come out")
    if y.shape[2:] != wanted[2:]:
        got, need = ("x".join(map(str, size)) for size in (y.shape[2:], wanted[2:]))
        raise Fault(f"returns {got} pixels {where}; stride {stride} needs {need}, rounded up")
    if y.dtype != x.dtype:
        raise Fault(f"turns float32 into {dtype_name(y.dtype)}")
    if not torch.equal(given, x):
        raise Fault(
            "changes its input in place (inplace=True in its first layer?); the other ops read "
            "the same map"
        )
    if not y.isfinite().all():
        raise Fault(f"gives NaN or infinity {where}")
    for key, buffer in op.named_buffers():
        if buffers.get(key) != id(buffer):
            raise Fault(f"replaces its buffer {key}; write into it instead, with copy_() or add_()")
    reached = check_gradient(name, op, leaf, y, where)
    for key, module in op.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                raise Fault(
                    f"keeps the map of the last call in {f'{key}.' if key else ''}{attribute}, "
                    f"and with it memory; drop it"
                )
    return reached


def check_gradient(name, op, leaf, y, where):
    """The input gets a gradient, finite and not zero everywhere. Returns the names of the weights
    that get one."""
    if name == "none":
        return set()  # that is what it is for
    lost = Fault("passes no gradient to its input (detach(), no_grad(), whole numbers?)")
    if not y.requires_grad:
        raise lost
    trained = {key: p for key, p in op.named_parameters() if p.requires_grad}
    try:
        # random factors, since the plain sum of a normalised map has no gradient
        goal = (y * torch.randn(y.shape)).sum()
        grads = torch.autograd.grad(goal, [leaf, *trained.values()], allow_unused=True)
    except RuntimeError as error:
        raise blame(f"cannot be differentiated {where}: {one_line(error)}", error) from error
    if grads[0] is None:
        raise lost
    for key, grad in zip(["its input", *trained], grads, strict=True):
        if grad is not None and not grad.isfinite().all():
            raise Fault(f"gives {key} a gradient that is NaN or infinite {where}")
    # a map of a pixel or two may well have none
    if leaf.shape[2] > 2 and not grads[0].any() and not has_gradient_off_zero(op, leaf):
        raise Fault(f"passes a gradient of zero to its input {where}")
    return {key for key, grad in zip(trained, grads[1:], strict=True) if grad is not None}


def has_gradient_off_zero(op, x):
    """Whether the input gets a gradient once the weights have left a start at zero."""
    op = copy.deepcopy(op)
    with torch.no_grad():
        for parameter in op.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    (grad,) = torch.autograd.grad(op(x * 1).square().sum(), x, allow_unused=True)
    return grad is not None and bool(grad.any())


def check_evaluation(op, x):
    """In evaluation mode a result depends on the image and the weights, on nothing else."""
    op.eval()
    buffers = {key: buffer.clone() for key, buffer in op.named_buffers()}
    where = f"in evaluation mode, on maps of {x.shape[2]}x{x.shape[3]}"
    with torch.no_grad():
        y, again = call(op, x, where), call(op, x, where)
        if not close(y, again):
            raise Fault(
                "gives another result at the second call in evaluation mode: it keeps a state, or "
                "draws random numbers (F.dropout needs training=self.training)"
            )
        if any(not torch.equal(buffers[key], buffer) for key, buffer in op.named_buffers()):
            raise Fault("changes a buffer in evaluation mode")
        if not close(call(op, x[:1], f"{where}, one image"), y[:1]):
            raise Fault("mixes the images of a batch in evaluation mode")
        other = x.contiguous()
        if not close(call(op, other, f"{where}, contiguous"), y):
            raise Fault("gives another result when the map lies in memory in another order")
    op.train()


def check_weights(name, op, x, C, stride, affine):
    """The state_dict holds all there is: a new block with it computes the same."""
    torch.default_generator.manual_seed(1)
    twin = ops.OPS[name](C, stride, affine=affine)
    try:
        twin.load_state_dict(op.state_dict())
    except Exception as error:
        raise blame(f"cannot be saved and loaded: {one_line(error)}", error) from error
    with torch.no_grad():
        if not close(twin.eval()(x), op.eval()(x)):
            raise Fault(
                f"{HIDDEN}, so they are neither trained nor saved (layers in a Python list? take "
                f"nn.ModuleList; a tensor? nn.Parameter)"
            )


def check_device(op, x):
    """A tensor made in forward must be on the device of the input: tried on the meta device."""
    try:
        copy.deepcopy(op).to("meta").eval()(x.to("meta"))
    except Exception as error:
        text = str(error)
        if "item()" in text or "_local_scalar_dense" in text:
            return  # reads values, which meta tensors lack
        if "device" in text:
            raise Fault(
                "makes a tensor on the CPU while it runs, which fails on a GPU; give it "
                f"device=x.device ({one_line(error)})"
            ) from error


def call(op, x, where):
    try:
        return op(x)
    except Exception as error:
        raise blame(f"fails {where}: {one_line(error)}{raised_at(error)}", error) from error


def raised_at(error):
    """Where in a block an exception comes from, as " (file:line)"; nothing for PyTorch's files."""
    torch_folder = os.path.dirname(torch.__file__)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((torch_folder, __file__, "<")):
            return f" ({place(frame.filename, frame.lineno)})"
    return ""


def place(file, line):
    """A line of a file, by the shorter of its paths."""
    with contextlib.suppress(ValueError):  # another drive of Windows
        file = min(file, os.path.relpath(file), key=len)
    return f"{file}:{line}"


def defined_at(factory):
    """The file and line of an entry of OPS, or of the class that it makes."""
    for source in (getattr(factory, "func", factory), type(factory)):
        with contextlib.suppress(OSError, TypeError):  # made by code, or in C
            return place(inspect.getsourcefile(source), inspect.getsourcelines(source)[1])
    return "no file"


def close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def one_line(error):
    """An exception in one line, with its class: the text comes from PyTorch, or from the block."""
    text = str(error) and f": {errors.one_line(error, 160)}"
    return f"{type(error).__name__}{text}"


def remarks(op, affine, idle):
    """What is allowed and good to know; `idle` are the weights that got no gradient."""
    found = []
    frozen = [key for key, p in op.named_parameters() if not p.requires_grad]
    if frozen:
        found.append(f"frozen: {', '.join(frozen)}")
    if idle:
        found.append(f"without a gradient, so never trained: {', '.join(sorted(idle))}")
    for module in op.modules():
        if isinstance(module, SCALED_NORMS) and any(True for _ in module.parameters()):
            if not affine:
                found.append(
                    f"its {type(module).__name__} has a scale in the supernet, where it competes "
                    f"with alpha"
                )
            break
    return found


def scale_remarks(op, x):
    """A note where the output is very much smaller or larger than the input."""
    with torch.no_grad():
        ratio = (op.train()(x).std() / x.std()).item()
    if WEAK < ratio < STRONG:
        return []
    what = "weighs nothing beside" if ratio < 1 else "drowns"
    return [f"its output is {ratio:.0e} times as large as its input, and {what} the other ops"]


# --- a block in all settings --------------------------------------------------------------------


def faults_of(name, settings, sizes):
    """({fault: settings it was seen in}, remarks) of a block."""
    faults, notes = {}, {}
    for setting in settings:
        try:
            notes.update(dict.fromkeys(check_op(name, *setting, sizes)))
        except Fault as fault:
            faults.setdefault(str(fault), []).append(setting)
    return faults, list(notes)


def setting_text(setting):
    C, stride, affine = setting
    return f"{C} channels, stride {stride}, affine {'on' if affine else 'off'}"


def quick(primitives, C, affines=(False, True)):
    """The quick part, for the start of a run with `C` channels: raises ValueError for the first bad
    block. Stride 2 stands in reduction cells alone, which double the channels."""
    settings = [(n * C, stride, affine) for n, stride in ((1, 1), (2, 2), (4, 2), (4, 1))
                for affine in affines]  # fmt: skip
    for name in primitives:
        if name == "none":
            continue
        faults, _ = faults_of(name, settings, QUICK_SIZES)
        if faults:
            fault, seen = next(iter(faults.items()))
            raise ValueError(
                f"the block {name} ({setting_text(seen[0])}) {fault}. "
                f"{errors.command('check_ops.py', name, *own_ops.flags_that_load(name))} says more"
            )


def require_deterministic(primitives, C, device, affine=False):
    """Raise ValueError for the first block that has no deterministic form on `device`, a
    torch.device, under torch's deterministic algorithms (pick.set_deterministic)."""
    for name in primitives:
        for stride in (1, 2) if name != "none" else ():
            try:
                with torch.random.fork_rng([device] if device.type == "cuda" else []):
                    op = ops.OPS[name](C, stride, affine=affine).to(device)
                    x = torch.randn(2, C, 8, 8, device=device, requires_grad=True)
                    op(x * 1).square().sum().backward()
            except RuntimeError as error:
                if not errors.no_deterministic_form(error):
                    raise
                raise ValueError(
                    f"the block {name} has no deterministic form on {device.type} "
                    f"({str(error).split()[0]}); leave it out, or leave out --deterministic"
                ) from error


# --- the command --------------------------------------------------------------------------------


def cost(name, C, stride, size, batch, device):
    """Parameters, multiply-adds of one image, milliseconds forward and backward of a batch, and how
    the supernet runs the block."""
    op = ops.OPS[name](C, stride, affine=True).to(device)
    x = torch.randn(batch, C, *size, device=device, requires_grad=True)
    times = []
    for _ in range(6):  # the first warms up
        start = time.perf_counter()
        y = op(x * 1).sum()
        y.item()  # waits for the device
        middle = time.perf_counter()
        if name != "none":
            torch.autograd.grad(y, x)[0].sum().item()
        times.append((middle - start, time.perf_counter() - middle))
    forward, backward = (1e3 * statistics.median(part) for part in zip(*times[1:], strict=True))
    madds = utils.multiply_adds(op, C, size)
    if name == "none":
        how = "left out"
    else:
        looped = Fan(C, stride, 2, [name]).looped
        how = f"{EDGE_BY_EDGE}: {looped[name]}" if looped else "wide"
    return utils.count_params(op), madds, forward, backward, how


def parse(argv):
    """The flags of the command, names and device checked."""
    parser = Parser(
        "check_ops.py", description="Try every block of OPS and say what is wrong with it."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="blocks (default: all of OPS)")
    parser.add_argument("--channels", type=channel_counts, default=[7, 16], metavar="LIST",
                        help="channels to try, separated by commas (default: 7,16)")  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="cpu",
                        help="for the times")  # fmt: skip
    parser.add_argument("--threads", type=threads, help="CPU threads of torch (default: all cores)")
    parser.add_argument("--ops", metavar="FILE", help="blocks of your own: a Python file, which is "
                        "run, that defines OPS; without NAME its blocks are tried")  # fmt: skip
    args = parser.parse_args(argv)
    with errors.usage_errors("check_ops.py"):
        if args.ops:
            _, own = own_ops.load(args.ops, said=True)
            args.names = args.names or own
        unknown = [name for name in args.names if name not in ops.OPS]
        if unknown:
            raise ValueError(
                f"unknown op {', '.join(unknown)}; {gt.known_ops(ops.OPS, unknown[0])}"
            )
        args.device = pick.pick_device(args.device)
        if args.threads is not None:
            torch.set_num_threads(args.threads)
    args.names = args.names or list(ops.OPS)
    return args


def describe_seen(seen, settings, faults):
    """In which of the settings a fault was seen; with the flag that leaves wrong channels out, if
    any are without a fault. faults  {fault: where it was seen}
    """
    if len(seen) == len(settings):
        return "everywhere"
    text = f"{len(seen)} of {len(settings)}: {setting_text(seen[0])}"
    bad = {C for C, *_ in seen}
    right = sorted({C for C, *_ in settings} - {C for of in faults.values() for C, *_ in of})
    if right and len(seen) == sum(C in bad for C, *_ in settings):
        right = ",".join(map(str, right))
        text += f"; if it is meant for certain numbers of channels, say --channels {right}"
    return text


@command
def main(argv=None):
    args = parse(argv)
    settings = [
        (C, stride, affine) for C in args.channels for stride in (1, 2) for affine in (False, True)
    ]
    C, size, batch = args.channels[-1], (32, 32), 8
    width = max(map(len, args.names))
    print(
        f"{C} channels, {size[0]}x{size[1]} pixels, batch {batch}, "
        f"{pick.Device(args.device).name}\n"
        f"params: learned values; M madds: million multiply-adds of one image; ms: milliseconds of "
        f"a batch"
    )
    print(f"{'':{width}} stride   params  M madds  ms forward  ms backward  in the supernet")
    wrong, slower = [], []
    for name in args.names:
        faults, notes = faults_of(name, settings, SIZES)
        for stride in (1, 2) if not faults else ():
            params, madds, forward, backward, how = cost(name, C, stride, size, batch, args.device)
            slower += [name] if how.startswith(EDGE_BY_EDGE) and name not in slower else []
            print(
                f"{name:{width}} {stride:6} {params:8,} {madds / 1e6:8.2f} {forward:11.2f} "
                f"{backward:12.2f}  {how}"
            )
        for fault, seen in faults.items():
            print(f"{name:{width}}  WRONG  {fault} ({describe_seen(seen, settings, faults)})")
        if faults:
            print(f"{name:{width}}         defined in {defined_at(ops.OPS[name])}")
        for note in notes:
            print(f"{name:{width}}  note   {note}")
        wrong += [name] if faults else []
    if slower:
        print(f"{EDGE_BY_EDGE} (only slower, not wrong): {', '.join(slower)}")
    n = len(args.names)
    if wrong:
        print(f"{len(wrong)} of {plural(n, 'block')} wrong: {', '.join(wrong)}")
        raise SystemExit(1)
    print(
        f"{plural(n, 'block')} tried, all right: {', '.join(map(str, args.channels))} channels, "
        f"stride 1 and 2, affine on and off, maps of {', '.join(f'{h}x{w}' for h, w in SIZES)}"
    )


if __name__ == "__main__":
    main()
