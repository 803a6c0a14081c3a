//! Non-negative numbers with their own exponent, every operation rounded up.
