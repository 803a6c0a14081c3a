//! The weights of a network as matrices in f64, each read once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::approx::Approx;
use crate::Error;
use crate::bound::Block;
use crate::source::Source;
use crate::spectral::Matrix;

/// The matrices of a network's weights. A proof in one pass keeps none.
pub struct Weights<'a> {
    source: &'a dyn Source,
    keep: bool,
    known: RefCell<HashMap<String, Rc<Approx>>>,
}

impl<'a> Weights<'a> {
    /// Weights of `source`; `keep` them for the next pass.
    pub fn new(source: &'a dyn Source, keep: bool) -> Self {
        Self { source, keep, known: RefCell::default() }
    }

    /// A block of a weight; a vector is one row.
    pub(super) fn block(&self, block: &Block) -> Result<Rc<Approx>, Error> {
        let name = block.to_string();
        if let Some(known) = self.known.borrow().get(&name) {
            return Ok(known.clone());
        }
        let mut m = Matrix::from_tensor(&block.weight, &self.source.tensor(&block.weight)?)?;
        if block.rows.count > 1 {
            m = m.row_block(block.rows.index, block.rows.count);
        }
        if block.columns.count > 1 {
            m = m.column_block(block.columns.index, block.columns.count);
        }
        let found = Rc::new(Approx::exact(m.rows, m.columns, m.data));
        if self.keep {
            self.known.borrow_mut().insert(name, found.clone());
        }
        Ok(found)
    }

    /// A whole weight.
    pub(super) fn get(&self, name: &str) -> Result<Rc<Approx>, Error> {
        self.block(&Block::whole(name))
    }

    /// A vector as a column.
    pub(super) fn column(&self, name: &str) -> Result<Approx, Error> {
        Ok(self.get(name)?.t())
    }
}
