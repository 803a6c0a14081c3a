//! Work that Ctrl-C ends.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use lipschitz_certify::Error;
use lipschitz_certify::source::{Rounding, Source};
use lipschitz_nn::Graph;
use lipschitz_nn::checkpoint::Origin;
use pyo3::prelude::*;

use crate::raised;

/// How long Python's signals may wait.
const WAIT: Duration = Duration::from_millis(50);
/// That of a main thread, or more.
const STACK: usize = 16 << 20;

/// Whether work is to end.
pub(crate) struct Stop(AtomicBool);

/// What unwinds where work ends before its time.
struct Stopped;

impl Stop {
    /// Ends the work here if it is to end, by unwinding up to [`interruptible`].
    pub(crate) fn check(&self) {
        if self.0.load(Ordering::Relaxed) {
            resume_unwind(Box::new(Stopped))
        }
    }
}

/// Does work without the interpreter's lock. A signal, such as that of Ctrl-C, reaches Python at once,
/// and if Python raises, the work ends at its next [`Stop::check`].
///
/// # Errors
/// Those of the work; what Python raised.
pub(crate) fn interruptible<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&Stop) -> PyResult<T> + Send,
) -> PyResult<T> {
    let (stop, ended) = (Stop(AtomicBool::new(false)), AtomicBool::new(false));
    let waiting = thread::current();
    thread::scope(|scope| {
        let worker = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || {
            let _end = End(&ended, waiting);
            work(&stop)
        });
        let worker = worker.map_err(raised)?;
        let mut signal = Ok(());
        while !ended.load(Ordering::Acquire) {
            py.detach(|| thread::park_timeout(WAIT));
            if signal.is_ok() {
                signal = py.check_signals();
                stop.0.store(signal.is_err(), Ordering::Relaxed);
            }
        }
        match py.detach(|| worker.join()) {
            Ok(done) => signal.and(done),
            Err(why) if why.is::<Stopped>() => signal.and_then(|()| resume_unwind(why)),
            Err(why) => resume_unwind(why),
        }
    })
}

/// Says that the work has ended, however it did.
struct End<'a>(&'a AtomicBool, Thread);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        self.1.unpark();
    }
}

/// A network that is not read any further once the work is to end.
pub(crate) struct Read<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) stop: &'a Stop,
}

impl Source for Read<'_> {
    fn graph(&self) -> &Graph {
        self.source.graph()
    }

    fn names(&self) -> Vec<String> {
        self.source.names()
    }

    fn tensor(&self, name: &str) -> Result<candle_core::Tensor, Error> {
        self.stop.check();
        self.source.tensor(name)
    }

    fn rounding(&self) -> Option<Rounding> {
        self.source.rounding()
    }

    fn origin(&self) -> Option<&Origin> {
        self.source.origin()
    }
}
