//! Why nobody provides credentials, in one line with the remedy, or in one for each.

use std::error::Error;

use aws_config::meta::ProviderChainError;
use aws_credential_types::provider::error::CredentialsError;

use crate::causes::causes;

/// If no provider has credentials: each of them in the order in which they were asked, with its own last cause.
pub fn attempts(error: &(dyn Error + 'static)) -> Option<Vec<(String, String)>> {
    let chain = causes(error).find_map(|cause| cause.downcast_ref::<ProviderChainError<CredentialsError>>())?;
    let said = chain.attempts().iter().map(|attempt| {
        let why = causes(attempt.error()).skip(1).last().map(ToString::to_string);
        let why = why.map(|why| why.split_once(" (").map_or(why.clone(), |(first, _)| first.to_owned()));
        (attempt.name().to_owned(), why.unwrap_or_else(|| "not configured".to_owned()))
    });
    Some(said.collect())
}

/// The same in one sentence.
pub fn providers(error: &(dyn Error + 'static)) -> Option<String> {
    sentence(attempts(error)?, |name, why| format!("{name} ({why})"))
}

/// The same, only with their names.
pub fn names(error: &(dyn Error + 'static)) -> Option<String> {
    sentence(attempts(error)?, |name, _| name)
}

fn sentence(attempts: Vec<(String, String)>, said: impl Fn(String, String) -> String) -> Option<String> {
    let said: Vec<String> = attempts.into_iter().map(|(name, why)| said(name, why)).collect();
    Some(format!("give keys, a profile or a role; tried {}", said.join(", ")))
}
