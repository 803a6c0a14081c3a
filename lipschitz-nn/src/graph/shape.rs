//! Shapes of values.

/// The shape of one value, without the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Token ids.
    Ids,
    /// `[tokens, dim]`, any number of tokens.
    Tokens(usize),
    /// `[dim]`.
    Vector(usize),
    /// `[channels, height, width]`.
    Image(usize, usize, usize),
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Shape::Ids => write!(f, "token ids"),
            Shape::Tokens(d) => write!(f, "[tokens, {d}]"),
            Shape::Vector(d) => write!(f, "[{d}]"),
            Shape::Image(c, h, w) => write!(f, "[{c}, {h}, {w}]"),
        }
    }
}
