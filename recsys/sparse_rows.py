"""A sparse matrix as a safetensors file.

Suffixes: I = rows, V = columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse
from safetensors.numpy import load_file, save_file

__all__ = ["read_sparse", "write_sparse"]


def write_sparse(rows_IV: scipy.sparse.csr_matrix, path: Path) -> None:
    """Write the arrays of a CSR matrix; values as float32."""
    arrays = {
        "indptr": rows_IV.indptr.astype(np.int64),
        "indices": rows_IV.indices.astype(np.int32),
        "data": rows_IV.data.astype(np.float32),
        "shape": np.asarray(rows_IV.shape, dtype=np.int64),
    }
    save_file(arrays, path)


def read_sparse(path: Path) -> scipy.sparse.csr_matrix:
    """Read what :func:`write_sparse` wrote."""
    parts = load_file(path)
    shape = tuple(int(size) for size in parts["shape"])
    return scipy.sparse.csr_matrix((parts["data"], parts["indices"], parts["indptr"]), shape=shape)
