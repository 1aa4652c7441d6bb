"""Fourier transforms."""

from __future__ import annotations

from collections.abc import Mapping

from archir.ir.operators.operator import Operator, alike

OPERATORS: Mapping[str, Operator] = alike(
    """
    fft_fft fft_fft2 fft_fftfreq fft_fftn fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ihfft
    fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn _fft_c2c
    _fft_c2r _fft_r2c stft istft
    """
)
