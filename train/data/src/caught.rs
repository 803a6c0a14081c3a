//! A third-party decoder that panics on a damaged file, turned into one that fails.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What `decode` gives, or, where it panics, what the panic says on one line; nothing is printed.
///
/// Only for pure readers: `decode` must leave nothing half changed behind it.
pub(crate) fn caught<T>(decode: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    let before = QUIET.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(decode));
    QUIET.set(before);
    result.map_err(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said =
            said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("its reader gave up");
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    })
}

#[cfg(test)]
mod tests {
    use super::caught;

    #[test]
    fn a_panic_is_a_line_and_a_value_passes() {
        assert_eq!(caught(|| 3), Ok(3));
        let index = std::hint::black_box(7);
        assert_eq!(
            caught(|| [1, 2][index]),
            Err("index out of bounds: the len is 2 but the index is 7".to_string())
        );
        assert_eq!(caught(|| -> u8 { panic!("two\n  lines") }), Err("two lines".to_string()));
    }
}
