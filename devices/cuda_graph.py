"""A whole training step as one CUDA graph: recorded once, then started with a single call.

A search step of small maps is thousands of kernels, each over before Python has started the next.
A graph starts them all at once. What it needs:

* inputs at fixed addresses: each batch is copied into the same buffers;
* no wait for the device and no decision that depends on data within the step;
* numbers that stay: search.py and augment.py record the learning rate with the rest, and so every
  epoch anew. A training of a comparison has its rate on the card, and records once.

Where a step cannot be recorded it runs as always, and a warning says why.
"""

import torch

from console.errors import one_line


def record(step, inputs):
    """Record step(*inputs) on the current CUDA device -> a function that runs it again and returns
    its outputs, always the same tensors. Recording itself computes nothing. Raises RuntimeError
    for what cannot be recorded."""
    if not inputs[0].is_cuda:  # the graph would be empty, and no step would be taken again
        raise RuntimeError("the batch is not on a CUDA card")
    graph = torch.cuda.CUDAGraph()
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    before = generator.clone_state()
    # the outer context: torch leaves its recording stream current if recording fails.
    # thread_local: the thread that pins the next batches in memory may go on meanwhile
    try:
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, capture_error_mode="thread_local"),
        ):
            outputs = step(*inputs)
    except BaseException:
        # a generator whose recording has failed refuses to draw from then on
        generator.graphsafe_set_state(before)
        raise

    def replay():
        graph.replay()
        return outputs

    return replay


class Graphed:
    """`step`, a function of tensors that returns tensors, recorded at its second call.

    The first call runs as always, on a side stream: then optimizers make their state and cuDNN
    tries its kernels, neither of which can be recorded. The tensors that a replay returns are
    overwritten by the next.
    """

    def __init__(self, step, warn):
        """`warn(text)` is told why, if the step cannot be recorded."""
        self.step = step
        self.warn = warn
        self.warm = False
        self.inputs = None  # the fixed buffers
        self.replay = None
        self.failed = False

    def __call__(self, *batch):
        if self.failed:
            return self.step(*batch)
        if not self.warm:
            self.warm = True
            return on_side_stream(self.step, batch)
        if self.replay is None:
            self.inputs = [x.clone() for x in batch]
            try:
                self.replay = record(self.step, self.inputs)
            except RuntimeError as error:  # torch's word for all that CUDA refuses
                self.failed = True
                self.warn(
                    f"the step cannot be recorded as a CUDA graph and runs kernel by kernel "
                    f"({one_line(error)})"
                )
                return self.step(*batch)
        if any(x.shape != kept.shape for x, kept in zip(batch, self.inputs, strict=True)):
            return self.step(*batch)
        for x, kept in zip(batch, self.inputs, strict=True):
            kept.copy_(x, non_blocking=True)
        return self.replay()


def on_side_stream(step, batch):
    """step(*batch) on a stream of its own. Recording needs that of the call before it: work on the
    default stream could not be waited for inside the graph."""
    if not batch[0].is_cuda:
        return step(*batch)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outputs = step(*batch)
    torch.cuda.current_stream().wait_stream(stream)
    return outputs
