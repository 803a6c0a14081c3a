//! Matrix products over strided views: faer's, which reach the processor's peak at small sizes too
//! and give the same bits on any number of threads.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::matmul::{self as kernel};
use faer::{Accum, MatMut, MatRef, Par};

use super::real::Real;

/// A view of a matrix: element (i, j) is `data[i·row + j·column]`, where one of `row` and `column`
/// is 1.
#[derive(Clone, Copy)]
pub struct Strided<'a, T> {
    data: &'a [T],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    row: usize,
    column: usize,
}

impl<'a, T> Strided<'a, T> {
    /// A row-major matrix whose rows lie `row` elements apart.
    pub fn rows(data: &'a [T], rows: usize, columns: usize, row: usize) -> Self {
        Self { data, rows, columns, row, column: 1 }
    }

    /// A row-major matrix without gaps; as many rows as `data` holds.
    pub fn dense(data: &'a [T], columns: usize) -> Self {
        Self::rows(data, data.len() / columns, columns, columns)
    }

    /// The elements, with whatever lies between rows.
    pub fn data(&self) -> &'a [T] {
        self.data
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

    fn view(self) -> MatRef<'a, T> {
        match self.column {
            1 => MatRef::from_column_major_slice_with_stride(
                self.data,
                self.columns,
                self.rows,
                self.row,
            )
            .transpose(),
            _ => MatRef::from_column_major_slice_with_stride(
                self.data,
                self.rows,
                self.columns,
                self.column,
            ),
        }
    }
}

/// A row-major output. (faer's own row-major constructor of a strided mutable view swaps the
/// strides in 0.24.)
fn output<T>(out: &mut [T], rows: usize, columns: usize, row: usize) -> MatMut<'_, T> {
    // A single row may be longer than the distance to the next.
    let row = if rows == 1 { columns } else { row };
    MatMut::from_column_major_slice_with_stride_mut(out, columns, rows, row).transpose_mut()
}

/// Below this many multiplications, starting threads costs more than they save.
const PARALLEL: usize = 1 << 20;

fn threads<T>(a: &Strided<T>, b: &Strided<T>, parallel: bool) -> Par {
    if parallel && a.rows * b.columns * a.columns > PARALLEL { Par::rayon(0) } else { Par::Seq }
}

fn accum(keep: bool) -> Accum {
    if keep { Accum::Add } else { Accum::Replace }
}

/// `out = keep·out + factor·(a b)` with `keep` 0 or 1, `out` row-major with rows `row` elements
/// apart; on all cores if `parallel`.
///
/// # Panics
/// If the shapes do not fit: a mistake of the caller, never of an input.
pub fn matmul<T: Real>(
    out: &mut [T],
    row: usize,
    a: Strided<T>,
    b: Strided<T>,
    keep: bool,
    factor: f64,
    parallel: bool,
) {
    let out = output(out, a.rows, b.columns, row);
    let threads = threads(&a, &b, parallel);
    kernel::matmul(out, accum(keep), a.view(), b.view(), T::of(factor), threads);
}

/// The lower triangle of `out = keep·out + factor·(a b)`, `[n, n]` with rows `row` elements apart,
/// by little more than half the work; what is above stays as it is.
///
/// # Panics
/// As [`matmul`].
pub fn tril<T: Real>(
    out: &mut [T],
    row: usize,
    a: Strided<T>,
    b: Strided<T>,
    keep: bool,
    factor: f64,
    parallel: bool,
) {
    let (full, lower) = (BlockStructure::Rectangular, BlockStructure::TriangularLower);
    let (out, threads) = (output(out, a.rows, a.rows, row), threads(&a, &b, parallel));
    triangular::matmul(
        out,
        lower,
        accum(keep),
        a.view(),
        full,
        b.view(),
        full,
        T::of(factor),
        threads,
    );
}

/// All of a product that is symmetric, such as `A Aᵀ` (BLAS's syrk), by the work of [`tril`]; `out`
/// is dense.
///
/// # Panics
/// As [`matmul`].
pub fn syrk<T: Real>(
    out: &mut [T],
    a: Strided<T>,
    b: Strided<T>,
    keep: bool,
    factor: f64,
    parallel: bool,
) {
    tril(out, a.rows, a, b, keep, factor, parallel);
    mirror(out, a.rows);
}

/// Copies the lower triangle of a row-major `[n, n]` to the upper, square by square.
fn mirror<T: Copy>(x: &mut [T], n: usize) {
    const SIDE: usize = 16;
    for top in (0..n).step_by(SIDE) {
        for left in (0..=top).step_by(SIDE) {
            for i in top..(top + SIDE).min(n) {
                for j in left..(left + SIDE).min(i) {
                    x[j * n + i] = x[i * n + j];
                }
            }
        }
    }
}
