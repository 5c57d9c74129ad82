"""What an op declares once and everything else reads: schema, maths, cases, operation counts.

A spec sits beside the reference that defines its op. `library` registers the operator from it,
`dispatch` describes calls with it, tests and benches iterate over its cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from torch import Tensor

Args = Mapping[str, Any]
"""Arguments of an operator by their schema names."""


@dataclass(frozen=True)
class OpSpec:
    """One operator of the namespace `tnt_kernels`.

    Attributes:
        name: operator name; its backward is `<name>_backward`.
        arguments: forward arguments as in the schema language, in order.
        flag: name of the trailing `bool` argument by which autograd asks forward for its second
            output (something backward would else recompute), or None for a single output.
        activation: the input whose gradient is backward's first output.
        weights: differentiable weights in the order of backward's flat second output.
        backward_arguments: backward's arguments between `dy` and `need_d<activation>, need_dw`.
        reference: the definition, in traceable PyTorch; takes the forward arguments.
        fake: shapes of forward: arguments -> empty outputs.
        backward_values: (arguments, second output) -> the values of `backward_arguments`.
        weight_shapes: arguments -> shape of every slot of the flat weight gradient; the slot of
            an absent optional weight is kept.
        dims: arguments -> the sizes that a backend may be picky about.
        macs: arguments -> multiply-accumulates of forward.
        bytes_moved: arguments -> least memory traffic of forward, bytes.
        cases: sizes at which the op is tested and timed.
        make_args: (case, dtype, device, seed) -> forward arguments with random values.
        passthrough: input whose gradient is `dy` itself.
    """

    name: str
    arguments: str
    activation: str
    weights: Sequence[str]
    backward_arguments: str
    reference: Callable[..., Tensor]
    fake: Callable[[Args], Any]
    backward_values: Callable[[Args, Optional[Tensor]], tuple]
    weight_shapes: Callable[[Args], Sequence[tuple]]
    dims: Callable[[Args], Mapping[str, int]]
    macs: Callable[[Args], int]
    bytes_moved: Callable[[Args], int]
    make_args: Callable[..., dict]
    flag: Optional[str] = None
    passthrough: Optional[str] = None
    cases: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    @property
    def argument_names(self) -> tuple:
        """Names of the forward arguments, without the flag."""
        return tuple(part.split()[-1] for part in self.arguments.split(","))

    def typed_by(self, args: Args) -> str:
        """Name of the tensor whose dtype is that of the computation and of the output.

        The activation's, or the first weight's where the activation holds integers.
        """
        return self.activation if args[self.activation].is_floating_point() else self.weights[0]

    @property
    def schema(self) -> str:
        """Forward schema, without name."""
        if self.flag is None:
            return f"({self.arguments}) -> Tensor"
        return f"({self.arguments}, bool {self.flag}) -> (Tensor, Tensor)"

    @property
    def backward_schema(self) -> str:
        """Backward schema, without name."""
        return (
            f"(Tensor dy, {self.backward_arguments}, bool need_d{self.activation}, bool need_dw)"
            " -> (Tensor, Tensor)"
        )


def case_id(case: Mapping[str, Any]) -> str:
    """Readable identifier of a case: `P7-S16-C24-heads4`."""
    return "-".join(f"{key}{value}" for key, value in case.items())
