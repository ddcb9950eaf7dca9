"""RMS norm (Zhang and Sennrich 2019, arXiv:1910.07467): x / sqrt(mean(x**2) + epsilon) * weight."""

import attrs
import torch

__all__ = ["RMSNorm"]


@attrs.frozen(eq=False)
class RMSNorm:
    """Normalises rows, bfloat16 [n, hidden] to bfloat16 [n, hidden].

    Computed as the layer norm of (x, -x), whose mean is zero and whose variance is mean(x**2): on the CPU torch's RMS norm
    is six kernels (13.6 us for one row of 576), its layer norm is one, and this takes 5.3 us, 61 times per token.
    Each row is reduced by itself, so the law holds.
    """

    mirrored: torch.Tensor  # float32 [2 * hidden]: the weight, and then zeros, since that half is thrown away
    shift: torch.Tensor  # float32 zeros [2 * hidden]: the kernel wants both or neither
    epsilon: float

    @classmethod
    def from_weight(cls, weight: torch.Tensor, epsilon: float) -> "RMSNorm":
        """Build from float [hidden]."""
        weight = weight.float()
        return cls(torch.cat([weight, torch.zeros_like(weight)]), torch.zeros(2 * weight.numel()), epsilon)

    def to(self, device: torch.device) -> "RMSNorm":
        """Return the same norm on `device`."""
        return RMSNorm(self.mirrored.to(device), self.shift.to(device), self.epsilon)

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        return self.mirrored.nbytes + self.shift.nbytes

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalise each row."""
        doubled = torch.cat([rows, -rows], dim=-1)
        normed = torch.layer_norm(doubled, self.mirrored.shape, self.mirrored, self.shift, self.epsilon)
        return normed[:, : rows.shape[1]].contiguous()
