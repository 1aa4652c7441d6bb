"""archir: a compiler whose programs are neural-network architectures."""
