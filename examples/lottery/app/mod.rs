//! The lottery as an application: event-sourced draws, a command side over HTTP, read models kept by consumers, one page.
//!
//! In reading order: `draw` (what may happen), `store` (where it is kept), `commands` (the interface), `views` (the
//! consumers), `audit` (what must be true), `serve` (everything together), `buyers` (the clients).

pub mod audit;
pub mod buyers;
pub mod commands;
pub mod draw;
pub mod processes;
pub mod serve;
pub mod store;
pub mod views;

#[cfg(test)]
mod tests;

use tokio::io::AsyncReadExt as _;

/// Returns when the other end of standard input is closed, that is, when the parent process is gone.
pub async fn until_the_parent_ends() {
    let mut input = tokio::io::stdin();
    let mut buffer = [0; 64];
    while input.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
}
