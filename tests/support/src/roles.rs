//! The roles of `deploy/roles.sql` in a test's database. Application, relay, operator, reader and consumer may do what
//! these roles allow, and no more.

use anyhow::Result;

use super::postgres::PASSWORD;
use super::test_bed::TestBed;

/// The script that teams run.
const ROLES: &str = include_str!("../../../deploy/roles.sql");

/// The roles, with names of this test's own: roles belong to the cluster and not to a database.
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
    /// The database's address for the reader.
    pub reader_url: String,
    /// The database's address for a consumer.
    pub consumer_url: String,
}

impl Roles {
    /// Runs the script twice, as after a release, and creates a login for each role.
    pub async fn create(bed: &TestBed) -> Result<Roles> {
        let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
        let words = ["application", "relay", "operator", "reader", "consumer"];
        // The session of the test rewrites the name of the schema.
        let roles = words.iter().fold(ROLES.to_owned(), |roles, word| {
            roles.replace(&format!("outbox_{word}"), &format!("rights_of_{word}_{database}"))
        });
        bed.client.batch_execute(&roles).await?;
        bed.client.batch_execute(&roles).await?;
        for word in words {
            let login = format!(
                "CREATE ROLE {word}_of_{database} LOGIN PASSWORD '{PASSWORD}' IN ROLE rights_of_{word}_{database}"
            );
            bed.client.batch_execute(&login).await?;
        }
        let url_of = |word: &str| bed.url().replace("//postgres:", &format!("//{word}_of_{database}:"));
        Ok(Roles {
            application_url: url_of("application"),
            relay_url: url_of("relay"),
            operator_url: url_of("operator"),
            reader_url: url_of("reader"),
            consumer_url: url_of("consumer"),
            relay: format!("relay_of_{database}"),
        })
    }
}
