"""The implementations of the ops, in order of preference.

A backend is a module with `refusal(call) -> Optional[str]` and `run(op, args) -> Tensor`.
"""

from . import native, reference, triton

BACKENDS = {"native": native, "triton": triton, "reference": reference}
