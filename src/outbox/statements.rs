//! The statements: the texts of `sql/queries`, for the schema of an outbox. Their parameters and answers are in the files
//! of the methods that run them; how a text is rewritten is in [`crate::schema`].

use std::borrow::Cow;

use crate::schema::Schema;

/// A field for each file of `sql/queries`, with its name.
macro_rules! statements {
    ($($(#[$when:meta])? $name:ident)*) => {
        /// Every statement. They are rewritten once, when an outbox is opened, and not when they run.
        #[derive(Debug)]
        pub(super) struct Statements {
            $($(#[$when])? pub(super) $name: Cow<'static, str>,)*
        }

        impl Statements {
            pub(super) fn of(schema: &Schema) -> Self {
                Self {
                    $($(#[$when])? $name: schema.sql(include_str!(concat!("../../sql/queries/", stringify!($name), ".sql"))),)*
                }
            }

            #[cfg(test)]
            fn all(&self) -> Vec<(&'static str, &str)> {
                vec![$($(#[$when])? (stringify!($name), &*self.$name)),*]
            }
        }
    };
}

statements! {
    unserved
    serve
    remove_destination
    set_destination
    configured
    backlog
    claim
    create_lanes
    dead_count
    dead_discard
    dead_letter
    dead_list
    dead_redrive
    dead_show
    defer
    delete_delivered
    deliver
    destinations
    enqueue_due
    held_groups
    horizon
    incarnations
    inspect
    is_due
    longest_groups
    look
    pause
    pending
    prune
    quarantine
    quarantined
    rate
    read
    read_due
    read_groups
    #[cfg(feature = "dev")]
    recorded
    relays
    release
    replace
    replay_begin
    replay_count
    replay_end
    replay_step
    replay_unfinished
    replays
    replays_visible
    rescan
    resume
    scheduled
    set
    snapshot
    steering
    suitable
    supersede
    unmatched
    unquarantine
    unquarantine_gone
    unrecorded
    unserved_routes
    watch
    writers
}

#[cfg(test)]
mod tests;
