"""Equal ops on the edges that leave one node, run as one wide op.

A node of the supernet feeds every later node of its cell, and every edge carries every op:

    node j --+-- sep_conv --> node 2                    +-------------------+--> node 2
             +-- sep_conv --> node 3      becomes   j --|  sep_conv on 3*C  |--> node 3
             +-- sep_conv --> node 4                    +-------------------+--> node 4

The k edges have weights of their own but one input, so their ops are one op with k*C channels:
convolutions become grouped, so that no edge sees another's channels, and one BatchNorm over k*C
channels keeps k*C separate statistics. What has no weights (ReLU, pooling and its BatchNorm) is
the same on all k edges and is computed once. The result is the same to round-off, from a fraction
of the kernels and of the memory.

A map is *edge-invariant* while it is the same on all edges, (N, C, H, W), and *wide* after the
first op with weights, (N, k*C, H, W): channels e*C .. e*C + C - 1 belong to edge e.

Users write ordinary blocks. `widen` rewrites k of them through torch.fx; a block that holds
anything not listed here (a custom layer, control flow that depends on data, channel slices) is
left alone and run edge by edge, and `Fan.looped` says why.
"""

import copy
import operator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from console.errors import is_out_of_memory
from models import ops

# Without weights, each channel for itself: the same on an edge-invariant and on a wide map.
PLAIN = {
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid,
    nn.Sigmoid, nn.Tanh, nn.Identity, nn.AvgPool2d, nn.MaxPool2d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
}  # fmt: skip
CONVS = {nn.Conv2d, ops.DilatedConv2d, ops.EvenPixels}
SUMS = {operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul}
PLAIN_FUNCTIONS = {F.relu, F.silu, F.gelu, torch.relu, torch.sigmoid, torch.tanh}


class CannotWiden(Exception):
    """A block holds something that `widen` does not know; the message names it."""


def expand(x, k):
    """Edge-invariant -> wide: (N, C, H, W) -> (N, k*C, H, W)."""
    return x if k == 1 else torch.cat([x] * k, dim=1)  # cat keeps the memory format


def cat_edges(maps, k):
    """Concatenate wide maps (N, k*C_i, H, W) edge by edge -> (N, k*sum(C_i), H, W)."""
    edges = zip(*(wide.chunk(k, dim=1) for wide in maps), strict=True)
    return torch.cat([part for edge in edges for part in edge], dim=1)


class Tracer(fx.Tracer):
    """Looks into every module but layers of torch.nn and our own, which are taken as a whole."""

    def __init__(self):
        super().__init__(autowrap_modules=())  # by default math: long to wrap, and never widened

    def is_leaf_module(self, module, name):
        return type(module) in PLAIN | CONVS or super().is_leaf_module(module, name)


class Widened(NamedTuple):
    """What `widen` makes of k blocks."""

    # ReLU and expansion at the start and BatchNorm at the end are cut off, since the caller can do
    # them once for many blocks
    body: nn.Module
    relu: bool  # the input must be passed through a ReLU first
    wide: bool  # the input must be expanded first
    norm: nn.Module | None  # the BatchNorm without scale that ended the blocks
    edge_invariant: bool  # the output is the same on all edges, (N, C, H, W)


def widen(blocks, C):
    """k equal blocks of C channels -> `Widened`, one module with the weights of all, tried out on a
    small input. Raises CannotWiden."""
    widened = rewrite(blocks)
    if not gives_the_same(blocks, widened, C):
        raise CannotWiden("gives another result when widened")
    return widened


def gives_the_same(blocks, widened, C):
    """Whether the wide form of the blocks computes what they do, in evaluation mode."""
    modules = [module for block in blocks for module in block.modules()]
    modes = [module.training for module in modules]
    x = torch.linspace(-9, 9, 2 * C * 64).sin().view(2, C, 8, 8)  # draws no random number
    y = F.relu(x) if widened.relu else x
    y = expand(y, len(blocks)) if widened.wide else y
    try:
        with torch.no_grad():
            wanted = torch.cat([block.eval()(x) for block in blocks], dim=1)
            y = widened.body.eval()(y)
            y = widened.norm.eval()(y) if widened.norm is not None else y
            y = expand(y, len(blocks)) if widened.edge_invariant else y
        return y.shape == wanted.shape and torch.allclose(y, wanted, rtol=1e-3, atol=1e-4)
    except RuntimeError as error:  # shapes that do not fit each other
        if is_out_of_memory(error):
            raise
        return False
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        widened.body.train()


def rewrite(blocks):
    """The widening itself, from the first block's graph. Raises CannotWiden."""
    try:
        graph = Tracer().trace(blocks[0])
    except Exception as error:  # whatever a block does that cannot be traced
        raise CannotWiden(f"cannot be traced ({error})") from error
    state = Rewrite(blocks, graph)
    for node in list(graph.nodes):
        getattr(state, node.op)(node)  # as torch.fx.Interpreter does it
    return state.result()


