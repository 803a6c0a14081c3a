//! Set-up of a process that trains, before anything else.

/// Gives candle's own elementwise operations one thread, unless `CANDLE_NUM_THREADS` says
/// otherwise: its pool spins while it waits, and would take the cores from the kernels, which bring
/// their own threads.
///
/// # Safety
/// No other thread may run yet: call it first in `main`.
#[allow(unsafe_code)]
pub unsafe fn prepare() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: no other thread reads the environment, since the caller has started none.
        unsafe { std::env::set_var(THREADS, "1") };
    }
}
