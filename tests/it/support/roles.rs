//! The roles of `sql/examples/grants.sql` in a test's database: what application, relay and operator may do, and no more.

use anyhow::Result;

use super::bed::Bed;
use super::postgres::PASSWORD;

/// The template that operators copy.
const GRANTS: &str = include_str!("../../../sql/examples/grants.sql");

/// The roles under names of their own, for roles belong to the cluster and not to a database.
#[derive(Debug, Clone)]
pub struct Roles {
    /// The relay's name.
    pub relay: String,
    /// The database's address for the application.
    pub application_url: String,
    /// The database's address for the relay.
    pub relay_url: String,
    /// The database's address for the operator.
    pub operator_url: String,
}

impl Roles {
    /// Runs the template.
    pub async fn create(bed: &Bed) -> Result<Roles> {
        let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
        let (application, relay) = (format!("application_of_{database}"), format!("relay_of_{database}"));
        let operator = format!("operator_of_{database}");
        let grants = GRANTS.replace("outbox_application", &application).replace("outbox_relay", &relay);
        let grants = grants.replace("outbox_operator", &operator);
        bed.client.batch_execute(&grants.replace("change me", PASSWORD)).await?;
        let url_of = |role: &str| bed.url().replace("//postgres:", &format!("//{role}:"));
        Ok(Roles {
            application_url: url_of(&application),
            relay_url: url_of(&relay),
            operator_url: url_of(&operator),
            relay,
        })
    }
}
