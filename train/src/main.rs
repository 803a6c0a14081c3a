//! The `train` program.

mod cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[allow(unsafe_code)]
fn main() -> std::process::ExitCode {
    // SAFETY: the first statement of the program.
    unsafe { lipschitz_train::runtime::prepare() };
    cli::main()
}
