"""Linear algebra: decompositions, solutions and functions of matrices."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.operators.operator import Operator, alike

OPERATORS: Mapping[str, Operator] = alike(
    """
    cholesky cholesky_inverse cholesky_solve det inverse linalg_cholesky linalg_cholesky_ex linalg_cond linalg_det
    linalg_diagonal linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh linalg_inv linalg_inv_ex linalg_lstsq
    linalg_matrix_exp linalg_matrix_power linalg_matrix_rank linalg_pinv linalg_qr linalg_slogdet linalg_solve
    linalg_solve_ex linalg_solve_triangular linalg_svd linalg_svdvals linalg_vander logdet matrix_exp matrix_power
    pinverse qr slogdet svd triangular_solve vander _linalg_det _linalg_eigh _linalg_slogdet _linalg_solve_ex
    _linalg_svd geqrf linalg_householder_product linalg_ldl_factor linalg_ldl_factor_ex linalg_ldl_solve linalg_lu
    linalg_lu_factor linalg_lu_factor_ex linalg_lu_solve linalg_tensorinv linalg_tensorsolve lu_solve lu_unpack
    orgqr ormqr
    """
)
