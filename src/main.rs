//! The binary; everything it does is in [`outbox_relay::cli`].

fn main() -> std::process::ExitCode {
    outbox_relay::cli::main()
}
