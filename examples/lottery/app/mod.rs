//! The lottery as an application: event-sourced draws, a command side over HTTP, read models kept by consumers, one page.
//!
//! In the order to read: `draw` (what may happen), `store` (where it is kept), `commands` (who may ask), `views` (who listens),
//! `audit` (what must be true), `serve` (all of it together), `buyers` (who asks).

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

/// Returns when the other end of the standard input is closed, which is when whoever started this process is gone.
pub async fn until_the_parent_ends() {
    let mut input = tokio::io::stdin();
    let mut buffer = [0; 64];
    while input.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
}
