//! The binary; everything it does is in [`outbox_relay::cli`].

/// Each message causes a few dozen small allocations; this allocator does them at a fraction of the cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    outbox_relay::cli::main()
}
