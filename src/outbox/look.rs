//! Looking: whether anything waits, and in which lanes. [`super::read`] brings it.

use tokio_postgres::types::Type;

use super::read::snapshot;
use super::{Outbox, OutboxError, Parameter, Snapshot, column};
use crate::message::Lane;

const WATCH: &str = include_str!("../../sql/queries/watch.sql");
const LOOK: &str = include_str!("../../sql/queries/look.sql");
const PENDING: &str = include_str!("../../sql/queries/pending.sql");

/// What can be seen of quiet destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The highest message id handed out so far, committed or not, to any destination.
    pub last_id: i64,
    /// Whether a retry is due.
    pub is_due: bool,
}

/// What a look saw.
#[derive(Clone, Debug)]
pub struct Look {
    /// What had ended when it looked.
    pub snapshot: Snapshot,
    /// Every transaction that had begun to write was below this one.
    pub next_xid: i64,
    /// The highest message id handed out so far, committed or not.
    pub last_id: i64,
    /// Lanes with messages above their bound.
    pub ready: Vec<Lane>,
    /// Lanes with a retry that is due.
    pub due: Vec<Lane>,
}

impl Outbox {
    /// Whether anything may have come for these destinations since the last look.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn watch(&self, destinations: &[&str]) -> Result<Watch, OutboxError> {
        let row = self.query_one("watch", WATCH, &[(&destinations, Type::TEXT_ARRAY)]).await?;
        Ok(Watch { last_id: column("watch", &row, 0)?, is_due: column("watch", &row, 1)? })
    }

    /// Which lanes have work above their low bounds.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn look(&self, destination: &str, lows: &[(Lane, i64)]) -> Result<Look, OutboxError> {
        let (lanes, lows): (Vec<Lane>, Vec<i64>) = lows.iter().copied().unzip();
        let parameters: [Parameter<'_>; 3] =
            [(&destination, Type::TEXT), (&lanes, Type::INT2_ARRAY), (&lows, Type::INT8_ARRAY)];
        let row = self.query_one("look", LOOK, &parameters).await?;
        Ok(Look {
            snapshot: snapshot("look", &column::<String>("look", &row, 0)?)?,
            next_xid: column("look", &row, 1)?,
            last_id: column("look", &row, 2)?,
            ready: column("look", &row, 3)?,
            due: column("look", &row, 4)?,
        })
    }

    /// Whether anything of the destination is pending, deferred messages included.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn is_pending(&self, destination: &str) -> Result<bool, OutboxError> {
        let row = self.query_one("look for pending", PENDING, &[(&destination, Type::TEXT)]).await?;
        column("look for pending", &row, 0)
    }
}
