//! A safe face for the matrix product of the `gemm` crate, over strided views.

use gemm::Parallelism;

use super::real::Real;

/// A view of a matrix: element (i, j) is `data[i·row + j·column]`.
#[derive(Clone, Copy)]
pub struct Strided<'a, T> {
    /// The elements; the first is (0, 0).
    pub data: &'a [T],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Distance between two rows.
    pub row: usize,
    /// Distance between two columns.
    pub column: usize,
}

impl<'a, T> Strided<'a, T> {
    /// A row-major matrix whose rows lie `row` elements apart.
    pub fn rows(data: &'a [T], rows: usize, columns: usize, row: usize) -> Self {
        Self { data, rows, columns, row, column: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row: self.column, column: self.row, ..self }
    }

    /// Rows `from..to`.
    pub fn part(self, from: usize, to: usize) -> Self {
        let start = (from * self.row).min(self.data.len());
        Self { data: &self.data[start..], rows: to - from, ..self }
    }

    fn inside(&self) -> bool {
        self.rows == 0
            || self.columns == 0
            || (self.rows - 1) * self.row + (self.columns - 1) * self.column < self.data.len()
    }
}

/// `out = keep·out + factor·(a b)`, `out` row-major with rows `row` elements apart; on all cores if `parallel`.
///
/// # Panics
/// If the shapes do not fit: a mistake of the caller, never of an input.
#[allow(unsafe_code)]
pub fn gemm<T: Real>(out: &mut [T], row: usize, a: Strided<T>, b: Strided<T>, keep: f64, factor: f64, parallel: bool) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert!(k == b.rows && n <= row.max(n) && a.inside() && b.inside(), "gemm: shapes");
    assert!(m == 0 || n == 0 || (m == 1 || row >= n) && (m - 1) * row + n <= out.len(), "gemm: output");
    // Below this, starting threads costs more than they save.
    let parallelism = if parallel && m * n * k > 1 << 20 { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: the asserts above place every element that the product reads or writes inside its slice, rows of the
    // output do not overlap, and `out` is borrowed mutably, so it aliases neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            row as isize,
            keep != 0.0,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            T::of(keep),
            T::of(factor),
            false,
            false,
            false,
            parallelism,
        );
    }
}
