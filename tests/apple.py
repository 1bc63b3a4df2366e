"""A tensor as Apple's GPUs (MPS) have it: without float64."""

import torch


class AppleTensor(torch.Tensor):
    """Refuses every call that asks for float64, until it has left the GPU by cpu()."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        asked = any(value is torch.float64 for value in (*args, *kwargs.values()))
        if asked or function is torch.Tensor.double:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        result = super().__torch_function__(function, types, args, kwargs)
        return result.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else result


def on_apple(tensor):
    """The tensor as if it were on an Apple's GPU."""
    return tensor.as_subclass(AppleTensor)
