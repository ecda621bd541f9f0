//! The binary; everything it does is in [`outbox_relay::cli`].

/// Each message is a few dozen small allocations on its way, which this allocator does with a fraction of the work.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    outbox_relay::cli::main()
}
