//! Signals that end a program: the first in good order, a second at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::note;

/// How long signals count as the first: a scheduler, a closed terminal and `timeout` send several
/// at a time.
const TOGETHER: Duration = Duration::from_millis(500);

/// How often the flag is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A flag that the first signal raises: Ctrl-C, or one of those that end a job or a session. One
/// that comes later than together with it ends the program at once. The first is answered with what
/// is `told`, if anything is.
pub fn on_signal(told: Option<&'static str>) -> Arc<AtomicBool> {
    let (stop, at_once) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for signal in signals() {
        // Without a handler a signal ends the program at once, which loses no more than a program that
        // is killed.
        let _ = flag::register_conditional_shutdown(signal, 130, at_once.clone());
        let _ = flag::register(signal, stop.clone());
    }
    let raised = stop.clone();
    thread::spawn(move || {
        while !raised.load(Ordering::Relaxed) {
            thread::sleep(LOOK);
        }
        if let Some(told) = told {
            note(format_args!("{told}"));
        }
        thread::sleep(TOGETHER);
        at_once.store(true, Ordering::Relaxed);
    });
    stop
}

#[cfg(unix)]
fn signals() -> Vec<i32> {
    let hangup = Some(signal_hook::consts::SIGHUP).filter(|signal| !is_ignored(*signal));
    [SIGINT, SIGTERM].into_iter().chain(hangup).collect()
}

#[cfg(not(unix))]
fn signals() -> Vec<i32> {
    vec![SIGINT, SIGTERM]
}

/// Whether this program was started so that it ignores a signal, as `nohup` has it ignore SIGHUP;
/// where the system says so.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
