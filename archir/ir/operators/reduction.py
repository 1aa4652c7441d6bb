"""Reductions, sorts and running sums."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.operators.operator import SELF, Operator, alike

OPERATORS: Mapping[str, Operator] = {
    **alike("mean sum cumsum trace diff sum_to_size", Operator(linear=SELF)),
    **alike("max.other min.other", Operator(pointwise=True)),
    **alike(
        """
        all allclose amax amin aminmax _aminmax any argmax argmin argsort bincount count_nonzero cummax cummin cumprod
        cumulative_trapezoid dist equal frobenius_norm histc kthvalue linalg_matrix_norm linalg_norm linalg_vector_norm
        logcumsumexp logsumexp max median min mode msort nanmean nanmedian nanquantile nansum norm nuclear_norm prod
        quantile sort special_logsumexp std std_mean topk trapezoid trapz var var_mean histogram histogramdd
        segment_reduce corrcoef cov is_nonzero item _local_scalar_dense _is_all_true _is_any_true
        """
    ),
}
