//! Spectral norms: power iteration proposes, Cholesky proves.
