//! The options of an operator. Each must be one that its reader asks for.

use super::Refused;
use super::operators::Here;
use crate::formats::onnx::{Attribute, kind};

pub(super) struct Attributes<'a> {
    here: Here<'a>,
    left: Vec<&'a Attribute>,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(here: Here<'a>) -> Result<Self, Refused> {
        let all: Vec<&Attribute> = here.node.attribute.iter().collect();
        for (i, attribute) in all.iter().enumerate() {
            if all.iter().skip(i + 1).any(|other| other.name == attribute.name) {
                return here.refuse(format!("says `{}` twice", attribute.name));
            }
        }
        Ok(Self { here, left: all })
    }

    fn take(&mut self, name: &str, kind: i32) -> Result<Option<&'a Attribute>, Refused> {
        let Some(at) = self.left.iter().position(|a| a.name == name) else { return Ok(None) };
        let found = self.left.swap_remove(at);
        if found.r#type != kind {
            return self.here.refuse(format!("has `{name}` of another type than is known"));
        }
        Ok(Some(found))
    }

    pub(super) fn whole(&mut self, name: &str) -> Result<Option<i64>, Refused> {
        Ok(self.take(name, kind::INT)?.map(|a| a.i))
    }

    pub(super) fn int(&mut self, name: &str, otherwise: i64) -> Result<i64, Refused> {
        Ok(self.whole(name)?.unwrap_or(otherwise))
    }

    /// Yes or no, as 1 or 0; programs differ in what other numbers mean.
    pub(super) fn flag(&mut self, name: &str, otherwise: bool) -> Result<bool, Refused> {
        match self.int(name, i64::from(otherwise))? {
            0 => Ok(false),
            1 => Ok(true),
            n => self.here.refuse(format!("has `{name}` = {n}, wanted 0 or 1")),
        }
    }

    pub(super) fn number(&mut self, name: &str) -> Result<Option<f64>, Refused> {
        Ok(self.take(name, kind::FLOAT)?.map(|a| f64::from(a.f)))
    }

    pub(super) fn float(&mut self, name: &str, otherwise: f64) -> Result<f64, Refused> {
        Ok(self.number(name)?.unwrap_or(otherwise))
    }

    pub(super) fn floats(&mut self, name: &str) -> Result<Option<Vec<f64>>, Refused> {
        let found = self.take(name, kind::FLOATS)?;
        Ok(found.map(|a| a.floats.iter().map(|x| f64::from(*x)).collect()))
    }

    pub(super) fn ints(&mut self, name: &str) -> Result<Option<Vec<i64>>, Refused> {
        Ok(self.take(name, kind::INTS)?.map(|a| a.ints.clone()))
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Refused> {
        let found = self.take(name, kind::STRING)?;
        Ok(found.map(|a| String::from_utf8_lossy(&a.s).into_owned()))
    }

    /// Passes over a tensor, which was taken out of the graph when the file was read.
    pub(super) fn passed(&mut self, name: &str) {
        self.left.retain(|a| a.name != name || a.r#type != kind::TENSOR);
    }

    /// Fails if there is one that nobody asked for.
    pub(super) fn finish(self) -> Result<(), Refused> {
        match self.left.first() {
            Some(a) => self.here.refuse(format!("has the option `{}`, which is not known", a.name)),
            None => Ok(()),
        }
    }
}
