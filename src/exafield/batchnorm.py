"""Batch normalisation over all ranks, on any device.

torch's own needs CUDA and the default process group; this one uses a world's private channel, so it works beside a
reducer without either noticing the other.
"""

from typing import Any

import torch
from torch import Tensor, nn

from exafield.channel import Channel
from exafield.trace import Trace
from exafield.world import World

#: Of what layers of this kind send, in a trace: a reduction that nothing hides.
LANE = "reduce batch norms"


class _Sum(torch.autograd.Function):
    """The sum over all ranks. Its gradient is the sum of all ranks' gradients, since each rank's output used it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, channel: Channel, trace: Trace) -> Tensor:
        ctx.channel, ctx.trace = channel, trace
        return _summed(x.clone(), channel, trace)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _summed(grads[0].contiguous().clone(), ctx.channel, ctx.trace), None, None


def _summed(total: Tensor, channel: Channel, trace: Trace) -> Tensor:
    # Nothing can be done meanwhile. On a GPU the host does not wait, and the span holds the launch alone.
    with trace.span(LANE, "all_reduce", bytes=total.nbytes):
        channel.all_reduce(total).wait()
    return total


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation (Ioffe and Szegedy, arXiv:1502.03167) with the statistics of all ranks' samples.

    In evaluation it is plain batch normalisation. Ranks may hold different numbers of samples.

    Args:
        features: channels: dim 1 of the input (batch, channel, ...).
        world: whose ranks share statistics; made on all of them together, and run by all together.
        eps, momentum: as in :class:`torch.nn.BatchNorm2d`.
        channels: by device, shared with other layers that all ranks run in the same order.
    """

    def __init__(
        self,
        features: int,
        world: World,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        channels: dict[torch.device, Channel] | None = None,
    ) -> None:
        super().__init__(features, eps, momentum)
        self._world = world
        self._channels = channels if channels is not None else {}
        #: Takes a span for each message.
        self.trace = Trace(enabled=False)
        self._connect(torch.empty(0, device=world.device))

    @classmethod
    def convert(cls, module: nn.Module, world: World, channels: dict[torch.device, Channel] | None = None) -> nn.Module:
        """Replaces every batch normalisation in a module, in place where it can. On all ranks together.

        The layers share one channel: all ranks must run them in the same order.
        """
        channels = channels if channels is not None else {}
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, cls):
            if not (module.affine and module.track_running_stats and module.momentum is not None):
                raise ValueError(
                    f"cannot synchronise {module}: it must have affine=True, track_running_stats=True and a momentum"
                )
            made = cls(module.num_features, world, module.eps, module.momentum, channels=channels)
            made.to(module.weight.device, module.weight.dtype).load_state_dict(module.state_dict())
            return made.train(module.training)
        for name, child in list(module.named_children()):
            setattr(module, name, cls.convert(child, world, channels))
        return module

    def _connect(self, like: Tensor) -> Channel:
        if like.device not in self._channels:
            self._channels[like.device] = self._world.channel(like.device)
        return self._channels[like.device]

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002  (torch's name)
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(
                f"SyncBatchNorm({self.num_features}) takes (batch, {self.num_features}, ...), got {tuple(input.shape)}"
            )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalises (batch, channel, ...) per channel."""
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        dims = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        count = x.new_tensor([x.numel() / x.shape[1]])
        # One message: sums of x, and the number of values.
        channel = self._connect(x)
        total = _Sum.apply(torch.cat([x.sum(dims), count]), channel, self.trace)
        mean = total[:-1] / total[-1]
        centred = x - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(dims), channel, self.trace) / total[-1].detach()
        with torch.no_grad():
            number = total[-1].detach()
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), momentum)
            unbiased = variance.detach() * number / (number - 1).clamp(min=1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
            self.num_batches_tracked += 1
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        result: Tensor = normal * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)
