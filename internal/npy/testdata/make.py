"""Writes the array files of this directory with NumPy: k - 1.5 for k = 0, 1, ... in C order."""

import numpy as np
from numpy.lib import format as npy


def save(name, shape, dtype, order="C", version=None):
    a = (np.arange(np.prod(shape)) - 1.5).reshape(shape).astype(dtype)
    with open(f"{name}.npy", "wb") as f:
        npy.write_array(f, np.array(a, order=order), version=version)


save("f4_1d", (5,), "<f4")
save("f4_2d", (3, 4), "<f4")
save("f4_3d", (2, 3, 4), "<f4")
save("f2_2d", (3, 4), "<f2")
save("f8_2d", (3, 4), "<f8")
save("f4_2d_fortran", (3, 4), "<f4", order="F")
save("f8_3d_fortran", (2, 3, 4), "<f8", order="F")
save("f4_2d_v2", (3, 4), "<f4", version=(2, 0))
save("f4_2d_v3", (3, 4), "<f4", version=(3, 0))
save("f4_empty", (0, 4), "<f4")
