"""What `module.c` gives; addresses are `Tensor.data_ptr()`, and the C files say what lies there."""

SUPPORTED: int  # 1: this processor has what the kernels need. 0: there is nothing else in the module

def multiply(
    rows: int, tiles: int, out: int, n: int, outputs: int, groups: int, bits: int, as_float: bool, threads: int, /
) -> None: ...
def attend(
    fused: int,
    rotations: int,
    memory: int,
    spans: int,
    tables: int,
    queries: int,
    out: int,
    n: int,
    count: int,
    query_heads: int,
    kv_heads: int,
    size: int,
    pages: int,
    page: int,
    threads: int,
    /,
) -> None: ...
def normalise(rows: int, weight: int, epsilon: float, out: int, n: int, columns: int, threads: int, /) -> None: ...
def gate(rows: int, out: int, n: int, columns: int, threads: int, /) -> None: ...
