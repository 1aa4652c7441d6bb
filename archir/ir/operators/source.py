"""Operators that make data: constants, positions and random numbers."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.operators.operator import Movement, Operator, alike

OPERATORS: Mapping[str, Operator] = {
    **alike(
        "empty_like full_like new_empty new_empty_strided new_full new_ones new_zeros ones_like zero zeros_like",
        Operator(moves=Movement.FILL),
    ),
    "bernoulli": Operator(pointwise=True),
    "rrelu": Operator(pointwise=True, mode="training"),
    **alike(
        """
        arange bartlett_window blackman_window empty empty_permuted empty_strided eye full hamming_window hann_window
        kaiser_window linspace logspace ones range scalar_tensor tril_indices triu_indices zeros
        binomial cauchy exponential geometric log_normal multinomial normal normal_functional poisson rand rand_like
        randint randint_like randn randn_like random randperm rrelu_with_noise_functional uniform
        """
    ),
}