class Rewrite:
    """One pass over the graph of a block, in the order of execution; a method per kind of node."""

    def __init__(self, blocks, graph):
        self.blocks = blocks
        self.graph = graph
        self.invariant = {}  # node: whether its map is the same on all edges
        self.expanded = {}  # edge-invariant node: the node that expands it
        self.modules = {}  # name: the module that takes its place

    def wide(self, node):
        """The node itself if it is wide, else the one that expands it."""
        if not self.invariant[node]:
            return node
        if node not in self.expanded:
            with self.graph.inserting_after(node):
                new = self.graph.call_function(expand, (node, len(self.blocks)))
            self.expanded[node], self.invariant[new] = new, False
        return self.expanded[node]

    def placeholder(self, node):
        if self.invariant:
            raise CannotWiden("takes more than one input")
        self.invariant[node] = True

    def call_module(self, node):
        name, (source,) = node.target, node.all_input_nodes
        if name in self.modules:
            raise CannotWiden(f"runs its module {name} twice")
        parts = [block.get_submodule(name) for block in self.blocks]
        layer, kind = parts[0], type(parts[0])
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise CannotWiden(f"has hooks on {name}")
        if kind in PLAIN or (
            kind is nn.BatchNorm2d and not layer.affine and self.invariant[source]
        ):
            self.modules[name] = copy.deepcopy(layer)
            if hasattr(layer, "inplace"):
                self.modules[name].inplace = False  # others may read the same input
            self.invariant[node] = self.invariant[source]
        elif kind in CONVS and layer.groups == 1 and self.invariant[source]:
            self.modules[name] = wide_conv(parts, groups=1)  # all edges read one map
            self.invariant[node] = False
        elif kind in CONVS or kind is nn.BatchNorm2d:
            node.replace_input_with(source, self.wide(source))
            if kind is nn.BatchNorm2d:
                self.modules[name] = wide_norm(parts)
            else:
                self.modules[name] = wide_conv(parts, groups=len(parts) * layer.groups)
            self.invariant[node] = False
        else:
            raise CannotWiden(f"holds a {kind.__name__}")

    def call_function(self, node):
        inputs = node.all_input_nodes
        self.invariant[node] = all(self.invariant[i] for i in inputs)
        if node.target in SUMS:
            if not self.invariant[node]:
                for i in inputs:
                    node.replace_input_with(i, self.wide(i))
        elif node.target is torch.cat and (*node.args[1:], *node.kwargs.values()) == (1,):
            if not self.invariant[node]:
                node.args = ([self.wide(i) for i in node.args[0]], len(self.blocks))
                node.kwargs, node.target = {}, cat_edges
        elif node.target not in PLAIN_FUNCTIONS and not (
            node.target is F.pad and len(node.args[1]) <= 4
        ):
            name = getattr(node.target, "__name__", node.target)
            raise CannotWiden("indexes a tensor" if name == "getitem" else f"calls {name}")

    def call_method(self, node):
        raise CannotWiden(f"calls the method {node.target}")

    def get_attr(self, node):
        raise CannotWiden(f"reads its attribute {node.target}")

    def output(self, node):
        if node.args[0] not in self.invariant:
            raise CannotWiden("returns more than one map")

    def result(self):
        """Cut off what the caller does once for many blocks, at both ends, and build the module."""
        (entry,) = self.graph.find_nodes(op="placeholder")
        (end,) = self.graph.find_nodes(op="output")
        result = end.args[0]
        invariant, norm = self.invariant[result], None
        if result.op == "call_module" and not invariant:
            layer = self.modules[result.target]
            if type(layer) is nn.BatchNorm2d and not layer.affine and len(result.users) == 1:
                norm = layer
                self._remove(result, result.args[0])
        relu = self._cut_readers(entry, lambda n: type(self.modules.get(n.target)) is nn.ReLU)
        wide = self._cut_readers(entry, lambda n: n.target is expand)

        root = nn.Module()
        for name, layer in self.modules.items():
            *path, leaf = name.split(".")
            parent = root
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            parent.add_module(leaf, layer)
        self.graph.lint()
        body = fx.GraphModule(root, self.graph)
        return Widened(body, relu, wide, norm, invariant)

    def _cut_readers(self, entry, is_kind):
        """Whether all that read the input are of one kind. If so, they are removed."""
        readers = list(entry.users)
        found = bool(readers) and all(map(is_kind, readers))
        for node in readers if found else ():
            self._remove(node, entry)
        return found

    def _remove(self, node, source):
        """Take a node out of the graph, and its module with it: what read it reads `source`."""
        self.modules.pop(node.target, None)
        node.replace_all_uses_with(source)
        self.graph.erase_node(node)


def wide_conv(convs, groups):
    """k convolutions as one with so many groups; one group reads one map."""
    if convs[0].padding_mode != "zeros":
        raise CannotWiden(f"pads with {convs[0].padding_mode}")
    conv = copy.deepcopy(convs[0])
    conv.in_channels *= groups // conv.groups
    conv.out_channels *= len(convs)
    conv.groups = groups
    return _joined(conv, convs)


def wide_norm(norms):
    """k BatchNorms as one over k times the channels."""
    norm = copy.deepcopy(norms[0])
    norm.num_features *= len(norms)
    return _joined(norm, norms)


def _joined(module, parts):
    """Give `module` the parameters and buffers of `parts`, joined along their first dimension."""
    for name, value in list(module.named_parameters()):
        joined = torch.cat([getattr(part, name).detach() for part in parts])
        setattr(module, name, nn.Parameter(joined, value.requires_grad))
    for name, value in list(module.named_buffers()):
        if value.dim():
            setattr(module, name, torch.cat([getattr(part, name) for part in parts]))
    return module
