//! The `train` program.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[allow(unsafe_code)]
fn main() -> std::process::ExitCode {
    // SAFETY: the first statement of the program.
    unsafe { lipschitz_train::runtime::prepare() };
    lipschitz_train::cli::main().into()
}
