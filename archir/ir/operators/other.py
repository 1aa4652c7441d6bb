"""Operators of which nothing is known here: linear algebra, Fourier transforms, losses, properties of tensors."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.operators.operator import Operator, alike

OPERATORS: Mapping[str, Operator] = {
    **alike(
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
    ),
    **alike(
        """
        fft_fft fft_fft2 fft_fftfreq fft_fftn fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ihfft
        fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn _fft_c2c
        _fft_c2r _fft_r2c stft istft
        """
    ),
    **alike(
        """
        binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy_loss ctc_loss
        hinge_embedding_loss huber_loss kl_div l1_loss margin_ranking_loss mse_loss multi_margin_loss
        multilabel_margin_loss nll_loss nll_loss2d nll_loss2d_forward nll_loss_forward nll_loss_nd poisson_nll_loss
        smooth_l1_loss soft_margin_loss triplet_margin_loss
        """
    ),
    **alike(
        """
        can_cast dim is_complex is_floating_point is_same_size is_signed numel size stride sym_numel sym_size sym_stride
        sym_storage_offset _shape_as_tensor
        """
    ),
}
